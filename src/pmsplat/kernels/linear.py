"""Matrix products of many tokens with one matrix, in the way that suits the processor."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from . import cpu_rules


def linear(
    x: Float[Tensor, "*token input"],
    weight: Float[Tensor, "output input"],
    bias: Float[Tensor, " output"] | None = None,
) -> Float[Tensor, "*token output"]:
    """x · weightᵀ + bias, with gradients to all; the twin is `torch.nn.functional.linear`.

    On the CPU in float32 the way is chosen by `cpu_rules`; all are equal to rounding. By default
    the product is handed to oneDNN as a 1x1 convolution: its code for the machine at hand is up to
    twice as fast as the BLAS behind `linear`, which does not use AVX-512 on AMD processors.
    """
    if not cpu_rules.on_cpu(x, weight):
        return functional.linear(x, weight, bias)
    return _compute("linear", x, weight, bias)


def linear_gelu(
    x: Float[Tensor, "*token input"],
    weight: Float[Tensor, "output input"],
    bias: Float[Tensor, " output"] | None = None,
) -> Float[Tensor, "*token output"]:
    """gelu(`linear`), with gradients to all: the first half of a feed-forward network."""
    if not cpu_rules.on_cpu(x, weight):
        return functional.gelu(functional.linear(x, weight, bias))
    way = _way("linear gelu", x, weight, bias)
    if way == "onednn":
        return _multiply(x, weight, bias, "gelu")
    return functional.gelu(WAYS[way](x, weight, bias))


def product(
    x: Float[Tensor, "*token input"], matrix: Float[Tensor, "output input"]
) -> Float[Tensor, "*token output"]:
    """`linear` with a matrix that is computed anew each time: attention's keys and values."""
    if not cpu_rules.on_cpu(x, matrix):
        return functional.linear(x, matrix)
    return _compute("product", x, matrix, None)


def _compute(operation: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return WAYS[_way(operation, x, weight, bias)](x, weight, bias)


def _way(operation: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    outputs, inputs = weight.shape
    trains = cpu_rules.trains(x, weight, bias)
    shape = cpu_rules.product_class(x.numel() // inputs, inputs, outputs, trains)
    return cpu_rules.way(operation, shape)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As a 1x1 convolution of a map of one row."""
    tokens = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
    out = functional.conv2d(tokens, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    """By oneDNN's matrix product, which has no gradients, and what it computes `then` in place."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none")


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "conv": _convolve,
    "blas": functional.linear,
    "onednn": _multiply,
}


class Linear(nn.Linear):
    """Same parameters and result as `torch.nn.Linear`, faster on CPUs."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
