#!/usr/bin/env bash
# ReSplat base on RealEstate10K, 2 views of 256x256: train it, first the initial model, then
# its update, and evaluate.
# RealEstate10K in chunks in datasets/re10k (or $DATA), with
# evaluation_index_re10k.json in it.
# Published: 16 GPUs with 8 scenes each, then 2; further settings may follow the command.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-datasets/re10k}

pmsplat train +experiment=resplat_re10k_2v_256x256_base_init dataset.root="$DATA" \
    trainer.nodes=2 trainer.devices=8 "$@"
pmsplat train +experiment=resplat_re10k_2v_256x256_base_refine dataset.root="$DATA" \
    trainer.nodes=2 trainer.devices=8 "$@"
pmsplat evaluate +experiment=resplat_re10k_2v_256x256_base_refine dataset.root="$DATA" "$@"

# The released weights instead:
#     pmsplat evaluate +experiment=resplat_re10k_2v_256x256_base_refine dataset.root="$DATA" \
#         --model resplat-base-re10k-256x256-view2
