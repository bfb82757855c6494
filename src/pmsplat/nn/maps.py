"""Operations on feature maps [n, channel, height, width], and the memory layout of weights.

Convolutions are fastest with channels last, except, on CPUs, where they alternate with
normalisations: the CPU kernels of those are made for channels first, and more accurate with it.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv_transpose2d, interpolate, pad

from ..kernels.convolution import conv2d

PIECE_CPU, PIECE = 2**16, 2**21  # pixels per slice of `pieces`, on CPUs and elsewhere


def conv_of(
    conv: nn.Conv2d, maps: Sequence[Float[Tensor, "n _ height width"]]
) -> Float[Tensor, "n channel _ _"]:
    """Applies `conv` to the channel-wise concatenation of `maps`, without building it.

    The result is the sum of convolutions of each map. This takes less memory than `join`, and the
    shorter sums round less.
    """
    assert conv.padding_mode == "zeros" and conv.groups == 1 and conv.dilation == (1, 1)
    dtype = compute_dtype(conv.weight, *maps)
    padding = conv.padding[0]
    assert isinstance(padding, int)  # a word is given where it is not known yet
    weights = conv.weight.split([x.shape[1] for x in maps], dim=1)
    out = conv2d(maps[0].to(dtype), weights[0], conv.bias, conv.stride[0], padding)
    for x, weight in zip(maps[1:], weights[1:], strict=True):
        out += conv2d(x.to(dtype), weight, None, conv.stride[0], padding)
    return out


def for_conv_of(maps: Sequence[Float[Tensor, "n _ height width"]]) -> list[Tensor]:
    """Returns the maps as a `ChannelsFirst` block hands them to `conv_of`.

    CPUs save memory with several maps; elsewhere they are joined, since every convolution more is a
    kernel more to launch.
    """
    if maps[0].device.type == "cpu":
        return [for_convolutions(x) for x in maps]
    return [join([for_convolutions(x) for x in maps])]


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


def take(x: Float[Tensor, "n channel *size"], images: slice) -> Float[Tensor, "part channel *size"]:
    """Returns the maps of some images; on GPUs those of all as they are.

    The gradient of a slice is two kernels more, and a map of zeros.
    """
    whole = x.device.type != "cpu" and images == slice(0, len(x))
    return x if whole else x[images]


class ChannelsFirst(nn.Module):
    """A module that computes with channels first on CPUs, whatever the layout of its input.

    Elsewhere it computes with channels last, as all others do.
    """


def for_convolutions(x: Float[Tensor, "n channel height width"]) -> Tensor:
    """Returns the map in the layout in which a `ChannelsFirst` block computes on its device."""
    first = x.device.type == "cpu"
    return x.contiguous(memory_format=torch.contiguous_format if first else torch.channels_last)


def set_memory_format(model: nn.Module) -> None:
    """Puts the weights of every convolution into the layout that its block computes in.

    That depends on the device, so it is called again for a model that was moved.
    """
    first = {
        id(part)
        for block in model.modules()
        if isinstance(block, ChannelsFirst)
        for part in block.modules()
    }
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            on_cpu = module.weight.device.type == "cpu"
            contiguous = on_cpu and id(module) in first
            form = torch.contiguous_format if contiguous else torch.channels_last
            module.weight.data = module.weight.data.contiguous(memory_format=form)


def move_to(model: nn.Module, device: torch.device) -> None:
    """Moves a model; on CUDA devices its convolutions get channels last, in which tensor cores
    compute: each map would be turned back and forth else."""
    model.to(device)
    if device.type == "cuda":
        set_memory_format(model)


def join(
    maps: Sequence[Float[Tensor, "n _ height width"]],
) -> Float[Tensor, "n channel height width"]:
    """Concatenates maps along the channels, with channels last if any of them is.

    `torch.cat` returns channels first as soon as one map has a single channel, and the widest
    dtype, which the next convolution would convert back: here it is that of `compute_dtype`.
    """
    dtype = compute_dtype(*maps)
    if not any(_channels_last(x) for x in maps):
        return torch.cat([x.to(dtype) for x in maps], dim=1)
    return torch.cat([x.to(dtype).permute(0, 2, 3, 1) for x in maps], dim=-1).permute(0, 3, 1, 2)


def compute_dtype(*maps: Tensor) -> torch.dtype:
    """The dtype of the layers that read `maps`: that of autocast where it is on, else the narrowest
    one, since what is computed in half precision meets images and depth in single precision."""
    device = maps[0].device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return min((x.dtype for x in maps), key=lambda dtype: dtype.itemsize)


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def for_group_norm(x: Float[Tensor, "n channel *size"]) -> Float[Tensor, "n channel *size"]:
    """Returns the map in the layout in which torch's group norm is accurate.

    Its CPU kernel sums channels-last maps naively, with errors up to 1e-4 in float32, so such maps
    are copied to channels first. In bfloat16 the error does not matter, and other devices sum well.
    """
    exact = x.dtype == torch.bfloat16 or x.device.type != "cpu"
    return x if exact else x.contiguous()


def resize(
    x: Float[Tensor, "n channel _ _"], size: tuple[int, int]
) -> Float[Tensor, "n channel _ _"]:
    """Resizes bilinearly to (height, width), with aligned corners, in the dtype of the map.

    On CUDA autocast would widen maps in half precision, which the next convolution narrows again.
    """
    with torch.autocast(x.device.type, enabled=False):
        return interpolate(x, size=size, mode="bilinear", align_corners=True)


def repeat_border(x: Float[Tensor, "n channel height width"]) -> Tensor:
    """Repeats the outermost pixels once, on all sides.

    torch's CUDA kernel copies maps with channels last to channels first; it is used only where
    gradients are needed.
    """
    if x.device.type == "cpu" or (torch.is_grad_enabled() and x.requires_grad):
        return pad(x, (1, 1, 1, 1), mode="replicate")
    return _repeated_border(x)


def _repeated_border(x: Tensor) -> Tensor:
    """Writes the wider map once, with channels last."""
    count, channels, height, width = x.shape
    wide = x.new_empty(count, height + 2, width + 2, channels)
    wide[:, 1:-1, 1:-1] = x.permute(0, 2, 3, 1)
    wide[:, 0, 1:-1] = wide[:, 1, 1:-1]
    wide[:, -1, 1:-1] = wide[:, -2, 1:-1]
    wide[:, :, 0] = wide[:, :, 1]
    wide[:, :, -1] = wide[:, :, -2]
    return wide.permute(0, 3, 1, 2)


class BorderConv(nn.Conv2d):
    """A 3x3 convolution that sees the outermost pixels repeated outside the map."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, padding_mode="replicate")

    def forward(self, input: Float[Tensor, "n _ height width"]) -> Tensor:
        return conv2d(repeat_border(input), self.weight, self.bias)


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
        sums = avg_pool2d(self.weight.mT, 2, 1, padding=1, divisor_override=1).mT  # 2x2 sums: 4x4
        weight = sums.flip(2, 3).transpose(0, 1)
        if self.padding_mode == "zeros":
            return conv_transpose2d(input, weight, self.bias, stride=2, padding=1)
        return conv_transpose2d(repeat_border(input), weight, self.bias, stride=2, padding=3)
