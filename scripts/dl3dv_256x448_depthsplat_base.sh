#!/usr/bin/env bash
# DepthSplat base at 256x448 on DL3DV, 2 to 6 views: train, then evaluate with 2, 4 and 6.
# DL3DV in chunks in datasets/dl3dv (or $DATA), the published indices in it. Starts from the weights
# that re10k_256x448_depthsplat_base.sh left.
# Published: 8 GPUs with 1 scene each; further settings may follow the command.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-datasets/dl3dv}

pmsplat train +experiment=dl3dv_base_256x448 dataset.root="$DATA" trainer.devices=8 "$@"
for views in 2 4 6; do
    pmsplat evaluate +experiment=dl3dv_base_256x448 dataset.root="$DATA" \
        dataset.index="$DATA/dl3dv_start_0_distance_50_ctx_${views}v_video_0_50.json" \
        --output outputs/dl3dv_base_256x448/evaluation_${views}_views "$@"
done
