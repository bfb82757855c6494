"""Blending on the CPU: numba kernels over tiles, eight pixels of a row at a time.

Within a tile the loop runs over its Gaussians, near to far, then over the rows and the blocks of
eight pixels that a Gaussian touches; LLVM vectorises the loop over the eight. The backward pass
replays a tile front to back with one scalar per pixel, the share of the gradient that comes from
Gaussians further back: for s_i = <dL/dpixel, feature_i>, weights w_i and transmittance T_i,

    dL/dalpha_i = T_i s_i - (Σ_{j>i} w_j s_j) / (1 - alpha_i).

Every (Gaussian, tile) pair has its own record, stored tile by tile, so memory is read in order. It
also has its own row for the gradient; rows are added in order, so the result has the same bits for
any number of threads. Tiles follow Kerbl et al., "3D Gaussian Splatting", 2023; the polynomial of
`exp` is from the Cephes library.
"""

import math
from typing import Any

import numpy as np
from numba import njit, prange, types
from numba.extending import overload

from ..kernels import compiled
from . import _projection

TILE, LANES = 16, 8
CHECK = 64  # Gaussians between checks whether all pixels of the tile have ended

# A tile's working memory is one array of planes with one number per pixel. Plane addresses differ
# by constants, so LLVM can prove that planes do not overlap.
PLANE = np.uint64(TILE * TILE)
TRANSMITTANCE = np.uint64(0)  # 0 once the pixel has ended
WEIGHT = np.uint64(1) * PLANE  # weight of the current Gaussian
ALPHA, RED, GREEN, BLUE, DEPTH = (np.uint64(i) * PLANE for i in range(2, 7))
MEDIAN, ATTRIBUTES = np.uint64(7) * PLANE, np.uint64(8) * PLANE  # while drawing
# While replaying, planes ALPHA to DEPTH and ATTRIBUTE_GRADIENTS hold the gradients of the pixels.
BEHIND, SHADE = np.uint64(7) * PLANE, np.uint64(8) * PLANE
ATTRIBUTE_GRADIENTS = np.uint64(9) * PLANE

# Channels of an image, in the order of the planes while drawing.
IMAGE_ALPHA, IMAGE_DEPTH, IMAGE_MEDIAN, IMAGE_ATTRIBUTES = 0, 4, 5, 6

# Columns of a record: the tile's first pixel centre relative to the mean, conic, opacity, colour
# and z, then attributes.
X, Y, XX, XY, YY, OPACITY, FEATURES, COLUMNS = 0, 1, 2, 3, 4, 5, 6, 10

ALPHA_MIN, TRANSMITTANCE_MIN = _projection.ALPHA_MIN, _projection.TRANSMITTANCE_MIN
FARTHEST = 80.0  # bound of exponents: exp(-80) is far below the alpha of 1/255

# All of fastmath except "nnan" and "ninf": NaN and infinity must keep their meaning.
FAST = {"contract", "reassoc", "nsz", "arcp", "afn"}
serial: Any = njit(cache=True, fastmath=FAST, error_model="numpy")
parallel: Any = compiled.parallel(fastmath=FAST, error_model="numpy")
inlined: Any = njit(inline="always", fastmath=FAST, error_model="numpy")


def _exp(x: Any) -> Any:
    return math.exp(x)


@overload(_exp, inline="always")
def _exp_of(x):
    """Returns, for float32, a polynomial that LLVM can vectorise (error 1e-7), else math.exp."""
    if x is not types.float32:
        return lambda x: math.exp(x)
    f = np.float32
    log2_e, ln2_high, ln2_low = f(1.44269504), f(0.693359375), f(-2.12194440e-4)
    c6, c5, c4 = f(1.9875691500e-4), f(1.3981999507e-3), f(8.3334519073e-3)
    c3, c2, c1 = f(4.1665795894e-2), f(1.6666665459e-1), f(5.0000001201e-1)
    one, half, bias, mantissa = f(1), f(0.5), np.int32(127), np.int32(23)

    def polynomial(x):
        n = np.floor(x * log2_e + half)
        r = x - n * ln2_high - n * ln2_low
        p = ((((c6 * r + c5) * r + c4) * r + c3) * r + c2) * r + c1
        power_of_two = np.int32((np.int32(n) + bias) << mantissa).view(np.float32)
        return (p * r * r + r + one) * power_of_two

    return polynomial


@inlined
def _draw_lanes(tile, base, x, xx, xy_dy, yy_dy, opacity, cap, red, green, blue, z):
    """Adds a Gaussian to eight pixels of a row; `x` is the first of them, relative to its mean."""
    real = tile.dtype.type
    for lane in range(LANES):
        i = base + np.uint64(lane)
        dx = x + real(lane)
        power = min(max((xx * dx + xy_dy) * dx + yy_dy, real(0)), real(FARTHEST))
        alpha = min(opacity * _exp(-power), cap)
        before = tile[i]
        after = before * (real(1) - alpha)
        seen, lives = alpha >= real(ALPHA_MIN), after >= real(TRANSMITTANCE_MIN)
        weight = alpha * before if (seen and lives) else real(0)
        tile[i] = (after if lives else real(0)) if seen else before
        halves = before > real(0.5) and after <= real(0.5) and weight > real(0)
        tile[i + MEDIAN] = z if halves else tile[i + MEDIAN]
        tile[i + WEIGHT] = weight
        tile[i + ALPHA] += weight
        tile[i + RED] += weight * red
        tile[i + GREEN] += weight * green
        tile[i + BLUE] += weight * blue
        tile[i + DEPTH] += weight * z


@inlined
def _replay_lanes(tile, base, x, xx, xy_dy, yy_dy, opacity, cap, red, green, blue, z):
    """Replays the pixels of `_draw_lanes`; returns the Gaussian's gradients, summed over them.

    The order is: gradients of -power (times 1, dx, dx²), red, green, blue and z.
    """
    real = tile.dtype.type
    d = d_dx = d_dx2 = d_red = d_green = d_blue = d_z = real(0)
    for lane in range(LANES):
        i = base + np.uint64(lane)
        dx = x + real(lane)
        power = min(max((xx * dx + xy_dy) * dx + yy_dy, real(0)), real(FARTHEST))
        alpha = min(opacity * _exp(-power), cap)
        before = tile[i]
        after = before * (real(1) - alpha)
        seen, lives = alpha >= real(ALPHA_MIN), after >= real(TRANSMITTANCE_MIN)
        used = alpha if (seen and lives) else real(0)
        weight = used * before
        tile[i] = (after if lives else real(0)) if seen else before
        tile[i + WEIGHT] = weight
        g_red, g_green, g_blue, g_z = (
            tile[i + RED],
            tile[i + GREEN],
            tile[i + BLUE],
            tile[i + DEPTH],
        )
        color = red * g_red + green * g_green + blue * g_blue
        own = weight * (color + z * g_z + tile[i + ALPHA] + tile[i + SHADE])
        behind = tile[i + BEHIND] - own
        tile[i + BEHIND] = behind
        slope = own - used * behind / (real(1) - alpha)
        slope = slope if alpha < cap else real(0)
        d += slope
        d_dx += slope * dx
        d_dx2 += slope * dx * dx
        d_red += weight * g_red
        d_green += weight * g_green
        d_blue += weight * g_blue
        d_z += weight * g_z
    return d, d_dx, d_dx2, d_red, d_green, d_blue, d_z


@parallel
def boxes_of(order, xy, extent, height, width):
    """Returns half-open boxes of pixels (left, top, right, bottom) of the splats in `order`."""
    boxes = np.empty((len(order), 4), np.int32)
    for i in prange(len(order)):
        n = order[i]
        x, y = xy[n, 0] - 0.5, xy[n, 1] - 0.5
        boxes[i, 0] = min(max(np.ceil(x - extent[n, 0]), 0), width)
        boxes[i, 1] = min(max(np.ceil(y - extent[n, 1]), 0), height)
        boxes[i, 2] = min(max(np.floor(x + extent[n, 0]) + 1, 0), width)
        boxes[i, 3] = min(max(np.floor(y + extent[n, 1]) + 1, 0), height)
    return boxes


@inlined
def _tiles_of(box):
    """Returns the rows and columns of tiles that a box of pixels touches."""
    rows = range(box[1] // TILE, (box[3] - 1) // TILE + 1)
    return rows, range(box[0] // TILE, (box[2] - 1) // TILE + 1)


@serial
def pair(boxes, rows, columns):
    """Lists the (Gaussian, tile) pairs, tile by tile; within a tile in the order of the boxes.

    Returns `start`, which delimits the tiles among the pairs, and `first` and `place`: the pairs of
    Gaussian i are at `place[first[i]:first[i + 1]]`.
    """
    first = np.zeros(len(boxes) + 1, np.int64)
    start = np.zeros(rows * columns + 1, np.int64)
    for i in range(len(boxes)):
        tile_rows, tile_columns = _tiles_of(boxes[i])
        first[i + 1] = first[i] + len(tile_rows) * len(tile_columns)
        for row in tile_rows:
            for column in tile_columns:
                start[row * columns + column + 1] += 1
    start = np.cumsum(start)
    free = start[:-1].copy()
    place = np.empty(start[-1], np.int32)
    k = 0
    for i in range(len(boxes)):
        tile_rows, tile_columns = _tiles_of(boxes[i])
        for row in tile_rows:
            for column in tile_columns:
                place[k] = free[row * columns + column]
                free[row * columns + column] += 1
                k += 1
    return start, first, place


@parallel
def records_of(order, boxes, first, place, xy, conic, opacities, color, z, attributes):
    """Returns each pair's record, and its half-open spans of rows and of blocks of eight pixels."""
    channels = attributes.shape[1]
    records = np.empty((len(place), COLUMNS + channels), xy.dtype)
    spans = np.empty((len(place), 4), np.uint8)
    for i in prange(len(order)):
        n, k, box = order[i], first[i], boxes[i]
        tile_rows, tile_columns = _tiles_of(box)
        for row in tile_rows:
            for column in tile_columns:
                p, top, left = place[k], row * TILE, column * TILE
                k += 1
                spans[p, 0] = max(box[1] - top, 0)
                spans[p, 1] = min(box[3] - top, TILE)
                spans[p, 2] = max(box[0] - left, 0) // LANES
                spans[p, 3] = (min(box[2] - left, TILE) - 1) // LANES + 1
                records[p, X] = left + 0.5 - xy[n, 0]
                records[p, Y] = top + 0.5 - xy[n, 1]
                records[p, XX], records[p, XY], records[p, YY] = conic[n]
                records[p, OPACITY] = opacities[n]
                for c in range(3):
                    records[p, FEATURES + c] = color[n, c]
                records[p, FEATURES + 3] = z[n]
                for c in range(channels):
                    records[p, COLUMNS + c] = attributes[n, c]
    return records, spans


@serial
def _open_tile(t, planes, image, dtype):
    """Returns the top left of tile `t`, its size within the image, and planes with T = 1 there."""
    height, width = image.shape[1:]
    columns = -(-width // TILE)
    top, left = (t // columns) * TILE, (t % columns) * TILE
    rows, columns = min(TILE, height - top), min(TILE, width - left)
    tile = np.zeros(planes * TILE * TILE, dtype)
    for y in range(rows):
        tile[y * TILE : y * TILE + columns] = 1
    return top, left, rows, columns, tile


@serial
def _ended(tile, done):
    """Returns whether all pixels of the tile have ended; checked once per CHECK Gaussians."""
    return done % CHECK == CHECK - 1 and tile[: TILE * TILE].max() == 0


@parallel
def draw(records, spans, start, alpha_cap, image):
    """Fills `image` [alpha, red, green, blue, z, median, attributes; height; width]."""
    real = records.dtype.type
    cap = real(alpha_cap)
    channels = records.shape[1] - COLUMNS
    for t in prange(len(start) - 1):
        top, left, rows, columns, tile = _open_tile(t, 8 + channels, image, records.dtype)
        for p in range(start[t], start[t + 1]):
            if _ended(tile, p - start[t]):
                break
            r, span = records[p], spans[p]
            for y in range(span[0], span[1]):
                dy = r[Y] + real(y)
                for block in range(span[2], span[3]):
                    base = np.uint64(y * TILE + block * LANES)
                    _draw_lanes(
                        tile, base, r[X] + real(block * LANES),
                        real(0.5) * r[XX], r[XY] * dy, real(0.5) * r[YY] * dy * dy, r[OPACITY],
                        cap, r[FEATURES], r[FEATURES + 1], r[FEATURES + 2], r[FEATURES + 3],
                    )  # fmt: skip
                    for c in range(channels):
                        for lane in range(LANES):
                            i = base + np.uint64(lane)
                            tile[i + ATTRIBUTES + np.uint64(c) * PLANE] += (
                                tile[i + WEIGHT] * r[COLUMNS + c]
                            )
        for c in range(len(image)):
            for y in range(rows):
                for x in range(columns):
                    image[c, top + y, left + x] = tile[(c + 2) * TILE * TILE + y * TILE + x]


@serial
def _load_gradients(tile, top, left, rows, columns, image, grad):
    """Fills the planes of pixel gradients, and BEHIND = Σ gradient · value over the channels."""
    for c in range(len(image)):
        if c == IMAGE_MEDIAN:
            continue
        plane = np.uint64(c + 2 if c < IMAGE_MEDIAN else c + 3) * PLANE
        for y in range(rows):
            for x in range(columns):
                i = np.uint64(y * TILE + x)
                tile[i + plane] = grad[c, top + y, left + x]
                tile[i + BEHIND] += grad[c, top + y, left + x] * image[c, top + y, left + x]


@serial
def _shade(tile, base, record, channels):
    """Fills <dL/dpixel, attributes> of eight pixels, for `_replay_lanes`."""
    for lane in range(LANES):
        i = base + np.uint64(lane)
        tile[i + SHADE] = 0
        for c in range(channels):
            gradient = tile[i + ATTRIBUTE_GRADIENTS + np.uint64(c) * PLANE]
            tile[i + SHADE] += record[COLUMNS + c] * gradient


@parallel
def replay(records, spans, start, alpha_cap, image, grad):
    """Returns the gradient of every pair, in the columns of its record.

    `image` is the output of `draw`, `grad` the gradient of the loss with respect to it.
    """
    real = records.dtype.type
    cap = real(alpha_cap)
    channels = records.shape[1] - COLUMNS
    pairs = np.zeros(records.shape, records.dtype)
    for t in prange(len(start) - 1):
        top, left, rows, columns, tile = _open_tile(t, 9 + channels, image, records.dtype)
        _load_gradients(tile, top, left, rows, columns, image, grad)
        for p in range(start[t], start[t + 1]):
            if _ended(tile, p - start[t]):
                break
            r, span, out = records[p], spans[p], pairs[p]
            # Sum the gradients of the pair over its pixels.
            m = m_x = m_y = m_xx = m_xy = m_yy = red = green = blue = z = real(0)
            for y in range(span[0], span[1]):
                dy = r[Y] + real(y)
                for block in range(span[2], span[3]):
                    base = np.uint64(y * TILE + block * LANES)
                    if channels:
                        _shade(tile, base, r, channels)
                    d, d_dx, d_dx2, d_red, d_green, d_blue, d_z = _replay_lanes(
                        tile, base, r[X] + real(block * LANES),
                        real(0.5) * r[XX], r[XY] * dy, real(0.5) * r[YY] * dy * dy, r[OPACITY],
                        cap, r[FEATURES], r[FEATURES + 1], r[FEATURES + 2], r[FEATURES + 3],
                    )  # fmt: skip
                    m, m_x, m_xx = m + d, m_x + d_dx, m_xx + d_dx2
                    m_y, m_xy, m_yy = m_y + dy * d, m_xy + dy * d_dx, m_yy + dy * dy * d
                    red, green, blue, z = red + d_red, green + d_green, blue + d_blue, z + d_z
                    for c in range(channels):
                        for lane in range(LANES):
                            i = base + np.uint64(lane)
                            gradient = tile[i + ATTRIBUTE_GRADIENTS + np.uint64(c) * PLANE]
                            out[COLUMNS + c] += tile[i + WEIGHT] * gradient
            # Convert the moments of the gradient of -power to gradients of xy, conic and opacity.
            out[X], out[Y] = r[XX] * m_x + r[XY] * m_y, r[YY] * m_y + r[XY] * m_x
            out[XX], out[XY], out[YY] = -real(0.5) * m_xx, -m_xy, -real(0.5) * m_yy
            out[OPACITY] = m / r[OPACITY]
            out[FEATURES], out[FEATURES + 1], out[FEATURES + 2] = red, green, blue
            out[FEATURES + 3] = z
    return pairs


@parallel
def add_pairs(pairs, first, place, order, xy, conic, opacities, color, z, attributes):
    """Adds the gradients of every Gaussian's pairs to those of its parameters."""
    for i in prange(len(order)):
        n = order[i]
        for k in range(first[i], first[i + 1]):
            g = pairs[place[k]]
            for c in range(2):
                xy[n, c] += g[X + c]
            for c in range(3):
                conic[n, c] += g[XX + c]
                color[n, c] += g[FEATURES + c]
            opacities[n] += g[OPACITY]
            z[n] += g[FEATURES + 3]
            for c in range(attributes.shape[1]):
                attributes[n, c] += g[COLUMNS + c]
