#!/usr/bin/env bash
# DepthSplat large at 256x256: train, then evaluate on the published index.
# RealEstate10K in chunks in datasets/re10k (or $DATA), evaluation_index_re10k.json in it.
# Published: 4 GPUs with 8 scenes each; further settings may follow the command.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-datasets/re10k}

pmsplat train +experiment=re10k_large dataset.root="$DATA" trainer.nodes=1 trainer.devices=4 "$@"
pmsplat evaluate +experiment=re10k_large dataset.root="$DATA" "$@"

# The released weights instead:
#     pmsplat evaluate +experiment=re10k_large dataset.root="$DATA" --model depthsplat-gs-large-re10k-256x256-view2
