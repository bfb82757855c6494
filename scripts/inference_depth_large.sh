#!/usr/bin/env bash
# Depth of your photographs with DepthSplat's largest backbone: inference_depth_large.sh PHOTOS
# PHOTOS: a folder, posed or not, a video, or a chunk of scenes. The results are in
# outputs/inference_depth_large; further options of `pmsplat depth` may follow (--size, --output, …).
# In 2025 no large model of depth alone was released: this is the depth of that of Gaussians.
set -euo pipefail

pmsplat depth "${1:?folder of photos}" --model depthsplat-gs-large-re10k-256x256-view2 \
    --size 352x640 --output outputs/inference_depth_large "${@:2}"

# The depth model of October 2024 instead: --model depthsplat-depth-large
