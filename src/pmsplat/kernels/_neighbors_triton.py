"""Nearest neighbours on CUDA devices: blocks of points visit tiles of the reference, nearest first.

Both sets come in an order in which neighbours in space are near each other. Every 64 consecutive
reference points form a tile with a box, every 32 tiles a group with a larger box. A block of 64
points first scans the tile whose farthest corner is nearest, then visits groups, and tiles in them,
nearest first, while they are nearer than the largest of its best distances so far. The distance to
a box is rounded like the distance to a point in it (both by the same two `fma`) and is never
greater, so the result is exact. Memory beyond the sets: a few bytes per point.
"""

# Python's type checker does not understand Triton's language.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import cuda

BLOCK, TILE, GROUP = 64, 64, 32
STEP = 16  # points of a tile compared at once
WIDE = 256  # points of a program that numbers places on the curve


def search(points: Tensor, reference: Tensor) -> Tensor:
    """Returns positions [batch, n] of the nearest; both sets ([batch, n or m, 3]) are in order."""
    check_size(points, reference)
    batch, n, m = *points.shape[:2], reference.shape[1]
    queries, keys = _pad(points, BLOCK), _pad(reference, TILE)
    tiles = keys.unflatten(2, (-1, TILE))
    boxes = _make_boxes(tiles.amin(dim=-1), tiles.amax(dim=-1))
    low, high = boxes.unflatten(2, (-1, GROUP)).unflatten(1, (2, 3)).unbind(dim=1)
    groups = _make_boxes(low.amin(dim=-1), high.amax(dim=-1))
    places = torch.empty(batch, queries.shape[2], dtype=torch.int32, device=points.device)
    for part in cuda.parts(batch):
        cuda.launch(
            _search, (queries.shape[2] // BLOCK, part.stop - part.start),
            *(x[part] for x in (queries, keys, boxes, groups, places)),
            queries.shape[2], keys.shape[2], boxes.shape[2], groups.shape[2],
            BLOCK=BLOCK, TILE=TILE, GROUP=GROUP, STEP=STEP, enable_fp_fusion=False,
        )  # fmt: skip
    return places[:, :n].long().clamp(max=m - 1)


def codes(points: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Returns int64 places [batch, n] on Morton's curve through the cube that spans from `low` to
    `high` [batch, 1, 3], as `neighbors` has them; the points may lie in any order in memory."""
    batch, n = points.shape[:2]
    out = torch.empty(batch, n, dtype=torch.int64, device=points.device)
    for part in cuda.parts(batch):
        cuda.launch(
            _codes, (triton.cdiv(n, WIDE), part.stop - part.start),
            points[part], low[part].contiguous(), high[part].contiguous(), out[part], n,
            *points.stride(), WIDE=WIDE, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def check_size(points: Tensor, reference: Tensor) -> None:
    """Refuses sets whose coordinates, or their padding, do not fit into 32-bit integers."""
    batch, n, m = *points.shape[:2], reference.shape[1]
    cuda.check_places(
        f"{batch} x {n} points among {batch} x {m} reference points",
        "fewer than 2³¹ coordinates in one set",
        3 * (n + TILE), 3 * (m + TILE),
    )  # fmt: skip


def _pad(points: Tensor, multiple: int) -> Tensor:
    """Returns [batch, 3, n], the last point repeated until the count is a multiple."""
    missing = -points.shape[1] % multiple
    if missing:
        points = torch.cat([points, points[:, -1:].expand(-1, missing, -1)], dim=1)
    return points.transpose(1, 2).contiguous()


def _make_boxes(low: Tensor, high: Tensor) -> Tensor:
    """Returns [batch, 6, box], low and high corners; empty boxes fill the last group."""
    missing = -low.shape[2] % GROUP
    if missing:
        low = torch.nn.functional.pad(low, (0, missing), value=torch.inf)
        high = torch.nn.functional.pad(high, (0, missing), value=-torch.inf)
    return torch.cat([low, high], dim=1)


@triton.jit
def _squared(x, y, z):
    return tl.fma(x, x, tl.fma(y, y, z * z))


@triton.jit
def _distances(boxes, first, count, x0, x1, y0, y1, z0, z1, GROUP: tl.constexpr):
    """Returns least and greatest squared distances from a box (x0 to x1, …) to a group of boxes."""
    at = boxes + first + tl.arange(0, GROUP)
    u0, v0, w0 = tl.load(at), tl.load(at + count), tl.load(at + 2 * count)
    u1, v1, w1 = tl.load(at + 3 * count), tl.load(at + 4 * count), tl.load(at + 5 * count)
    x, y = tl.maximum(u0 - x1, x0 - u1), tl.maximum(v0 - y1, y0 - v1)
    z = tl.maximum(w0 - z1, z0 - w1)
    least = _squared(tl.maximum(x, 0.0), tl.maximum(y, 0.0), tl.maximum(z, 0.0))
    x, y = tl.maximum(u1 - x0, x1 - u0), tl.maximum(v1 - y0, y1 - v0)
    z = tl.maximum(w1 - z0, z1 - w0)
    greatest = tl.where(u0 <= u1, _squared(x, y, z), float("inf"))  # u0 > u1: an empty box
    return least, greatest


@triton.jit
def _scan(keys, tile, m, x, y, z, best, found, TILE: tl.constexpr, STEP: tl.constexpr):
    """Compares every point of the block with every point of the tile."""
    for step in tl.static_range(0, TILE, STEP):
        first = tile * TILE + step
        at = keys + first + tl.arange(0, STEP)
        dx = x[:, None] - tl.load(at)[None, :]
        dy = y[:, None] - tl.load(at + m)[None, :]
        dz = z[:, None] - tl.load(at + 2 * m)[None, :]
        squared = _squared(dx, dy, dz)
        nearer = squared < best
        best = tl.where(nearer, squared, best)
        found = tl.where(nearer, first, found)
    return best, found


@triton.jit
def _search(
    queries, keys, boxes, groups, places, n, m, tiles, supers,
    BLOCK: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Stores in `places` the position of each query's nearest key; one program per block."""
    # Load a block of points and their bounding box.
    block, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    queries += sample * 3 * n
    keys += sample * 3 * m
    boxes += sample * 6 * tiles
    groups += sample * 6 * supers
    lane, member, step = (
        block * BLOCK + tl.arange(0, BLOCK),
        tl.arange(0, GROUP),
        tl.arange(0, STEP),
    )
    x, y, z = tl.load(queries + lane), tl.load(queries + n + lane), tl.load(queries + 2 * n + lane)
    x0, x1, y0 = tl.min(x, 0), tl.max(x, 0), tl.min(y, 0)
    y1, z0, z1 = tl.max(y, 0), tl.min(z, 0), tl.max(z, 0)

    # Scan the tile whose farthest corner is nearest.
    bound, home = tl.max(x * 0.0, 0) + float("inf"), 0
    for first in range(0, supers, GROUP):
        _, greatest = _distances(groups, first, supers, x0, x1, y0, y1, z0, z1, GROUP)
        if tl.min(greatest, 0) < bound:
            bound = tl.min(greatest, 0)
            home = first + tl.argmin(greatest, 0)
    _, greatest = _distances(boxes, home * GROUP, tiles, x0, x1, y0, y1, z0, z1, GROUP)
    home = home * GROUP + tl.argmin(greatest, 0)

    best = tl.zeros((BLOCK, STEP), queries.dtype.element_ty) + float("inf")
    found = tl.zeros((BLOCK, STEP), tl.int32)
    best, found = _scan(keys, home, m, x, y, z, best, found, TILE, STEP)
    bound = tl.max(tl.min(best, 1), 0)

    # Visit groups and their tiles, nearest first, while they can improve a point's best.
    for first in range(0, supers, GROUP):
        outer, _ = _distances(groups, first, supers, x0, x1, y0, y1, z0, z1, GROUP)
        while tl.min(outer, 0) < bound:
            group = tl.argmin(outer, 0)
            outer = tl.where(member == group, float("inf"), outer)
            start = (first + group) * GROUP
            inner, _ = _distances(boxes, start, tiles, x0, x1, y0, y1, z0, z1, GROUP)
            inner = tl.where(start + member == home, float("inf"), inner)
            while tl.min(inner, 0) < bound:
                tile = tl.argmin(inner, 0)
                inner = tl.where(member == tile, float("inf"), inner)
                best, found = _scan(keys, start + tile, m, x, y, z, best, found, TILE, STEP)
                bound = tl.max(tl.min(best, 1), 0)

    # Store the position of the best of each point's STEP candidates.
    chosen = tl.argmin(best, 1)[:, None] == step[None, :]
    place = tl.sum(tl.where(chosen, found + step[None, :], 0), 1)
    tl.store(places + sample * n + lane, place)


@triton.jit
def _spread(cell):
    """Returns 20 bits with two zeros between them."""
    cell = (cell | cell << 32) & 0x1F00000000FFFF
    cell = (cell | cell << 16) & 0x1F0000FF0000FF
    cell = (cell | cell << 8) & 0x100F00F00F00F00F
    cell = (cell | cell << 4) & 0x10C30C30C30C30C3
    return (cell | cell << 2) & 0x1249249249249249


@triton.jit
def _cell(points, low, scale, inside):
    """Returns cells along one axis; a distance beyond the cube counts as one at its edge."""
    place = (tl.load(points, inside, 0.0) - low) * scale
    return tl.minimum(tl.maximum(place, 0.0), 1048575.0).to(tl.int64)  # 2^20 - 1


@triton.jit
def _codes(points, low, high, out, n, to_sample, to_point, to_axis, WIDE: tl.constexpr):
    """Places on the curve of some points of one sample."""
    sample = tl.program_id(1).to(tl.int64)
    point = tl.program_id(0).to(tl.int64) * WIDE + tl.arange(0, WIDE)
    inside = point < n
    low += 3 * sample
    high += 3 * sample
    x0, y0, z0 = tl.load(low), tl.load(low + 1), tl.load(low + 2)
    x, y, z = tl.load(high) - x0, tl.load(high + 1) - y0, tl.load(high + 2) - z0
    scale = 1048576.0 / tl.maximum(tl.maximum(tl.maximum(x, y), z), 1e-30)
    points += sample * to_sample + point * to_point
    cell = _spread(_cell(points, x0, scale, inside))
    cell |= _spread(_cell(points + to_axis, y0, scale, inside)) << 1
    cell |= _spread(_cell(points + 2 * to_axis, z0, scale, inside)) << 2
    tl.store(out + sample * n + point, cell, inside)
