"""Products of small matrices in the full precision of their inputs, on every device.

On CUDA, torch multiplies float32 matrices on tensor cores where its matmul precision is "high", as
training sets it: inputs are rounded to 10 bits (TF32). That is right for features; a camera is off
by half a pixel then. Here such products are multiplied and added element by element, whatever the
setting says, forward and backward. Elsewhere they are torch's own, and autocast leaves those of
float32 alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

SMALL = 2**22  # numbers of a product that may be held in memory before they are added
LONGEST = 32  # terms that are added one after the other where there are more numbers than that


def rounds_products(tensor: Tensor) -> bool:
    """Whether matrix products of such tensors may be computed in TF32."""
    return tensor.device.type == "cuda" and tensor.dtype == torch.float32


def matmul(
    a: Float[Tensor, "*#batch row term"], b: Float[Tensor, "*#batch term column"]
) -> Float[Tensor, "*_ row column"]:
    """Returns a @ b, of two matrices or of batches of them; differentiable."""
    return einsum("...ij,...jk->...ik", a, b) if rounds_products(a) else _apply(torch.matmul, a, b)


def einsum(equation: str, a: Tensor, b: Tensor) -> Tensor:
    """Returns torch.einsum of two tensors that adds over one letter; differentiable.

    Both have the letters of the equation, each once, and leading axes where it begins with "...".
    """
    if not rounds_products(a):
        return _apply(lambda a, b: torch.einsum(equation, a, b), a, b)
    inputs, result = equation.replace("...", "").split("->")
    of_a, of_b = inputs.split(",")
    (summed,) = set(of_a + of_b) - set(result)
    order = result + summed
    return _SumOfProducts.apply(_aligned(a, of_a, order), _aligned(b, of_b, order))  # pyright: ignore[reportReturnType]


def _apply(product: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """`product(a, b)`, also under autocast in float32 where `a` is."""
    device = a.device.type
    if a.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        return product(a, b)
    with torch.autocast(device, enabled=False):
        return product(a, b.float())


def _aligned(tensor: Tensor, letters: str, order: str) -> Tensor:
    """A view with an axis for each letter of `order`, of length 1 where it has none, after those
    without a letter."""
    leading = tensor.dim() - len(letters)
    known = [leading + letters.index(letter) for letter in order if letter in letters]
    tensor = tensor.permute(*range(leading), *known)
    for place, letter in enumerate(order):
        if letter not in letters:
            tensor = tensor.unsqueeze(leading + place)
    return tensor


class _SumOfProducts(torch.autograd.Function):
    """Σ a · b over the last axis of two tensors that broadcast, without the copies of autograd."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _sum_products(a, b, (-1,)).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        gradient = gradients[0][..., None]
        for_a = _gradient(gradient, b, a.shape) if ctx.needs_input_grad[0] else None
        return for_a, _gradient(gradient, a, b.shape) if ctx.needs_input_grad[1] else None


def _gradient(gradient: Tensor, other: Tensor, shape: torch.Size) -> Tensor:
    """gradient · other, added over the axes along which the factor of this `shape` was repeated."""
    whole = torch.broadcast_shapes(gradient.shape, other.shape)
    lacking = len(whole) - len(shape)
    padded = (1,) * lacking + tuple(shape)
    repeated = tuple(i for i, side in enumerate(padded) if side == 1 and whole[i] > 1)
    return _sum_products(gradient, other, repeated).reshape(shape)


def _sum_products(a: Tensor, b: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Σ a · b over `axes`, which stay with length 1: term by term where the product is large."""
    if not axes:
        return a * b
    axis, *others = axes
    whole = torch.broadcast_shapes(a.shape, b.shape)
    if others or whole[axis] > LONGEST or whole.numel() <= SMALL:
        return (a * b).sum(dim=axes, keepdim=True)
    lefts, rights = (_terms(tensor, axis, whole) for tensor in (a, b))
    out = lefts[0] * rights[0]
    for left, right in zip(lefts[1:], rights[1:], strict=True):
        out = torch.addcmul(out, left, right)
    return out


def _terms(tensor: Tensor, axis: int, whole: torch.Size) -> list[Tensor]:
    """The slices of a factor along an axis of the product, repeated where it has only one."""
    from_end = axis % len(whole) - len(whole)
    if -from_end > tensor.dim() or tensor.shape[from_end] == 1:
        return [tensor] * whole[axis]
    return list(tensor.split(1, dim=from_end))
