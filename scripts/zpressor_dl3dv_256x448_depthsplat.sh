#!/usr/bin/env bash
# ZPressor with DepthSplat at 256x448: train on RealEstate10K, then on DL3DV, 12 views gathered in 6
# anchors, and evaluate with 12, 16, 24 and 36 views.
# RealEstate10K in chunks in datasets/re10k (or $RE10K), DL3DV in datasets/dl3dv (or $DATA), the
# published indices in them: re10k_ctx_12v_tgt_8v_n200.json, dl3dv_ctx_NNv_tgt_8v_n50.json.
# Published: 1 scene for each GPU, how many is not said; further settings may follow the command.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-datasets/dl3dv}
RE10K=${RE10K:-datasets/re10k}

pmsplat train +experiment=zpressor_re10k_256x448 dataset.root="$RE10K" trainer.devices=8 "$@"
pmsplat train +experiment=zpressor_dl3dv_256x448 dataset.root="$DATA" trainer.devices=8 "$@"
for views in 12 16 24 36; do
    pmsplat evaluate +experiment=zpressor_dl3dv_256x448 dataset.root="$DATA" \
        dataset.index="$DATA/dl3dv_ctx_${views}v_tgt_8v_n50.json" \
        --output outputs/zpressor_dl3dv_256x448/evaluation_${views}_views "$@"
done

# The released weights instead:
#     pmsplat evaluate +experiment=zpressor_dl3dv_256x448 dataset.root="$DATA" \
#         --model depthsplat-dl3dv-zpressor-n50-256x448
