#!/usr/bin/env bash
# ReSplat large on DL3DV, 8 views of 256x448: train the initial model, evaluate it.
# DL3DV in chunks in datasets/dl3dv (or $DATA), with
# dl3dv_start_0_distance_40_ctx_8v_tgt_8v.json in it.
# Published: 32 GPUs with 2 scenes each; further settings may follow the command.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-datasets/dl3dv}

pmsplat train +experiment=resplat_dl3dv_8v_256x448_large_init dataset.root="$DATA" \
    trainer.nodes=4 trainer.devices=8 "$@"
pmsplat evaluate +experiment=resplat_dl3dv_8v_256x448_large_init dataset.root="$DATA" "$@"

# The released weights instead:
#     pmsplat evaluate +experiment=resplat_dl3dv_8v_256x448_large_init dataset.root="$DATA" \
#         --model resplat-large-dl3dv-256x448-view8
