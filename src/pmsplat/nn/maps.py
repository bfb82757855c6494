"""Feature maps [n, channel, height, width], stored channels last: joined, resized, normalised."""

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


def for_group_norm(x: Float[Tensor, "n channel *size"]) -> Float[Tensor, "n channel *size"]:
    """The map as torch's group norm wants it.

    Its CPU kernel sums channels-last maps naively, with errors up to 1e-4 in float32, so that one
    gets a copy with channels first; bfloat16 does not notice.
    """
    return x if x.dtype == torch.bfloat16 else x.contiguous()


def resize(
    x: Float[Tensor, "n channel _ _"], size: tuple[int, int]
) -> Float[Tensor, "n channel _ _"]:
    """Bilinear, corners aligned, to (height, width)."""
    return interpolate(x, size=size, mode="bilinear", align_corners=True)
