"""Nearest neighbours, exact, without a table of all pairs; the twin is `geometry.neighbors`.

Both sets are put in an order in which neighbours stand together (Morton, "A Computer Oriented
Geodetic Data Base", 1966); runs of that order get boxes, and a search looks into those boxes only
that are nearer than what it has found.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UserError
from ..geometry import neighbors

BITS = 20  # of a cell's place along each axis
SMALLEST = 1e-30  # side of the cube in which all points coincide
SPREAD = (  # puts two zeros between the bits: how far the upper half moves, and what is kept
    (32, 0x1F00000000FFFF),
    (16, 0x1F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)

SPREAD_2D = (  # the same, one zero between the bits
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
    return nearest_of_sane(points, reference, grid, reference_mask)


def nearest_of_sane(
    points: Float[Tensor, "*batch n 3"],
    reference: Float[Tensor, "*batch m 3"],
    grid: tuple[int, int] | None = None,
    reference_mask: Bool[Tensor, "*batch m"] | None = None,
) -> Int[Tensor, "*batch n"]:
    """`nearest` for sets that are known to pass its checks, of one precision: looks at no value, so
    nothing waits for the device."""
    if points.numel() == 0 or points.device.type not in ("cpu", "cuda"):
        return neighbors.nearest(points, reference, reference_mask)
    if points.device.type == "cpu":
        from ._neighbors_cpu import search
    else:
        from ._neighbors_triton import search
    return _in_order(points, reference, grid, reference_mask, search)


def squared_distance_to(
    points: Float[Tensor, "*batch n 3"],
    reference: Float[Tensor, "*batch m 3"],
    index: Int[Tensor, "*batch n"],
) -> Float[Tensor, "*batch n"]:
    """The squared distance from each point to the reference point of its index, with gradients."""
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


def _in_order(
    points: Tensor,
    reference: Tensor,
    grid: tuple[int, int] | None,
    mask: Tensor | None,
    search: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Puts both sets in an order that keeps neighbours together, searches, and names the found.

    Points are sorted along a curve through space even where there is a grid: what is next to each
    other in a map need not be in space, and a search shared by neighbours is quick only for these.
    """
    batch, n, m = points.shape[:-2], points.shape[-2], reference.shape[-2]
    queries, keys = points.reshape(-1, n, 3), reference.reshape(-1, m, 3)
    known = None if mask is None else mask.reshape(-1, m)
    low, scale = _cells(keys, known)
    if grid is None:
        codes = _codes(keys, low, scale)
        codes = codes if known is None else codes.where(known, torch.iinfo(codes.dtype).max)
        key_order = _ascending(codes)
    else:
        key_order = _grid_order(m, *grid, keys.device).expand(len(keys), -1)
    if known is not None:
        key_order = _without_masked(key_order, known)
    query_order = _ascending(_codes(queries, low, scale))
    places = search(_take(queries, query_order), _take(keys, key_order))
    found = torch.empty_like(query_order)
    return found.scatter_(1, query_order, key_order.gather(1, places)).view(*batch, n)


def _take(points: Tensor, order: Tensor) -> Tensor:
    return points.gather(1, order[..., None].expand(-1, -1, 3))


def _cells(keys: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """The low corner [batch, 1, 3] of the cube around the known points, and cells per length."""
    hole = torch.zeros_like(keys[..., 0]) if known is None else torch.where(known, 0.0, torch.inf)
    low = (keys + hole[..., None]).amin(dim=1, keepdim=True)
    high = (keys - hole[..., None]).amax(dim=1, keepdim=True)
    side = (high - low).amax(dim=-1, keepdim=True).clamp_min(SMALLEST)
    return low, 2**BITS / side


def _codes(points: Tensor, low: Tensor, scale: Tensor) -> Tensor:
    """Places along Morton's curve: the bits of x, y and z of a point's cell, in turn."""
    cells = ((points - low) * scale).clamp(0, 2**BITS - 1).long()
    for shift, kept in SPREAD:
        cells = (cells | cells << shift) & kept
    return cells[..., 0] | cells[..., 1] << 1 | cells[..., 2] << 2


def _ascending(codes: Tensor) -> Tensor:
    """The order of growing codes; numpy sorts integers faster than torch does on CPUs."""
    if codes.device.type == "cpu":
        return torch.from_numpy(codes.numpy().argsort(axis=-1))
    return codes.argsort(dim=-1)


def _grid_order(count: int, height: int, width: int, device: torch.device) -> Tensor:
    """The pixels of every view along Morton's curve: each 4, 16, 64 … in a row form a square."""
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    for shift, kept in SPREAD_2D:
        y, x = (y | y << shift) & kept, (x | x << shift) & kept
    order = _ascending((y[:, None] << 1 | x).flatten())
    first = torch.arange(0, count, height * width, device=device)
    return (first[:, None] + order).flatten()


def _without_masked(order: Tensor, known: Tensor) -> Tensor:
    """Puts, for each masked point, the known one before it: lengths stay, boxes do not grow."""
    stays = known.gather(1, order)
    place = torch.arange(order.shape[1], device=order.device).expand_as(order)
    before = place.where(stays, -1).cummax(dim=1).values
    first = stays.int().argmax(dim=1, keepdim=True)
    return order.gather(1, before.where(before >= 0, first))
