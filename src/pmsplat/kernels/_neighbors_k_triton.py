"""Several nearest neighbours on CUDA devices: `_neighbors_triton` with a list for each point.

Blocks, tiles and groups are the same. A list holds the nearest points found so far, in no order; a
candidate that comes before the last of them, by distance and then by index, replaces it. A tile is
visited while it may hold such a candidate, so that ties are broken by index and equal points do not
make the search visit all tiles.
"""

# Python's type checker does not understand Triton's language.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportIndexIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..geometry.neighbors import MIN_Z, MOST
from . import cuda
from ._neighbors_triton import (
    GROUP,
    TILE,
    _distances,
    _make_boxes,
    _pad,
    _squared,
    check_size,
)

BLOCK = 32  # points of a program
STEP = 16  # points of a tile compared at once
BLOCK_WINDOWS = 64
WARPS = 4

_NONE = tl.constexpr(2**31 - 1 - MOST)  # indices from here on are places not taken yet
_MIN_Z = tl.constexpr(MIN_Z)


def search(points: Tensor, reference: Tensor, index: Tensor, k: int) -> Tensor:
    """Returns the indices [batch, n, k] of the nearest, nearest first, ties by lower index.

    Both sets ([batch, n or m, 3]) are in order; `index` [batch, m] numbers the reference points.
    """
    check_size(points, reference)
    batch, n, m = *points.shape[:2], reference.shape[1]
    queries, keys = _pad(points, BLOCK), _pad(reference, TILE)
    tiles = keys.unflatten(2, (-1, TILE))
    boxes = _make_boxes(tiles.amin(dim=-1), tiles.amax(dim=-1))
    low, high = boxes.unflatten(2, (-1, GROUP)).unflatten(1, (2, 3)).unbind(dim=1)
    groups = _make_boxes(low.amin(dim=-1), high.amax(dim=-1))
    keys[:, :, m:] = torch.inf  # repeated points would be found twice
    index = torch.nn.functional.pad(index.int(), (0, keys.shape[2] - m), value=2**31 - 1)
    lowest = _lowest(index.unflatten(1, (-1, TILE)))
    lowest_group = _lowest(lowest.unflatten(1, (-1, GROUP)))
    places = torch.empty(batch, queries.shape[2], k, dtype=torch.int32, device=points.device)
    tensors = (queries, keys, index, boxes, lowest, groups, lowest_group, places)
    for part in cuda.parts(batch):
        cuda.launch(
            _search, (queries.shape[2] // BLOCK, part.stop - part.start),
            *(x[part] for x in tensors),
            queries.shape[2], keys.shape[2], boxes.shape[2], groups.shape[2], k,
            BLOCK=BLOCK, TILE=TILE, GROUP=GROUP, STEP=STEP, LIST=triton.next_power_of_2(k),
            num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return places[:, :n].long()


def search_windows(
    points: Tensor, others: Tensor, w2c: Tensor, K: Tensor, k: int, radius: int
) -> Tensor:
    """Returns `geometry.neighbors.k_nearest_in_windows`, [batch, view, pixel, k]."""
    batch, views, height, width, _ = points.shape
    pixels = height * width
    cuda.check_places(
        f"{batch} x {views} maps of {height}x{width} points",
        "fewer than 2³¹ coordinates in one scene",
        3 * views * pixels,
    )
    coordinates = points.flatten(1, 3).transpose(1, 2).contiguous()
    others, w2c, K = (x.contiguous() for x in (others, w2c, K))
    places = torch.empty(batch, views, pixels, k, dtype=torch.int32, device=points.device)
    for part in cuda.parts(batch, views):
        cuda.launch(
            _search_windows,
            (triton.cdiv(pixels, BLOCK_WINDOWS), (part.stop - part.start) * views),
            *(x[part] for x in (coordinates, others, w2c, K, places)),
            views, others.shape[2], height, width, radius, k,
            BLOCK=BLOCK_WINDOWS, STEP=triton.next_power_of_2(2 * radius + 1),
            LIST=triton.next_power_of_2(k), num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return places.long()


def _lowest(index: Tensor) -> Tensor:
    """Returns the lowest index of each run, padded to whole groups."""
    lowest = index.amin(dim=-1)
    missing = -lowest.shape[1] % GROUP
    return torch.nn.functional.pad(lowest, (0, missing), value=2**31 - 1).contiguous()


@triton.jit
def _empty_lists(like, k, BLOCK: tl.constexpr, LIST: tl.constexpr):
    """Returns lists of `k` places that any candidate may take; places beyond take none."""
    place = tl.arange(0, LIST)[None, :]
    best = tl.where(place < k, float("inf"), -float("inf")) + tl.zeros((BLOCK, LIST), like)
    found = tl.zeros((BLOCK, LIST), tl.int32) + tl.where(place < k, _NONE + place, -1)
    return best.to(like), found


@triton.jit
def _last(best, found):
    """Returns the greatest distance of each list, and the greatest index at that distance."""
    worst = tl.max(best, 1)
    return worst, tl.max(tl.where(best == worst[:, None], found, -1), 1)


@triton.jit
def _first(squared, index):
    """Returns the least distance of each row, and the lowest index at that distance."""
    least = tl.min(squared, 1)
    return least, tl.min(tl.where(squared == least[:, None], index, 2147483647), 1)


@triton.jit
def _insert(squared, index, best, found, worst, last):
    """Moves the candidates of each row, nearest first, into its list while they belong there."""
    least, first = _first(squared, index)
    better = (least < worst) | ((least == worst) & (first < last) & (least < float("inf")))
    while tl.max(better.to(tl.int32), 0) > 0:
        replaced = better[:, None] & (best == worst[:, None]) & (found == last[:, None])
        best = tl.where(replaced, least[:, None], best)
        found = tl.where(replaced, first[:, None], found)
        worst, last = _last(best, found)
        squared = tl.where(index == first[:, None], float("inf"), squared)
        least, first = _first(squared, index)
        better = (least < worst) | ((least == worst) & (first < last) & (least < float("inf")))
    return best, found, worst, last


@triton.jit
def _store(places, best, found, itself, k, valid, LIST: tl.constexpr):
    """Writes the lists in order; `itself` stands in places that were not taken."""
    best = tl.where(found < 0, float("inf"), best)
    found = tl.where(found < 0, 2147483647, found)
    for place in range(k):
        _, first = _first(best, found)
        tl.store(places + place, tl.where(first < _NONE, first, itself), valid)
        taken = found == first[:, None]
        best = tl.where(taken, float("inf"), best)
        found = tl.where(taken, 2147483647, found)


@triton.jit
def _scan(
    keys, index, tile, m, x, y, z, best, found, worst, last,
    TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Compares every point of the block with every point of the tile."""
    for step in range(0, TILE, STEP):
        at = tile * TILE + step + tl.arange(0, STEP)
        dx = x[:, None] - tl.load(keys + at)[None, :]
        dy = y[:, None] - tl.load(keys + at + m)[None, :]
        dz = z[:, None] - tl.load(keys + at + 2 * m)[None, :]
        squared = _squared(dx, dy, dz)
        number = tl.load(index + at)[None, :] + tl.zeros(squared.shape, tl.int32)
        best, found, worst, last = _insert(squared, number, best, found, worst, last)
    return best, found, worst, last


@triton.jit
def _within_reach(least, lowest, worst, last):
    """Returns the least distances of boxes that may hold a candidate, inf of the others.

    A box counts by the list that ends farthest, and by the greatest index that ends a list.
    """
    bound = tl.max(worst, 0)
    reached = (least < bound) | ((least == bound) & (lowest < tl.max(last, 0)))
    return tl.where(reached, least, float("inf"))


@triton.jit
def _search(
    queries, keys, index, boxes, lowest, groups, lowest_group, places, n, m, tiles, supers, k,
    BLOCK: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr, STEP: tl.constexpr,
    LIST: tl.constexpr,
):  # fmt: skip
    """Stores in `places` the indices of each query's nearest keys; one program per block."""
    # Load a block of points and their bounding box.
    block, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    queries += sample * 3 * n
    keys += sample * 3 * m
    index += sample * m
    boxes += sample * 6 * tiles
    groups += sample * 6 * supers
    lowest += sample * tiles
    lowest_group += sample * supers
    lane, member = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, GROUP)
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
    best, found = _empty_lists(queries.dtype.element_ty, k, BLOCK, LIST)
    worst, last = _last(best, found)
    best, found, worst, last = _scan(
        keys, index, home, m, x, y, z, best, found, worst, last, TILE, STEP
    )

    # Visit groups and their tiles, nearest first, while they may hold a candidate.
    for first in range(0, supers, GROUP):
        outer, _ = _distances(groups, first, supers, x0, x1, y0, y1, z0, z1, GROUP)
        outer_lowest = tl.load(lowest_group + first + member)
        outer = _within_reach(outer, outer_lowest, worst, last)
        while tl.min(outer, 0) < float("inf"):
            group = tl.argmin(outer, 0)
            start = (first + group) * GROUP
            inner, _ = _distances(boxes, start, tiles, x0, x1, y0, y1, z0, z1, GROUP)
            inner_lowest = tl.load(lowest + start + member)
            inner = tl.where(start + member == home, float("inf"), inner)
            inner = _within_reach(inner, inner_lowest, worst, last)
            while tl.min(inner, 0) < float("inf"):
                tile = tl.argmin(inner, 0)
                best, found, worst, last = _scan(
                    keys, index, start + tile, m, x, y, z, best, found, worst, last, TILE, STEP
                )
                inner = tl.where(member == tile, float("inf"), inner)
                inner = _within_reach(inner, inner_lowest, worst, last)
            outer = tl.where(member == group, float("inf"), outer)
            outer = _within_reach(outer, outer_lowest, worst, last)
    _store(places + (sample * n + lane) * k, best, found, 0, k, lane < n, LIST)


@triton.jit
def _project(x, y, z, w2c, K, height, width, margin):
    """Returns `geometry.neighbors.project_to_pixels`."""
    px = tl.load(w2c) * x + tl.load(w2c + 1) * y + tl.load(w2c + 2) * z + tl.load(w2c + 3)
    py = tl.load(w2c + 4) * x + tl.load(w2c + 5) * y + tl.load(w2c + 6) * z + tl.load(w2c + 7)
    pz = tl.load(w2c + 8) * x + tl.load(w2c + 9) * y + tl.load(w2c + 10) * z + tl.load(w2c + 11)
    seen = pz > 0
    pz = tl.maximum(pz, _MIN_Z)
    px, py = px / pz, py / pz
    column = (tl.load(K) * px + tl.load(K + 1) * py + tl.load(K + 2)) * width - 0.5
    row = (tl.load(K + 4) * py + tl.load(K + 5)) * height - 0.5
    row = tl.where(seen, _round(row, -margin - 1, height + margin), -margin - 1)
    return row, tl.where(seen, _round(column, -margin - 1, width + margin), -margin - 1)


@triton.jit
def _round(value, low, high):
    """Rounds halves to even, and clamps."""
    value = tl.minimum(tl.maximum(value, low), high)
    down = tl.floor(value)
    rest = value - down
    down = down.to(tl.int32)
    up = (rest > 0.5) | ((rest == 0.5) & ((down & 1) != 0))
    return tl.where(up, down + 1, down)


@triton.jit
def _search_windows(
    points, others, w2c, K, places, views, count, height, width, radius, k,
    BLOCK: tl.constexpr, STEP: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    """Stores in `places` the indices of each point's nearest; one program per block of pixels."""
    # Load a block of points of one view.
    view = tl.program_id(1) % views
    scene = (tl.program_id(1) // views).to(tl.int64)
    pixels = height * width
    total = views * pixels
    points += scene * 3 * total
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = lane < pixels
    itself = view * pixels + lane
    x = tl.load(points + itself, valid, 0.0)
    y = tl.load(points + total + itself, valid, 0.0)
    z = tl.load(points + 2 * total + itself, valid, 0.0)
    best, found = _empty_lists(points.dtype.element_ty, k, BLOCK, LIST)
    worst, last = _last(best, found)
    offset = tl.arange(0, STEP)[None, :] - radius

    # Compare it with the rows of the windows, in its own view and then in the others.
    for source in range(count + 1):
        seen = view + tl.program_id(1) * 0
        row, column = lane // width, lane % width
        if source > 0:
            seen = tl.load(others + (scene * views + view) * count + source - 1).to(tl.int32)
            camera = scene * views + seen
            row, column = _project(
                x, y, z, w2c + camera * 16, K + camera * 9, height, width, radius
            )
        for step in range(-radius, radius + 1):
            v, u = (row + step)[:, None], column[:, None] + offset
            inside = (v >= 0) & (v < height) & (u >= 0) & (u < width) & (offset <= radius)
            index = (seen * height + v) * width + u
            inside = inside & (index != itself[:, None]) & valid[:, None]
            dx = x[:, None] - tl.load(points + index, inside, 0.0)
            dy = y[:, None] - tl.load(points + total + index, inside, 0.0)
            dz = z[:, None] - tl.load(points + 2 * total + index, inside, 0.0)
            squared = tl.where(inside, dx * dx + dy * dy + dz * dz, float("inf"))
            index = tl.where(inside, index, 2147483647)
            best, found, worst, last = _insert(squared, index, best, found, worst, last)
    at = places + (tl.program_id(1).to(tl.int64) * pixels + lane) * k
    _store(at, best, found, itself, k, valid, LIST)
