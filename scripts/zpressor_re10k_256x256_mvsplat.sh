#!/usr/bin/env bash
# ZPressor with MVSplat at 256x256: train with 12 views gathered in 6 anchors, then evaluate with 8,
# 12, 16, 24 and 36.
# RealEstate10K in chunks in datasets/re10k (or $DATA), the published indices
# re10k_ctx_NNv_tgt_8v_n200.json in it.
# Published: 1 scene for each GPU, how many is not said; further settings may follow the command.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-datasets/re10k}

pmsplat train +experiment=zpressor_re10k_mvsplat dataset.root="$DATA" "$@"
for views in 8 12 16 24 36; do
    pmsplat evaluate +experiment=zpressor_re10k_mvsplat dataset.root="$DATA" \
        dataset.index="$DATA/re10k_ctx_${views}v_tgt_8v_n200.json" \
        --output outputs/zpressor_re10k_mvsplat/evaluation_${views}_views "$@"
done

# The released weights instead:
#     pmsplat evaluate +experiment=zpressor_re10k_mvsplat dataset.root="$DATA" \
#         --model mvsplat-re10k-zpressor-n200-256x256
