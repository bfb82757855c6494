"""relu(maps + bias) on CUDA devices, in place: maps are read and written once."""

# Python's type checker does not understand Triton's language.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIncompatibleMethodOverride=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import cuda

BLOCK = 1024


class BiasRelu(torch.autograd.Function):
    """relu(maps + bias) in the memory of the maps, which have no gaps; no gradient for the bias."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, bias: Tensor) -> Tensor:
        _, channels, height, width = maps.shape
        last = maps.is_contiguous(memory_format=torch.channels_last)
        assert last or maps.is_contiguous()
        numbers = maps.numel()
        cuda.launch(
            _bias_relu, (triton.cdiv(numbers, BLOCK),),
            maps, bias, numbers, channels, 1 if last else height * width, BLOCK=BLOCK,
        )  # fmt: skip
        ctx.mark_dirty(maps)
        ctx.save_for_backward(maps)
        return maps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradients[0], out, 0), None


@triton.jit
def _bias_relu(maps, bias, numbers, channels, inner, BLOCK: tl.constexpr):
    """A block of numbers, in the order of memory; `inner` of them in a row have one channel."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < numbers
    more = tl.load(bias + at // inner % channels, there, 0.0)
    value = tl.load(maps + at, there, 0.0) + more
    tl.store(maps + at, tl.where(value < 0.0, 0.0, value), there)  # NaN stays
