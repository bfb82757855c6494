"""Nearest neighbours, exact, without a table of all pairs; the twin is `geometry.neighbors`."""

from math import prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UserError
from ..geometry import neighbors


def nearest(
    points: Float[Tensor, "*batch n 3"],
    reference: Float[Tensor, "*batch m 3"],
    grid: tuple[int, int] | None = None,
    reference_mask: Bool[Tensor, "*batch m"] | None = None,
) -> Int[Tensor, "*batch n"]:
    """For each point the index of the nearest reference point: int64, without gradient.

    Of several at the same squared distance, any. `grid` = (height, width) says that both sets are
    maps of so many pixels, view after view, row by row, and that equal pixels lie near each other:
    that is faster where it is true and changes no answer where it is not. Reference points whose
    mask is False are never chosen. Computed in float32, or in float64 where one of the inputs is.
    Raises `UserError` where a sample has no reference point or all of them are masked, where a
    coordinate is not finite or beyond 1e18, and where the sets are no such maps.
    """
    _check(points, reference, grid)
    points, reference = neighbors.prepared(points.detach(), reference.detach(), reference_mask)
    if points.device.type != "cpu":
        return neighbors.nearest(points, reference, reference_mask)
    samples, n, m = prod(points.shape[:-2]), points.shape[-2], reference.shape[-2]
    mask = torch.ones(samples, m, dtype=torch.bool) if reference_mask is None else reference_mask
    found = _tree(
        points.reshape(samples, n, 3), reference.reshape(samples, m, 3), mask.reshape(samples, m)
    )
    return found.view(points.shape[:-1])


def squared_distance(
    points: Float[Tensor, "*batch n 3"],
    reference: Float[Tensor, "*batch m 3"],
    grid: tuple[int, int] | None = None,
    reference_mask: Bool[Tensor, "*batch m"] | None = None,
) -> Float[Tensor, "*batch n"]:
    """The squared distance from each point to the nearest reference point, in units of length².

    Gradients go to both sets, for the neighbours as they are. float32, or float64 where one of the
    inputs is. `grid`, `reference_mask` and errors: as in `nearest`.
    """
    index = nearest(points, reference, grid, reference_mask)
    kind = torch.promote_types(torch.promote_types(points.dtype, reference.dtype), torch.float32)
    chosen = reference.to(kind).gather(-2, index[..., None].expand(*index.shape, 3))
    return (points.to(kind) - chosen).square().sum(dim=-1)


def _check(points: Tensor, reference: Tensor, grid: tuple[int, int] | None) -> None:
    if grid is None:
        return
    n, m, pixels = points.shape[-2], reference.shape[-2], grid[0] * grid[1]
    if n != m or pixels < 1 or n % pixels:
        raise UserError(
            f"{n} points and {m} reference points for a grid of {grid[0]} by {grid[1]}",
            "as many of both, a whole number of such views",
            "leave `grid` out where the sets are no pixel-aligned maps",
        )


def _tree(points: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """By scipy's KD-tree; all with one batch axis."""
    from scipy.spatial import KDTree

    index = torch.zeros(points.shape[:2], dtype=torch.int64)
    for sample, (some, others) in enumerate(zip(points, reference, strict=True)):
        places = mask[sample].nonzero()[:, 0]
        found = KDTree(others[places].double().numpy()).query(some.double().numpy())[1]
        index[sample] = places[torch.from_numpy(found)]
    return index
