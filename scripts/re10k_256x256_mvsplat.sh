#!/usr/bin/env bash
# MVSplat at 256x256: train, then evaluate on the published index.
# RealEstate10K in chunks in datasets/re10k (or $DATA), evaluation_index_re10k.json in it.
# Published: 1 GPU with 14 scenes; further settings may follow the command.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-datasets/re10k}

pmsplat train +experiment=re10k_mvsplat dataset.root="$DATA" trainer.devices=1 "$@"
pmsplat evaluate +experiment=re10k_mvsplat dataset.root="$DATA" "$@"

# The released weights instead:
#     pmsplat evaluate +experiment=re10k_mvsplat dataset.root="$DATA" --model mvsplat-re10k
