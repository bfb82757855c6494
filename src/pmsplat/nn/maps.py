"""Operations on feature maps [n, channel, height, width], and the memory layout of weights.

Convolutions are fastest with channels last, except where they alternate with normalisations: the
CPU kernels of those are made for channels first, and more accurate with it.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, interpolate, pad

PIECE_CPU, PIECE = 2**16, 2**21  # pixels per slice of `pieces`, on CPUs and elsewhere


def conv_of(
    conv: nn.Conv2d, maps: Sequence[Float[Tensor, "n _ height width"]]
) -> Float[Tensor, "n channel _ _"]:
    """Applies `conv` to the channel-wise concatenation of `maps`, without building it.

    The result is the sum of convolutions of each map. This takes less memory than `join`, and the
    shorter sums round less.
    """
    assert conv.padding_mode == "zeros" and conv.groups == 1 and conv.dilation == (1, 1)
    weights = conv.weight.split([x.shape[1] for x in maps], dim=1)
    out = conv2d(maps[0], weights[0], conv.bias, conv.stride, conv.padding)
    for x, weight in zip(maps[1:], weights[1:], strict=True):
        out += conv2d(x, weight, None, conv.stride, conv.padding)
    return out


def pieces(images: Float[Tensor, "n _ height width"]) -> list[slice]:
    """Returns slices of the images that a full-size head can process in turn, to save memory.

    Returns one slice where gradients are enabled, since they keep all activations anyway.
    """
    count, _, height, width = images.shape
    at_once = count
    if not torch.is_grad_enabled():
        piece = PIECE_CPU if images.device.type == "cpu" else PIECE
        at_once = max(1, piece // (height * width))
    return [slice(start, start + at_once) for start in range(0, count, at_once)]


class ChannelsFirst(nn.Module):
    """A module that computes with channels first, whatever the layout of its input."""


def set_memory_format(model: nn.Module) -> None:
    """Puts the weights of every convolution into the layout that its block computes in."""
    first = {
        id(part)
        for block in model.modules()
        if isinstance(block, ChannelsFirst)
        for part in block.modules()
    }
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            form = torch.contiguous_format if id(module) in first else torch.channels_last
            module.weight.data = module.weight.data.contiguous(memory_format=form)


def join(
    maps: Sequence[Float[Tensor, "n _ height width"]],
) -> Float[Tensor, "n channel height width"]:
    """Concatenates maps along the channels, with channels last if any of them is.

    `torch.cat` returns channels first as soon as one map has a single channel, and under autocast
    it returns the widest dtype, which the next convolution would convert back.
    """
    device = maps[0].device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else maps[0].dtype
    if not any(_channels_last(x) for x in maps):
        return torch.cat([x.to(dtype) for x in maps], dim=1)
    return torch.cat([x.to(dtype).permute(0, 2, 3, 1) for x in maps], dim=-1).permute(0, 3, 1, 2)


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def for_group_norm(x: Float[Tensor, "n channel *size"]) -> Float[Tensor, "n channel *size"]:
    """Returns the map in the layout in which torch's group norm is accurate.

    Its CPU kernel sums channels-last maps naively, with errors up to 1e-4 in float32, so such maps
    are copied to channels first. In bfloat16 the error does not matter.
    """
    return x if x.dtype == torch.bfloat16 else x.contiguous()


def resize(
    x: Float[Tensor, "n channel _ _"], size: tuple[int, int]
) -> Float[Tensor, "n channel _ _"]:
    """Resizes bilinearly to (height, width), with aligned corners."""
    return interpolate(x, size=size, mode="bilinear", align_corners=True)


class UpConv(nn.Conv2d):
    """Nearest-neighbour upsampling by two, then a 3x3 convolution.

    Computed as one equivalent transposed convolution (4x4, stride 2; its weights are sums of those
    that meet the same pixel), with less than half of the products and without the upsampled map.
    """

    def __init__(
        self, inputs: int, outputs: int, border: Literal["zeros", "replicate"] = "zeros"
    ) -> None:
        super().__init__(inputs, outputs, 3, padding=1, padding_mode=border)

    def forward(self, input: Float[Tensor, "n _ height width"]) -> Tensor:
        mirrored = self.weight.flip(2, 3).transpose(0, 1)
        corners = [(i, 1 - i, j, 1 - j) for i in (0, 1) for j in (0, 1)]
        weight = torch.stack([pad(mirrored, corner) for corner in corners]).sum(dim=0)
        if self.padding_mode == "zeros":
            return conv_transpose2d(input, weight, self.bias, stride=2, padding=1)
        wider = pad(input, (1, 1, 1, 1), mode="replicate")
        return conv_transpose2d(wider, weight, self.bias, stride=2, padding=3)
