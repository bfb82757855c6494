"""Nearest neighbours by comparing all pairs: the reference for `kernels.neighbors`."""

from math import prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UserError

PAIRS = 2**22  # distances held in memory at once
FARTHEST = 1e18  # bound of coordinates: squares of larger ones overflow float32


def nearest(
    points: Float[Tensor, "*batch n 3"],
    reference: Float[Tensor, "*batch m 3"],
    reference_mask: Bool[Tensor, "*batch m"] | None = None,
) -> Int[Tensor, "*batch n"]:
    """Returns for each point the index of the reference point at the least Euclidean distance.

    int64, without gradient. Ties are broken arbitrarily. Squared differences are summed in float32,
    or in float64 if one of the inputs is float64. Reference points whose mask is False are never
    chosen. Raises `UserError` as `prepare` does.
    """
    points, reference = prepare(points.detach(), reference.detach(), reference_mask)
    samples, n, m = prod(points.shape[:-2]), points.shape[-2], reference.shape[-2]
    queries, keys = points.reshape(samples, n, 3), reference.reshape(samples, m, 3)
    masks = None if reference_mask is None else reference_mask.reshape(samples, m)
    index = torch.zeros(samples, n, dtype=torch.int64, device=points.device)
    rows = max(1, PAIRS // m)
    for sample in range(samples):
        for first in range(0, n, rows):
            block = slice(first, first + rows)
            squared = (queries[sample, block, None] - keys[sample]).square().sum(dim=-1)
            if masks is not None:
                squared = squared.masked_fill(~masks[sample], torch.inf)
            index[sample, block] = squared.argmin(dim=-1)
    return index.view(points.shape[:-1])


def prepare(
    points: Float[Tensor, "*batch n 3"],
    reference: Float[Tensor, "*batch m 3"],
    reference_mask: Bool[Tensor, "*batch m"] | None = None,
) -> tuple[Float[Tensor, "*batch n 3"], Float[Tensor, "*batch m 3"]]:
    """Returns both sets in one dtype, at least float32, with masked reference points set to 0.

    Keeps gradients. Raises `UserError` if a sample has no reference point left, or if an unmasked
    coordinate is not finite or beyond 1e18.
    """
    dtype = torch.promote_types(torch.promote_types(points.dtype, reference.dtype), torch.float32)
    points, reference = points.to(dtype), reference.to(dtype)
    if reference.shape[-2] == 0:
        raise UserError(
            "no reference points", "at least one in each sample", "leave out samples without any"
        )
    if reference_mask is not None:
        _refuse(
            ~reference_mask.any(dim=-1),
            "reference points that are all masked",
            "at least one unmasked point",
            "leave that sample out",
        )
        reference = reference.where(reference_mask[..., None], 0.0)
    for name, values in (("points", points), ("reference points", reference)):
        _refuse(
            ~(values.detach().abs() < FARTHEST).all(dim=-1).all(dim=-1),
            f"{name} with a coordinate that is not finite or beyond {FARTHEST:g}",
            "finite coordinates",
            "leave such points out, or mask them in the reference",
        )
    return points, reference


def _refuse(bad: Tensor, got: str, wanted: str, remedy: str) -> None:
    """Raises `UserError` with the index of the first `bad` sample, if there is one."""
    if bad.any():
        sample = ", ".join(str(i) for i in bad.nonzero()[0].tolist())
        raise UserError(f"{got} in sample {sample}" if sample else got, wanted, remedy)
