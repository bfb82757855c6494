"""Cameras with errors, and an encoder that needs none to know the depth."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from pmsplat.evaluate.baselines import pixel_splats
from pmsplat.geometry import se3
from pmsplat.types import Cameras, Prediction, Views


def disturb(cameras: Cameras, degrees: float, shift: float, seed: int = 0) -> Cameras:
    """Each camera turned by so much and moved by so much, in random directions."""
    drawn = torch.randn(2, *cameras.near.shape, 3, generator=torch.Generator().manual_seed(seed))
    moves, turns = nn.functional.normalize(drawn, dim=-1)
    twists = torch.cat([shift * moves, math.radians(degrees) * turns], dim=-1)
    return replace(cameras, c2w=cameras.c2w @ se3.exp(twists))


class Known(nn.Module):
    """Splats of the exact depth of some views, on the rays of whatever cameras it is given."""

    def __init__(self, depth: Tensor) -> None:
        super().__init__()
        self.depth, self.calls = depth, 0

    def forward(self, views: Views) -> Prediction:
        self.calls += 1
        depth = self.depth
        if depth.shape[-2:] != views.size:  # memory is measured with small views
            depth = nn.functional.interpolate(depth, views.size)
        return Prediction((depth,), (pixel_splats(views, depth),))
