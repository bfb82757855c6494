"""Convolutions of maps, in the way that suits the processor.

A convolution with a 3x3 kernel is the sum of nine matrix products, one for each tap, of shifted
views of the padded map; no patches are copied. Anderson et al., "Low-memory GEMM-based Convolution
Algorithms for Deep Neural Networks", 2017 (kn2row).
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from . import cpu_rules, cuda

CACHED = 2**20  # bytes of inputs and outputs that nine products go over before the next rows
FORMATS = {"first": torch.contiguous_format, "last": torch.channels_last}


def conv2d(
    x: Float[Tensor, "n input _ _"],
    weight: Float[Tensor, "output input _ _"],
    bias: Float[Tensor, " output"] | None = None,
    stride: int = 1,
    padding: int = 0,
) -> Float[Tensor, "n output height width"]:
    """`torch.nn.functional.conv2d`, its twin, with gradients to all; without groups and dilation.

    On the CPU in float32 the way is chosen by `cpu_rules`; all are equal to rounding. By default
    oneDNN computes in the layout that map and weight have; the other ways return the layout of the
    map.
    """
    if not cpu_rules.on_cpu(x, weight):
        return functional.conv2d(x, weight, bias, stride, padding)
    shape = cpu_rules.conv_class(x, weight, stride, cpu_rules.trains(x, weight, bias))
    chosen = cpu_rules.way("conv", shape)
    if chosen == "direct":
        return functional.conv2d(x, weight, bias, stride, padding)
    return WAYS[chosen](x, weight, bias, stride, padding)


def conv_relu(
    conv: nn.Conv2d, x: Float[Tensor, "n input _ _"]
) -> Float[Tensor, "n output height width"]:
    """relu(conv(x)) of a frozen network: gradients flow to `x` alone.

    On CUDA the bias is added where the ReLU is computed, in the layout of the convolution's result.
    """
    if conv.bias is None or not cuda.has_kernels(x.device):
        return functional.relu(conv(x))
    from ._bias_relu_triton import BiasRelu

    found = conv._conv_forward(x, conv.weight, None)
    return BiasRelu.apply(found, conv.bias)  # pyright: ignore


class Conv2d(nn.Conv2d):
    """Same parameters and result as `torch.nn.Conv2d`; square strides, no groups or dilation."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert self.groups == 1 and self.dilation == (1, 1)
        stride, padding = self.stride[0], self.padding
        assert self.stride[1] == stride and not isinstance(padding, str)
        if self.padding_mode != "zeros":
            around = self._reversed_padding_repeated_twice
            input, padding = functional.pad(input, around, mode=self.padding_mode), (0, 0)
        assert padding[0] == padding[1]
        return conv2d(input, weight, bias, stride, padding[0])


def _in_layout(name: str) -> Callable[..., Tensor]:
    """oneDNN, with map and weight brought into a layout."""

    def convolve(
        x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
    ) -> Tensor:
        form = FORMATS[name]
        given, matrix = x.contiguous(memory_format=form), weight.contiguous(memory_format=form)
        return _like(functional.conv2d(given, matrix, bias, stride, padding), x)

    return convolve


def _by_taps(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """As a product for each tap of the kernel; other strides are oneDNN's."""
    if stride != 1:
        return functional.conv2d(x, weight, bias, stride, padding)
    out: Tensor = _Taps.apply(x, weight, bias, padding)  # pyright: ignore
    return _like(out, x)


def _by_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    """A 1x1 kernel as one matrix product by the BLAS; other kernels are oneDNN's."""
    if weight.shape[-2:] != (1, 1) or stride != 1 or padding != 0:
        return functional.conv2d(x, weight, bias, stride, padding)
    matrix = weight[:, :, 0, 0]
    if cpu_rules.layout(x) == "last":
        return functional.linear(x.permute(0, 2, 3, 1), matrix, bias).permute(0, 3, 1, 2)
    flat = x.flatten(2)
    batch = matrix.expand(len(x), *matrix.shape)
    out = batch @ flat if bias is None else torch.baddbmm(bias[:, None], batch, flat)
    return out.unflatten(2, x.shape[2:])


def _by_winograd(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    """A 3x3 kernel by Winograd's transforms; other kernels, and few channels, are oneDNN's."""
    from . import _winograd  # late: numba takes a second to import

    fits = weight.shape[-2:] == (3, 3) and stride == 1 and min(weight.shape[:2]) >= _winograd.LANES
    small = min(x.shape[-2:]) + 2 * padding < 3
    if not fits or small or cpu_rules.trains(x, weight, bias):
        return functional.conv2d(x, weight, bias, stride, padding)
    given = x.contiguous(memory_format=FORMATS[cpu_rules.layout(x)])
    return _winograd.convolve(given, weight, bias, padding)


WAYS: dict[str, Callable[..., Tensor]] = {
    "first": _in_layout("first"),
    "last": _in_layout("last"),
    "taps": _by_taps,
    "product": _by_product,
    "winograd": _by_winograd,
}


def _like(out: Tensor, x: Tensor) -> Tensor:
    return out.contiguous(memory_format=FORMATS[cpu_rules.layout(x)])


class _Taps(torch.autograd.Function):
    """A convolution of stride 1; the result has channels last, with gaps after its rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.has_bias = padding, bias is not None
        return _sum_taps(_rows(x, padding), weight, bias)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        height, width = weight.shape[-2:]
        d_x = d_weight = d_bias = None
        if ctx.needs_input_grad[0]:
            turned = weight.flip(2, 3).transpose(0, 1)
            wide = functional.pad(grad, (width - 1, width - 1, height - 1, height - 1))
            d_x = _sum_taps(_rows(wide, 0), turned, None)
            edge = ctx.padding
            d_x = d_x[..., edge : edge + x.shape[2], edge : edge + x.shape[3]]
        if ctx.needs_input_grad[1]:
            d_weight = _tap_gradients(_rows(x, ctx.padding), grad, weight)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            d_bias = grad.sum(dim=(0, 2, 3))
        return d_x, d_weight, d_bias, None


def _rows(x: Tensor, padding: int) -> Float[Tensor, "n height width channel"]:
    """The padded map with channels last."""
    last = x.permute(0, 2, 3, 1)
    if padding == 0:
        return last.contiguous()
    n, height, width, channels = last.shape
    out = last.new_zeros(n, height + 2 * padding, width + 2 * padding, channels)
    out[:, padding:-padding, padding:-padding] = last
    return out


def _tap_offsets(weight: Tensor, width: int) -> list[tuple[int, int, int]]:
    """For each tap its row, its column, and how many pixels of a padded map it lies ahead."""
    rows, columns = weight.shape[-2:]
    return [(i, j, i * width + j) for i in range(rows) for j in range(columns)]


def _sum_taps(
    padded: Float[Tensor, "n height width input"], weight: Tensor, bias: Tensor | None
) -> Float[Tensor, "n output _ _"]:
    """Pixels of a map are rows of one matrix, so that a tap is the same matrix some rows on.

    The last columns of each line of the map mix its two ends; they are left out of the result.
    """
    n, height, width, inputs = padded.shape
    outputs = weight.shape[0]
    out_height, out_width = height - weight.shape[2] + 1, width - weight.shape[3] + 1
    count = (out_height - 1) * width + out_width
    step = max(64, CACHED // (4 * (inputs + outputs)))
    matrices = weight.permute(2, 3, 1, 0).contiguous()
    out = padded.new_empty(n, out_height * width, outputs)
    for image in range(n):
        pixels = padded[image].view(-1, inputs)
        for start in range(0, count, step):
            stop = min(start + step, count)
            part = out[image, start:stop]
            for tap, (i, j, ahead) in enumerate(_tap_offsets(weight, width)):
                shifted = pixels[start + ahead : stop + ahead]
                if tap:
                    part.addmm_(shifted, matrices[i, j])
                elif bias is None:
                    torch.mm(shifted, matrices[i, j], out=part)
                else:
                    torch.addmm(bias, shifted, matrices[i, j], out=part)
    return out.view(n, out_height, width, outputs)[:, :, :out_width].permute(0, 3, 1, 2)


def _tap_gradients(
    padded: Float[Tensor, "n height width input"], grad: Tensor, weight: Tensor
) -> Tensor:
    """The gradient of the weight: for each tap, its pixels times the gradients of the result."""
    n, _, width, inputs = padded.shape
    out_height, out_width = grad.shape[2:]
    count = (out_height - 1) * width + out_width
    whole = grad.new_zeros(n, out_height, width, grad.shape[1])  # zero where rows have gaps
    whole[:, :, :out_width] = grad.permute(0, 2, 3, 1)
    step = max(64, CACHED // (4 * (inputs + grad.shape[1])))
    found = grad.new_zeros(*weight.shape[2:], inputs, grad.shape[1])
    for image in range(n):
        pixels, incoming = padded[image].view(-1, inputs), whole[image].view(-1, grad.shape[1])
        for start in range(0, count, step):
            stop = min(start + step, count)
            for i, j, ahead in _tap_offsets(weight, width):
                shifted = pixels[start + ahead : stop + ahead]
                found[i, j].addmm_(shifted.t(), incoming[start:stop])
    return found.permute(3, 2, 0, 1)
