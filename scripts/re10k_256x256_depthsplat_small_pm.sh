#!/usr/bin/env bash
# DepthSplat small at 256x256, fine-tuned with PM-Loss on RealEstate10K (in $DATA), then evaluated.
# The teacher is VGGT-1B (CC BY-NC 4.0; teacher.model=VGGT-1B-Commercial is under another license).
# The teacher runs once over every training scene; its pointmaps are cached beside the chunks and
# reused.
# Further settings may follow the command.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-datasets/re10k}

pmsplat teacher cache +experiment=re10k_small_pm dataset.root="$DATA" "$@"
pmsplat train +experiment=re10k_small_pm dataset.root="$DATA" trainer.devices=4 "$@"
pmsplat evaluate +experiment=re10k_small_pm dataset.root="$DATA" "$@"
