#!/usr/bin/env bash
# DepthSplat small, depth alone, at 352x640, 2 to 8 views: train, then measure depth on an index.
# Photographs with sensor depth in chunks in datasets/mine (or $DATA): train/, test/ and
# evaluation_index.json, as `pmsplat data convert` and `pmsplat data index` write them.
# Further settings may follow the command.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-datasets/mine}

pmsplat train +experiment=depth_small dataset.root="$DATA" "$@"
pmsplat evaluate +experiment=depth_small dataset.root="$DATA" "$@"

# The released weights instead:
#     pmsplat evaluate +experiment=depth_small dataset.root="$DATA" --model depthsplat-depth-small-352x640-randview2-8
