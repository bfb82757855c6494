"""Feature maps [n, channel, height, width], stored channels last: joined and resized."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate


def join(
    maps: Sequence[Float[Tensor, "n _ height width"]],
) -> Float[Tensor, "n channel height width"]:
    """Maps behind each other along the channels, channels last whatever came in.

    `torch.cat` falls back to channels first as soon as one map has a single channel, and under
    autocast to the widest dtype, which the next convolution would only narrow again.
    """
    device = maps[0].device.type
    narrow = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if narrow else maps[0].dtype
    return torch.cat([x.to(dtype).permute(0, 2, 3, 1) for x in maps], dim=-1).permute(0, 3, 1, 2)


def resize(
    x: Float[Tensor, "n channel _ _"], size: tuple[int, int]
) -> Float[Tensor, "n channel _ _"]:
    """Bilinear, corners aligned, to (height, width)."""
    return interpolate(x, size=size, mode="bilinear", align_corners=True)
