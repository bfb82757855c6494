#!/usr/bin/env bash
# The published PM-Loss: DepthSplat base of October 2024 at 256x448, fine-tuned on DL3DV (in $DATA),
# then evaluated on targets outside the context views (dl3dv_bound_aware.json in $DATA).
# The teacher is VGGT-1B (CC BY-NC 4.0; teacher.model=VGGT-1B-Commercial is under another license).
# The teacher runs once over every training scene; its pointmaps are cached beside the chunks and
# reused.
# Further settings may follow the command.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-datasets/dl3dv}

pmsplat teacher cache +experiment=dl3dv_base_256x448_2024_pm dataset.root="$DATA" "$@"
pmsplat train +experiment=dl3dv_base_256x448_2024_pm dataset.root="$DATA" trainer.devices=8 "$@"
pmsplat evaluate +experiment=dl3dv_base_256x448_2024_pm dataset.root="$DATA" \
    dataset.index="$DATA/dl3dv_bound_aware.json" "$@"

# The released weights instead:
#     pmsplat evaluate +experiment=dl3dv_base_256x448_2024_pm dataset.root="$DATA" \
#         dataset.index="$DATA/dl3dv_bound_aware.json" --model pmloss
