#!/usr/bin/env bash
# DepthSplat base at 256x448: train, then evaluate on the published index.
# RealEstate10K in chunks in datasets/re10k (or $DATA), evaluation_index_re10k.json in it.
# Published: 32 GPUs with 8 scenes each; further settings may follow the command.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-datasets/re10k}

pmsplat train +experiment=re10k_base_256x448 dataset.root="$DATA" trainer.nodes=4 trainer.devices=8 "$@"
pmsplat evaluate +experiment=re10k_base_256x448 dataset.root="$DATA" "$@"

# The released weights instead:
#     pmsplat evaluate +experiment=re10k_base_256x448 dataset.root="$DATA" --model depthsplat-gs-base-re10k-256x448-view2
