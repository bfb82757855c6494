"""Lists of the Gaussians of every tile, near to far, in Triton: a counting sort of bounded memory.

Gaussians, in order of depth, are split into segments. Each segment counts how many of its Gaussians
touch each tile; a prefix sum of these counts, tile by tile and then segment by segment, says where
a segment writes; and then it writes them, in order. No number is read by the host, and nothing but
the lists themselves has the size of the lists.

A segment is the work of one warp. It takes a Gaussian for each lane, and then, lane by lane, a pair
of one of these Gaussians and a tile of its box, so that no lane waits for a Gaussian of many tiles.

The lists have a place for `budget` entries per image. Where an image needs more, its tiles are
joined to tiles of twice the size, and again, until they fit; drawing then skips more Gaussians that
miss a tile, and is slower but right. A list of all Gaussians always fits.
"""

# Python's type checker does not understand Triton's language, nor Triton `*` within a tuple.
# ruff: noqa: RUF005
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAssignmentType=false, reportReturnType=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from ._triton_projection import LEVELS, LOOK, PLACE, box_of, load_four, reach_squared, split_four

LANES = tl.constexpr(32)


@triton.jit
def level_of(totals, image, budget):
    """Returns how often the tiles of an image are doubled, so that its lists fit."""
    needed = tl.load(totals + image * LEVELS + tl.arange(0, LEVELS))
    return tl.sum((needed > budget).to(tl.int32), 0)


@triton.jit
def _boxes(rows, width, height, tile_w, tile_h, columns):
    """Returns how many tiles the boxes of Gaussians touch, the boxes' tiles, and their ellipses.

    All lengths are from the first pixel centre of the box's first tile.
    """
    x, y, extent_x, extent_y = split_four(rows[0], LANES)
    a, b, c, opacity = split_four(rows[1], LANES)
    column, line, across, down = box_of(x, y, extent_x, extent_y, width, height, tile_w, tile_h)
    drawn = across > 0
    a, c = tl.where(drawn, a, 1.0), tl.where(drawn, c, 1.0)
    rounding = 1e-6 * (extent_x + tl.abs(x)) + 1e-3
    squared = reach_squared(opacity) / a
    flat = squared / tl.where(drawn, extent_y * extent_y, 1.0)
    ellipse = (
        x - column * tile_w - 0.5, y - line * tile_h - 0.5, extent_y,
        -b / a, squared, flat, -b / c * extent_x, rounding,
    )  # fmt: skip
    return across * down, (line * columns + column, tl.maximum(across, 1)), ellipse


@triton.jit
def _load_rows(place, look, n, mask):
    """Returns tables of the places and the shapes of Gaussians."""
    return load_four(place + n * PLACE, mask), load_four(look + n * LOOK, mask)


@triton.jit
def _touches(ellipse, left, top, tile_w, tile_h):
    """Returns whether an ellipse of alpha = 1/255 touches pixel centres of a tile.

    At height v over the mean its chord is -b/a v ± (r²/a (1 - v²/extent²))^½; the ends of the chord
    are farthest out at ∓ b/c extent_x, or where the rows of the tile come nearest to that.
    """
    x, y, extent_y, slope, squared, flat, farthest, rounding = ellipse
    low = tl.maximum(top - y, -extent_y)
    high = tl.minimum(top - y + (tile_h - 1), extent_y)
    v = tl.minimum(tl.maximum(farthest, low), high)
    right = slope * v + tl.sqrt(tl.maximum(squared - flat * v * v, 0.0))
    v = tl.minimum(tl.maximum(-farthest, low), high)
    left_end = slope * v - tl.sqrt(tl.maximum(squared - flat * v * v, 0.0))
    first = left - x
    return (right + rounding >= first) & (left_end - rounding <= first + (tile_w - 1))


@triton.jit
def _find(ends, pair):
    """Returns how many of LANES ascending `ends` are not above each pair: LANES - 1 at most."""
    found = tl.zeros_like(pair)
    step: tl.constexpr = LANES // 2
    for k in tl.static_range(5):
        end = tl.gather(ends, found + ((step >> k) - 1), 0)
        found += tl.where(end <= pair, step >> k, 0)
    return found


@triton.jit
def _pick(values, lanes, COUNT: tl.constexpr):
    """Returns each of COUNT values as other lanes have it."""
    out = (tl.gather(values[0], lanes, 0),)
    for k in tl.static_range(1, COUNT):
        out = out + (tl.gather(values[k], lanes, 0),)
    return out


@triton.jit
def _count_bits(bits):
    """Returns how many of 32 bits are set."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    bits += bits >> 8
    return ((bits + (bits >> 16)) & 0x3F).to(tl.int32)


@triton.jit(do_not_specialize=["count", "width", "height", "levels", "segments", "budget"])
def fill_lists(
    place, look, order, totals, counts, lists, count, width, height, levels, segments, budget,
    WRITE: tl.constexpr, TILE_W: tl.constexpr, TILE_H: tl.constexpr,
):  # fmt: skip
    """Counts, into `counts` [image, tile, segment], or where WRITE is set, writes the lists.

    For writing, `counts` says where each segment writes its next Gaussian of a tile. A program is
    one warp.
    """
    segment = tl.program_id(0) % segments
    image = (tl.program_id(0) // segments).to(tl.int64)
    level = level_of(totals, image, budget)
    tile_w, tile_h = TILE_W << level, TILE_H << level
    columns = tl.cdiv(width, TILE_W)
    tiles = columns * tl.cdiv(height, TILE_H)
    counts += image * tiles * segments + segment
    order += image * count
    place += image * count * PLACE
    look += image * count * LOOK
    # The last level has one tile, which all Gaussians touch that are drawn: the first in the order
    drawn = tl.load(totals + image * LEVELS + levels - 1).to(tl.int32)
    length = tl.cdiv(drawn, segments)
    begin = segment * length
    end = tl.minimum(begin + length, drawn)
    lane = tl.arange(0, LANES)
    below = (1 << lane).to(tl.uint32, bitcast=True) - 1
    # The rows of the next Gaussians are read while these are listed
    next_n = tl.load(order + begin + lane, mask=begin + lane < end, other=0)
    next_rows = _load_rows(place, look, next_n, begin + lane < end)
    for first in range(begin, end, LANES):
        n, rows, ahead = next_n, next_rows, first + lane + LANES
        next_n = tl.load(order + ahead, mask=ahead < end, other=0)
        next_rows = _load_rows(place, look, next_n, ahead < end)
        touched, box, ellipse = _boxes(rows, width, height, tile_w, tile_h, columns)
        ends = tl.cumsum(touched, 0)
        total = tl.max(ends, 0)
        for start in range(0, total, LANES):
            pair = start + lane
            owner = _find(ends, pair)
            corner, across = _pick(box, owner, 2)
            within = pair - tl.gather(ends - touched, owner, 0)
            line = within // across
            column = within - line * across
            good = _touches(
                _pick(ellipse, owner, 8), column * tile_w, line * tile_h, tile_w, tile_h
            ) & (pair < total)
            tile = corner + line * columns + column
            at = counts + tile.to(tl.int64) * segments
            if WRITE:
                # Lanes of the same tile are those that would write to the same place; they are bits
                to = tl.where(good, tl.load(at, mask=good, other=0), -1 - lane)
                same = tl.where(to[:, None] == to[None, :], 1 << lane[:, None], 0)
                same = tl.sum(same, 0).to(tl.uint32, bitcast=True)
                to += _count_bits(same & below)
                tl.debug_barrier()  # all have read the counts before one is changed
                tl.store(lists + to, tl.gather(n.to(tl.int32), owner, 0), mask=good)
                tl.store(at, to + 1, mask=good & (same >> lane == 1))
                tl.debug_barrier()  # and they are changed before they are read again
            else:
                tl.atomic_add(at, 1, mask=good, sem="relaxed")
