#!/usr/bin/env bash
# Depth of your photographs with DepthSplat's small depth model: inference_depth_small.sh PHOTOS
# PHOTOS: a folder, posed or not, a video, or a chunk of scenes. The results are in
# outputs/inference_depth_small; further options of `pmsplat depth` may follow (--size, --output, …).
set -euo pipefail

pmsplat depth "${1:?folder of photos}" --model depthsplat-depth-small-352x640-randview2-8 \
    --size 352x640 --output outputs/inference_depth_small "${@:2}"

# The weights of October 2024 instead: --model depthsplat-depth-small
