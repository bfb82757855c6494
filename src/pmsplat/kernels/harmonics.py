"""Turning the harmonics of all pixels of a view by its matrix, without copies on CUDA."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry.products import einsum
from . import cuda


def turn(
    matrix: Float[Tensor, "batch view row term"],
    harmonics: Float[Tensor, "batch view pixel color term"],
    base: Float[Tensor, "batch view pixel color"] | None = None,
) -> Float[Tensor, "batch view pixel row color"]:
    """Returns matrix · harmonics for each color, with `base` added to the first row; 3 colors.

    In the full precision of the inputs. On CUDA, with Triton, gradients go to `harmonics` alone.
    """
    if not cuda.has_kernels(harmonics.device):
        return turn_by_torch(matrix, harmonics, base)
    from ._harmonics_triton import Turn

    views = matrix.shape[:2]
    flat = [None if x is None else x.flatten(0, 1) for x in (matrix, harmonics, base)]
    return Turn.apply(*flat).unflatten(0, views)  # pyright: ignore[reportOptionalMemberAccess]


def turn_by_torch(matrix: Tensor, harmonics: Tensor, base: Tensor | None) -> Tensor:
    """The reference of `turn`, on any device."""
    turned = einsum("bvij,bvpcj->bvpic", matrix, harmonics)
    if base is None:
        return turned
    return torch.cat([turned[..., :1, :] + base[..., None, :], turned[..., 1:, :]], dim=-2)
