#!/usr/bin/env bash
# ReSplat small on DL3DV, 8 views of 256x448: train it, first the initial model, then
# its update, and evaluate.
# DL3DV in chunks in datasets/dl3dv (or $DATA), with
# dl3dv_start_0_distance_40_ctx_8v_tgt_8v.json in it.
# Published: 4 GPUs with 2 scenes each, then 1; further settings may follow the command.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-datasets/dl3dv}

pmsplat train +experiment=resplat_dl3dv_8v_256x448_small_init dataset.root="$DATA" \
    trainer.devices=4 "$@"
pmsplat train +experiment=resplat_dl3dv_8v_256x448_small_refine dataset.root="$DATA" \
    trainer.devices=4 "$@"
pmsplat evaluate +experiment=resplat_dl3dv_8v_256x448_small_refine dataset.root="$DATA" "$@"

# The released weights instead:
#     pmsplat evaluate +experiment=resplat_dl3dv_8v_256x448_small_refine dataset.root="$DATA" \
#         --model resplat-small-dl3dv-256x448-view8
