"""Distances between maps of features whose vectors are brought to length 1, as LPIPS compares them.

torch writes some ten maps for each pair, several of them for the gradient too. On CUDA one launch
for each pair reads both maps once, and the gradient is one more that does the same.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from . import cuda

SMALLEST = 1e-10  # is added to every length
WIDEST = 1024  # channels that the fused kernel holds at a time


def unit_distance(
    maps: Sequence[Float[Tensor, "n _ _ _"]],
    targets: Sequence[Float[Tensor, "n _ _ _"]],
    weights: Sequence[Float[Tensor, " _"]],
    path: Literal["auto", "fused", "torch"] = "auto",
) -> Float[Tensor, " n"]:
    """Returns the mean over pixels of weights · (map / |map| - target / |target|)², summed up.

    `maps` and `targets` are pairs [n, channel, height, width] of any sizes, with weights [channel].
    Gradients flow to the maps alone. `path` is "torch", the definition; "fused", for CUDA; or
    "auto": fused where it can be.
    """
    if path == "auto":
        fits = all(features.shape[1] <= WIDEST for features in maps)
        path = "fused" if fits and cuda.can_take(*(x[0] for x in maps)) else "torch"
    if path == "torch":
        distance = maps[0].new_zeros(len(maps[0]))
        for found, wanted, weight in zip(maps, targets, weights, strict=True):
            difference = (_unit(found) - _unit(wanted.detach())).square().mean(dim=(2, 3))
            distance = distance + difference @ weight
        return distance
    cuda.require(maps[0].device)
    from ._unit_distance_triton import UnitDistance

    return UnitDistance.apply(tuple(targets), tuple(weights), *maps)  # pyright: ignore


def _unit(features: Tensor) -> Tensor:
    """Normalises over channels; the value is zero where all channels are zero."""
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + SMALLEST)
