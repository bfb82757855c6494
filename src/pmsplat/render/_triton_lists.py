"""Lists of the Gaussians of every tile, near to far, in Triton: a counting sort of bounded memory.

Gaussians, in order of depth, are split into segments. Each segment counts how many of its Gaussians
touch each tile; a prefix sum of these counts, tile by tile and then segment by segment, says where
a segment writes; and then it writes them, in order. No number is read by the host, and nothing but
the lists themselves has the size of the lists.

The lists have a place for `budget` entries per image. Where an image needs more, its tiles are
joined to tiles of twice the size, and again, until they fit; drawing then skips more Gaussians that
miss a tile, and is slower but right. A list of all Gaussians always fits.
"""

# Python's type checker does not understand Triton's language.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAssignmentType=false, reportReturnType=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from ._triton_projection import LEVELS, LOOK, PLACE, box_of, reach_squared


@triton.jit
def level_of(totals, image, budget):
    """Returns how often the tiles of an image are doubled, so that its lists fit."""
    needed = tl.load(totals + image * LEVELS + tl.arange(0, LEVELS))
    return tl.sum((needed > budget).to(tl.int32), 0)


@triton.jit
def _touches(x, y, extent_x, extent_y, a, b, c, opacity, left, top, tile_w, tile_h):
    """Returns whether an ellipse of alpha = 1/255 touches pixel centres of a tile.

    At height v over the mean its chord is -b/a v ± r sqrt(1 - v²/extent²); the ends of the chord
    are farthest out at ∓ b/c extent_x, or where the rows of the tile come nearest to that.
    """
    low = tl.maximum(top + 0.5 - y, -extent_y)
    high = tl.minimum(top + tile_h - 0.5 - y, extent_y)
    slope, half = -b / a, tl.sqrt(reach_squared(opacity) / a)
    farthest = -b / c * extent_x
    v = tl.minimum(tl.maximum(farthest, low), high)
    right = slope * v + half * tl.sqrt(tl.maximum(1 - (v / extent_y) * (v / extent_y), 0.0))
    v = tl.minimum(tl.maximum(-farthest, low), high)
    left_end = slope * v - half * tl.sqrt(tl.maximum(1 - (v / extent_y) * (v / extent_y), 0.0))
    rounding = 1e-6 * (extent_x + tl.abs(x)) + 1e-3
    first = left + 0.5 - x
    return (right + rounding >= first) & (left_end - rounding <= first + (tile_w - 1))


@triton.jit
def _pair(
    place, look, order, row, ends, start, total, width, height, tile_w, tile_h, columns,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """Returns tile and Gaussian of PAIRS pairs of a group, and whether they are pairs at all.

    The pairs of a group are numbered Gaussian by Gaussian, those of a Gaussian up to its entry in
    `ends`. `row` is the image's first row in all tables.
    """
    pair = start + tl.arange(0, PAIRS)
    done = ends[None, :] <= pair[:, None]
    member = tl.sum(done.to(tl.int32), 1)
    within = pair - tl.max(tl.where(done, ends[None, :], 0), 1)
    mask = pair < total
    n = tl.load(order + member, mask=mask, other=0)
    at = place + (row + n) * PLACE
    x, y = tl.load(at, mask=mask, other=0.0), tl.load(at + 1, mask=mask, other=0.0)
    extent_x = tl.load(at + 2, mask=mask, other=1.0)
    extent_y = tl.load(at + 3, mask=mask, other=1.0)
    at = look + (row + n) * LOOK
    a, b = tl.load(at, mask=mask, other=1.0), tl.load(at + 1, mask=mask, other=0.0)
    c, opacity = tl.load(at + 2, mask=mask, other=1.0), tl.load(at + 3, mask=mask, other=0.0)
    first, top, across, _ = box_of(x, y, extent_x, extent_y, width, height, tile_w, tile_h)
    across = tl.maximum(across, 1)
    column, line = first + within % across, top + within // across
    mask = mask & _touches(
        x, y, extent_x, extent_y, a, b, c, opacity, column * tile_w, line * tile_h, tile_w, tile_h
    )
    return line * columns + column, n, mask


@triton.jit(do_not_specialize=["count", "width", "height", "segments", "budget"])
def fill_lists(
    place, look, order, totals, counts, lists, count, width, height, segments, budget,
    WRITE: tl.constexpr, TILE_W: tl.constexpr, TILE_H: tl.constexpr,
    GROUP: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Counts, into `counts` [image, tile, segment], or where WRITE is set, writes the lists.

    For writing, `counts` says where each segment writes its next Gaussian of a tile.
    """
    segment = tl.program_id(0) % segments
    image = (tl.program_id(0) // segments).to(tl.int64)
    level = level_of(totals, image, budget)
    tile_w, tile_h = TILE_W << level, TILE_H << level
    columns = tl.cdiv(width, TILE_W)
    tiles = columns * tl.cdiv(height, TILE_H)
    counts += image * tiles * segments + segment
    order += image * count
    row = image * count
    length = tl.cdiv(count, segments)
    begin = segment * length
    end = tl.minimum(begin + length, count)
    lane = tl.arange(0, PAIRS)
    for first in range(begin, end, GROUP):
        member = first + tl.arange(0, GROUP)
        mask = member < end
        box = place + (row + tl.load(order + member, mask=mask, other=0)) * PLACE
        _column, _line, across, down = box_of(
            tl.load(box, mask=mask, other=0.0),
            tl.load(box + 1, mask=mask, other=0.0),
            tl.load(box + 2, mask=mask, other=0.0),
            tl.load(box + 3, mask=mask, other=0.0),
            width, height, tile_w, tile_h,
        )  # fmt: skip
        ends = tl.cumsum(across * down, 0)
        total = tl.max(ends, 0)
        for start in range(0, total, PAIRS):
            tile, n, good = _pair(
                place, look, order + first, row, ends, start, total,
                width, height, tile_w, tile_h, columns, PAIRS,
            )  # fmt: skip
            at = counts + tile.to(tl.int64) * segments
            if WRITE:
                same = (tile[:, None] == tile[None, :]) & good[None, :]
                earlier = tl.sum((same & (lane[None, :] < lane[:, None])).to(tl.int32), 1)
                later = tl.sum((same & (lane[None, :] > lane[:, None])).to(tl.int32), 1)
                to = tl.load(at, mask=good, other=0) + earlier
                tl.debug_barrier()  # all have read the counts before one is changed
                tl.store(lists + to, n.to(tl.int32), mask=good)
                tl.store(at, to + 1, mask=good & (later == 0))
                tl.debug_barrier()  # and they are changed before they are read again
            else:
                tl.atomic_add(at, 1, mask=good, sem="relaxed")
