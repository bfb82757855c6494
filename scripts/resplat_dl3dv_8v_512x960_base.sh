#!/usr/bin/env bash
# ReSplat base on DL3DV, 8 views of 512x960: train it, first the initial model, then
# its update, and evaluate.
# DL3DV of 540x960 in chunks in datasets/dl3dv_960 (or $DATA), with
# dl3dv_start_0_distance_60_ctx_8v_tgt_8v.json in it.
# Starts from what resplat_dl3dv_8v_256x448_base.sh left.
# Published: 16 GPUs with 1 scene each; further settings may follow the command.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-datasets/dl3dv_960}

pmsplat train +experiment=resplat_dl3dv_8v_512x960_base_init dataset.root="$DATA" \
    trainer.nodes=2 trainer.devices=8 "$@"
pmsplat train +experiment=resplat_dl3dv_8v_512x960_base_refine dataset.root="$DATA" \
    trainer.nodes=2 trainer.devices=8 "$@"
pmsplat evaluate +experiment=resplat_dl3dv_8v_512x960_base_refine dataset.root="$DATA" "$@"

# The released weights instead:
#     pmsplat evaluate +experiment=resplat_dl3dv_8v_512x960_base_refine dataset.root="$DATA" \
#         --model resplat-base-dl3dv-512x960-view8
