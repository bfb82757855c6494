#!/usr/bin/env bash
# ReSplat base on DL3DV, 32 views of 256x448: train it, first the initial model, then
# its update, and evaluate.
# DL3DV in chunks in datasets/dl3dv (or $DATA), with
# dl3dv_start_0_distance_160_ctx_32v_tgt_24v.json in it.
# Starts from what resplat_dl3dv_16v_256x448_base.sh left.
# Published: 32 GPUs, then 16, with 1 scene each; further settings may follow the command.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-datasets/dl3dv}

pmsplat train +experiment=resplat_dl3dv_32v_256x448_base_init dataset.root="$DATA" \
    trainer.nodes=4 trainer.devices=8 "$@"
pmsplat train +experiment=resplat_dl3dv_32v_256x448_base_refine dataset.root="$DATA" \
    trainer.nodes=2 trainer.devices=8 "$@"
pmsplat evaluate +experiment=resplat_dl3dv_32v_256x448_base_refine dataset.root="$DATA" "$@"

# The released weights instead:
#     pmsplat evaluate +experiment=resplat_dl3dv_32v_256x448_base_refine dataset.root="$DATA" \
#         --model resplat-base-dl3dv-256x448-view32
