"""Exact nearest neighbours without comparing all pairs; the reference is `geometry.neighbors`.

Both sets are sorted so that neighbours in space are near each other (Morton, "A Computer Oriented
Geodetic Data Base", 1966). Runs of the sorted reference get bounding boxes, and a search visits
only boxes that are nearer than the best point found so far.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UserError
from ..geometry import neighbors, se3
from ..geometry.constants import keep_results
from . import cuda

BITS = 20  # bits of a cell's index along each axis
SMALLEST = 1e-30  # least side of the bounding cube, for points that coincide
SPREAD = (  # (shift, mask) pairs that insert two zeros between the bits of an integer
    (32, 0x1F00000000FFFF),
    (16, 0x1F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)

SPREAD_2D = (  # the same with one zero between the bits
    (16, 0xFFFF0000FFFF),
    (8, 0xFF00FF00FF00FF),
    (4, 0xF0F0F0F0F0F0F0F),
    (2, 0x3333333333333333),
    (1, 0x5555555555555555),
)


def nearest(
    points: Float[Tensor, "*batch n 3"],
    reference: Float[Tensor, "*batch m 3"],
    grid: tuple[int, int] | None = None,
    reference_mask: Bool[Tensor, "*batch m"] | None = None,
) -> Int[Tensor, "*batch n"]:
    """Returns for each point the index of the nearest reference point: int64, without gradient.

    Ties are broken arbitrarily. Pass `grid` = (height, width) if both sets are maps of that size,
    view after view, row by row, whose equal pixels lie near each other: this only affects speed.
    Reference points whose mask is False are never chosen. Computed in float32, or in float64 if one
    of the inputs is float64. Raises `UserError` if a sample has no reference point or all of them
    are masked, if a coordinate is not finite or beyond 1e18, and if `grid` does not fit the sets.
    """
    _check(points, reference, grid)
    points, reference = neighbors.prepare(points.detach(), reference.detach(), reference_mask)
    return nearest_of_sane(points, reference, grid, reference_mask)


def nearest_of_sane(
    points: Float[Tensor, "*batch n 3"],
    reference: Float[Tensor, "*batch m 3"],
    grid: tuple[int, int] | None = None,
    reference_mask: Bool[Tensor, "*batch m"] | None = None,
) -> Int[Tensor, "*batch n"]:
    """Returns `nearest` without checks, for finite points of one dtype and at least one unmasked
    reference point per sample: it inspects no value, hence never synchronizes with a device that
    has Triton."""
    if not _is_compiled(points):
        return neighbors.nearest(points, reference, reference_mask)
    if points.device.type == "cpu":
        from ._neighbors_cpu import search
    else:
        from ._neighbors_triton import search
    return _in_order(points, reference, grid, reference_mask, search)


def k_nearest(
    points: Float[Tensor, "*batch n 3"], reference: Float[Tensor, "*batch m 3"], k: int
) -> Int[Tensor, "*batch n k"]:
    """Returns for each point the indices of its `k` nearest reference points, nearest first.

    int64, without gradient; of equally near ones the lower index comes first. A point of both sets
    is its own neighbour. Computed in float32, or in float64 if one of the inputs is float64, and
    exact for these numbers. Raises `UserError` for a `k` outside 1 to 32 or above m, and if a
    coordinate is not finite or beyond 1e18.
    """
    neighbors.check_count(k, reference.shape[-2])
    points, reference = neighbors.prepare(points.detach(), reference.detach())
    return k_nearest_of_sane(points, reference, k)


def k_nearest_of_sane(
    points: Float[Tensor, "*batch n 3"], reference: Float[Tensor, "*batch m 3"], k: int
) -> Int[Tensor, "*batch n k"]:
    """Returns `k_nearest` without checks of values, for finite points of one dtype: it never
    synchronizes with a device that has Triton."""
    if not _is_compiled(points):
        return neighbors.k_nearest(points, reference, k)
    if points.device.type == "cpu":
        from ._neighbors_k_cpu import search
    else:
        from ._neighbors_k_triton import search
    return _k_in_order(points, reference, k, search)


def k_nearest_in_windows(
    points: Float[Tensor, "batch view height width 3"],
    others: Int[Tensor, "batch view other"],
    c2w: Float[Tensor, "batch view 4 4"],
    K: Float[Tensor, "batch view 3 3"],
    k: int,
    radius: int = 3,
) -> Int[Tensor, "batch view height width k"]:
    """Returns for each point the `k` nearest among those near its pixels, nearest first.

    A faster, inexact `k_nearest` of a scene's points that does not count the point itself; see
    `geometry.neighbors.k_nearest_in_windows`, which it equals. Never synchronizes with a device
    that has Triton: the points must be finite.
    """
    neighbors.check_count(k, neighbors.MOST)
    dtype = torch.promote_types(points.dtype, torch.float32)
    points, c2w, K = (x.detach().to(dtype) for x in (points, c2w, K))
    if not _is_compiled(points):
        return neighbors.k_nearest_in_windows(points, others, c2w, K, k, radius)
    if points.device.type == "cpu":
        from ._neighbors_k_cpu import search_windows
    else:
        from ._neighbors_k_triton import search_windows
    found = search_windows(points, others, se3.invert(c2w), K, k, radius)
    return found.unflatten(2, points.shape[2:4])


def squared_distance_to(
    points: Float[Tensor, "*batch n 3"],
    reference: Float[Tensor, "*batch m 3"],
    index: Int[Tensor, "*batch n"],
) -> Float[Tensor, "*batch n"]:
    """Returns squared distances of points to the reference points at `index`, with gradients."""
    dtype = torch.promote_types(torch.promote_types(points.dtype, reference.dtype), torch.float32)
    chosen = reference.to(dtype).gather(-2, index[..., None].expand(*index.shape, 3))
    return (points.to(dtype) - chosen).square().sum(dim=-1)


def _is_compiled(points: Tensor) -> bool:
    """Whether a compiled search is to be had: numba's on CPUs, Triton's on CUDA devices."""
    if points.numel() == 0:
        return False
    return points.device.type == "cpu" or cuda.has_kernels(points.device)


def _check(points: Tensor, reference: Tensor, grid: tuple[int, int] | None) -> None:
    if grid is None:
        return
    n, m, pixels = points.shape[-2], reference.shape[-2], grid[0] * grid[1]
    if n != m or pixels < 1 or n % pixels:
        raise UserError(
            f"{n} points and {m} reference points for a grid of {grid[0]} by {grid[1]}",
            "as many of both, a whole number of maps of that size",
            "leave `grid` out if the sets are not pixel-aligned maps",
        )


def _in_order(
    points: Tensor,
    reference: Tensor,
    grid: tuple[int, int] | None,
    mask: Tensor | None,
    search: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Sorts both sets, searches, and returns indices into the unsorted reference.

    Points are sorted along a curve through space even if there is a grid: the search is fast for
    points that are adjacent in space, and adjacent pixels need not be.
    """
    batch, n, m = points.shape[:-2], points.shape[-2], reference.shape[-2]
    queries, keys = points.reshape(-1, n, 3), reference.reshape(-1, m, 3)
    query_order, key_order = _orders(
        queries, keys, grid, None if mask is None else mask.reshape(-1, m)
    )
    # Search, and undo both orders.
    places = search(_take(queries, query_order), _take(keys, key_order))
    found = torch.empty_like(query_order)
    return found.scatter_(1, query_order, key_order.gather(1, places)).view(*batch, n)


def _k_in_order(
    points: Tensor,
    reference: Tensor,
    k: int,
    search: Callable[[Tensor, Tensor, Tensor, int], Tensor],
) -> Tensor:
    """Sorts both sets, searches, and returns indices into the unsorted reference."""
    batch, n, m = points.shape[:-2], points.shape[-2], reference.shape[-2]
    queries, keys = points.reshape(-1, n, 3), reference.reshape(-1, m, 3)
    query_order, key_order = _orders(queries, keys, None, None)
    chosen = search(_take(queries, query_order), _take(keys, key_order), key_order, k)
    found = torch.empty_like(chosen)
    return found.scatter_(1, query_order[..., None].expand_as(chosen), chosen).view(*batch, n, k)


def _orders(
    queries: Tensor, keys: Tensor, grid: tuple[int, int] | None, known: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns orders of the points and of the known reference points, neighbours side by side."""
    m = keys.shape[1]
    cube = _corners(keys, known)
    if grid is None:
        codes = _codes(keys, *cube)
        codes = codes if known is None else codes.where(known, torch.iinfo(codes.dtype).max)
        key_order = _ascending(codes)
    else:
        key_order = _grid_order(m, *grid, keys.device).expand(len(keys), -1)
    if known is not None:
        key_order = _replace_masked(key_order, known)
    return _ascending(_codes(queries, *cube)), key_order


def _take(points: Tensor, order: Tensor) -> Tensor:
    return points.gather(1, order[..., None].expand(-1, -1, 3))


def _corners(keys: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the low and the high corner [batch, 1, 3] of the known points."""
    low = high = keys
    if known is not None:
        hole = torch.where(known, 0.0, torch.inf)[..., None]
        low, high = keys + hole, keys - hole
    return low.amin(dim=1, keepdim=True), high.amax(dim=1, keepdim=True)


def _codes(points: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Returns positions on Morton's curve through the cube that the corners span: the interleaved
    bits of x, y and z of each cell."""
    if points.device.type != "cpu":
        from ._neighbors_triton import codes

        return codes(points, low, high)
    side = (high - low).amax(dim=-1, keepdim=True).clamp_min(SMALLEST)
    cells = ((points - low) * (2**BITS / side)).clamp(0, 2**BITS - 1).long()
    for shift, kept in SPREAD:
        cells = (cells | cells << shift) & kept
    return cells[..., 0] | cells[..., 1] << 1 | cells[..., 2] << 2


def _ascending(codes: Tensor) -> Tensor:
    """Returns the order of ascending codes; numpy sorts integers faster than torch on CPUs."""
    if codes.device.type == "cpu":
        return torch.from_numpy(codes.numpy().argsort(axis=-1))
    return codes.argsort(dim=-1)


def _grid_order(count: int, height: int, width: int, device: torch.device) -> Tensor:
    """Returns the pixels of every view along Morton's curve: runs of 4, 16, 64 … form squares."""
    first = torch.arange(0, count, height * width, device=device)
    return (first[:, None] + _curve(height, width, device)).flatten()


@keep_results
def _curve(height: int, width: int, device: torch.device) -> Tensor:
    """Returns the pixels of one view along it."""
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    for shift, kept in SPREAD_2D:
        y, x = (y | y << shift) & kept, (x | x << shift) & kept
    return _ascending((y[:, None] << 1 | x).flatten())


def _replace_masked(order: Tensor, known: Tensor) -> Tensor:
    """Replaces each masked point by the known one before it: boxes then hold known points only."""
    stays = known.gather(1, order)
    place = torch.arange(order.shape[1], device=order.device).expand_as(order)
    before = place.where(stays, -1).cummax(dim=1).values
    first = stays.int().argmax(dim=1, keepdim=True)
    return order.gather(1, before.where(before >= 0, first))
