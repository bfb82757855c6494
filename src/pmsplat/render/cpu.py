"""Rasterisation on the CPU with numba: 16-pixel tiles in parallel, eight pixels of a row at a time.

Inside a tile the loop runs over Gaussians, near to far, then over the rows and blocks of eight
pixels that a Gaussian's box touches; the eight are written so that LLVM turns them into vector
instructions. The backward pass replays the tile front to back with one scalar per pixel, the part
of the gradient that still lies behind: for s_i = <dL/dpixel, feature_i> and weights w_i,

    dL/dalpha_i = T_i s_i - (Σ_{j>i} w_j s_j) / (1 - alpha_i).

Every (Gaussian, tile) pair owns a slot for its gradients and the slots are added in order, so the
result is the same to the bit for any number of threads. The tiles are those of Kerbl et al., "3D
Gaussian Splatting", 2023; the arithmetic of `exp` is that of the Cephes library.
"""

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange, types
from numba.extending import overload
from torch import Tensor

from ..errors import UserError
from ..types import Cameras, Gaussians
from . import _projection
from ._projection import Blend, Splats

TILE, LANES = 16, 8
PLANE = np.uint64(TILE * TILE)  # pixels of a tile; a tile's working memory is a row of such planes
CHECK = 64  # Gaussians between looks at whether every pixel of the tile has ended

# Planes of a tile. In the lanes below all addresses differ by constants: that is what lets LLVM see
# that they never overlap.
TRANSMITTANCE = np.uint64(0)  # 0 once the pixel has ended
WEIGHT = PLANE  # of the Gaussian at hand
ALPHA, RED, GREEN, BLUE, DEPTH, MEDIAN, FIRST_ATTRIBUTE = (
    np.uint64(i) * PLANE for i in range(2, 9)
)
BEHIND, FROM_ATTRIBUTES = MEDIAN, FIRST_ATTRIBUTE  # in the backward pass, where ALPHA to DEPTH and
FIRST_GRADIENT = np.uint64(9) * PLANE  # those from here on hold the gradients of the pixels

# Columns of a record, one per drawn Gaussian of an image
X, Y, XX, XY, YY, OPACITY, FEATURES, COLUMNS = 0, 1, 2, 3, 4, 5, 6, 10

ALPHA_MIN, ALPHA_MAX = _projection.ALPHA_MIN, _projection.ALPHA_MAX
TRANSMITTANCE_MIN = _projection.TRANSMITTANCE_MIN
FARTHEST = 80.0  # exponents are cut here: exp(-80) is far below 1/255 of anything

# Everything but "no NaN, no infinity": those must stay visible
FAST = {"contract", "reassoc", "nsz", "arcp", "afn"}
serial: Any = njit(cache=True, fastmath=FAST, error_model="numpy")
parallel: Any = njit(cache=True, fastmath=FAST, error_model="numpy", parallel=True)
inlined: Any = njit(inline="always", fastmath=FAST, error_model="numpy")


def _exp(x: float) -> float:
    return math.exp(x)


@overload(_exp, inline="always")
def _exp_of(x):
    """In float32 a polynomial that LLVM can vectorise (error 1e-7), else the library's."""
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
def _blend_lanes(tile, base, left, xx, xy_dy, yy_dy, opacity, red, green, blue, z):
    """Adds a Gaussian to eight pixels of a row; `left` is the x of the first, seen from its mean."""
    real = tile.dtype.type
    for lane in range(LANES):
        i = base + np.uint64(lane)
        dx = left + real(lane)
        power = min(max((xx * dx + xy_dy) * dx + yy_dy, real(0)), real(FARTHEST))
        alpha = min(opacity * _exp(-power), real(ALPHA_MAX))
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
def _replay_lanes(tile, base, left, xx, xy_dy, yy_dy, opacity, red, green, blue, z):
    """The same eight pixels again, backwards: Σ over them of the gradient of -power (times 1, dx
    and dx²) and of the gradients of colour and z."""
    real = tile.dtype.type
    d = d_dx = d_dx2 = d_red = d_green = d_blue = d_z = real(0)
    for lane in range(LANES):
        i = base + np.uint64(lane)
        dx = left + real(lane)
        power = min(max((xx * dx + xy_dy) * dx + yy_dy, real(0)), real(FARTHEST))
        alpha = min(opacity * _exp(-power), real(ALPHA_MAX))
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
        own = weight * (
            tile[i + ALPHA] + red * g_red + green * g_green + blue * g_blue + z * g_z
            + tile[i + FROM_ATTRIBUTES]
        )  # fmt: skip
        behind = tile[i + BEHIND] - own
        tile[i + BEHIND] = behind
        slope = own - used * behind / (real(1) - alpha)
        slope = slope if alpha < real(ALPHA_MAX) else real(0)
        d += slope
        d_dx += slope * dx
        d_dx2 += slope * dx * dx
        d_red += weight * g_red
        d_green += weight * g_green
        d_blue += weight * g_blue
        d_z += weight * g_z
    return d, d_dx, d_dx2, d_red, d_green, d_blue, d_z


@parallel
def _records(order, xy, conic, opacities, color, z, attributes, extent, height, width):
    """The drawn Gaussians of an image, near to far: records, and boxes of pixels (x, y, x, y)."""
    channels = attributes.shape[1]
    records = np.empty((len(order), COLUMNS + channels), xy.dtype)
    boxes = np.empty((len(order), 4), np.int32)
    for i in prange(len(order)):
        n = order[i]
        x, y, rx, ry = xy[n, 0] - 0.5, xy[n, 1] - 0.5, extent[n, 0], extent[n, 1]
        boxes[i, 0] = min(max(np.ceil(x - rx), 0), width)
        boxes[i, 1] = min(max(np.ceil(y - ry), 0), height)
        boxes[i, 2] = min(max(np.floor(x + rx) + 1, 0), width)
        boxes[i, 3] = min(max(np.floor(y + ry) + 1, 0), height)
        records[i, X], records[i, Y] = xy[n, 0], xy[n, 1]
        records[i, XX], records[i, XY], records[i, YY] = conic[n, 0], conic[n, 1], conic[n, 2]
        records[i, OPACITY] = opacities[n]
        for c in range(3):
            records[i, FEATURES + c] = color[n, c]
        records[i, FEATURES + 3] = z[n]
        for c in range(channels):
            records[i, COLUMNS + c] = attributes[n, c]
    return records, boxes


@serial
def _list_tiles(boxes, rows, columns):
    """Per tile, the Gaussians whose boxes touch it, near to far because the boxes are.

    `start` delimits the tiles in `listed` (Gaussian) and `slot` (where the pair keeps its
    gradient); `first` delimits the Gaussians in the slots.
    """
    count = len(boxes)
    first = np.zeros(count + 1, np.int64)
    start = np.zeros(rows * columns + 1, np.int64)
    for i in range(count):
        for row in range(boxes[i, 1] // TILE, (boxes[i, 3] - 1) // TILE + 1):
            for column in range(boxes[i, 0] // TILE, (boxes[i, 2] - 1) // TILE + 1):
                start[row * columns + column + 1] += 1
                first[i + 1] += 1
    start, first = np.cumsum(start), np.cumsum(first)
    free = start[:-1].copy()
    listed, slot = np.empty(start[-1], np.int32), np.empty(start[-1], np.int32)
    for i in range(count):
        k = first[i]
        for row in range(boxes[i, 1] // TILE, (boxes[i, 3] - 1) // TILE + 1):
            for column in range(boxes[i, 0] // TILE, (boxes[i, 2] - 1) // TILE + 1):
                place = free[row * columns + column]
                free[row * columns + column] += 1
                listed[place], slot[place] = i, k
                k += 1
    return start, listed, slot, first


@inlined
def _frame(t, columns, height, width):
    """Top, left, and the height and width of tile `t` inside the image."""
    top, left = (t // columns) * TILE, (t % columns) * TILE
    return top, left, min(TILE, height - top), min(TILE, width - left)


@inlined
def _reach(box, top, left, rows, columns):
    """The rows and the blocks of eight of a tile that a box touches, as two half-open ranges."""
    y0, y1 = max(box[1] - top, 0), min(box[3] - top, rows)
    x0, x1 = max(box[0] - left, 0), min(box[2] - left, columns)
    return y0, y1, x0 // LANES, (x1 - 1) // LANES + 1


@parallel
def _draw(records, boxes, start, listed, image):
    """Fills `image` [alpha, red, green, blue, z, median, attributes; height; width]."""
    real = records.dtype.type
    planes, height, width = image.shape
    channels = records.shape[1] - COLUMNS
    columns = -(-width // TILE)
    for t in prange(len(start) - 1):
        top, left, tile_rows, tile_columns = _frame(t, columns, height, width)
        tile = np.zeros((planes + 2) * TILE * TILE, records.dtype)
        for y in range(tile_rows):
            tile[y * TILE : y * TILE + tile_columns] = real(1)
        for p in range(start[t], start[t + 1]):
            if (p - start[t]) % CHECK == CHECK - 1 and tile[: TILE * TILE].max() == 0:
                break
            g = listed[p]
            y0, y1, block0, block1 = _reach(boxes[g], top, left, tile_rows, tile_columns)
            r = records[g]
            for y in range(y0, y1):
                dy = real(top + y) + real(0.5) - r[Y]
                for block in range(block0, block1):
                    base = np.uint64(y * TILE + block * LANES)
                    _blend_lanes(
                        tile, base, real(left + block * LANES) + real(0.5) - r[X],
                        real(0.5) * r[XX], r[XY] * dy, real(0.5) * r[YY] * dy * dy, r[OPACITY],
                        r[FEATURES], r[FEATURES + 1], r[FEATURES + 2], r[FEATURES + 3],
                    )  # fmt: skip
                    for c in range(channels):
                        plane = base + FIRST_ATTRIBUTE + np.uint64(c) * PLANE
                        for lane in range(LANES):
                            weight = tile[base + WEIGHT + np.uint64(lane)]
                            tile[plane + np.uint64(lane)] += weight * r[COLUMNS + c]
        for c in range(planes):
            for y in range(tile_rows):
                for x in range(tile_columns):
                    image[c, top + y, left + x] = tile[(c + 2) * TILE * TILE + y * TILE + x]


@parallel
def _replay(records, boxes, start, listed, slot, image, grad):
    """The gradient of every (Gaussian, tile) pair, in the columns of a record.

    `image` is what `_draw` filled, `grad` the gradient of the loss with respect to it.
    """
    real = records.dtype.type
    planes, height, width = image.shape
    channels = records.shape[1] - COLUMNS
    columns = -(-width // TILE)
    pairs = np.zeros((len(listed), COLUMNS + channels), records.dtype)
    for t in prange(len(start) - 1):
        top, left, tile_rows, tile_columns = _frame(t, columns, height, width)
        tile = np.zeros((9 + channels) * TILE * TILE, records.dtype)
        for y in range(tile_rows):
            tile[y * TILE : y * TILE + tile_columns] = real(1)
        for c in range(planes):
            if c == 5:  # the median depth has no gradient
                continue
            plane = np.uint64(c + 2 if c < 5 else c + 3) * PLANE
            for y in range(tile_rows):
                for x in range(tile_columns):
                    i = np.uint64(y * TILE + x)
                    tile[plane + i] = grad[c, top + y, left + x]
                    tile[BEHIND + i] += grad[c, top + y, left + x] * image[c, top + y, left + x]
        for p in range(start[t], start[t + 1]):
            if (p - start[t]) % CHECK == CHECK - 1 and tile[: TILE * TILE].max() == 0:
                break
            g = listed[p]
            y0, y1, block0, block1 = _reach(boxes[g], top, left, tile_rows, tile_columns)
            r, out = records[g], pairs[slot[p]]
            m = m_x = m_y = m_xx = m_xy = m_yy = red = green = blue = z = real(0)
            for y in range(y0, y1):
                dy = real(top + y) + real(0.5) - r[Y]
                for block in range(block0, block1):
                    base = np.uint64(y * TILE + block * LANES)
                    if channels:
                        _shade_attributes(tile, base, r, channels)
                    d, d_dx, d_dx2, d_red, d_green, d_blue, d_z = _replay_lanes(
                        tile, base, real(left + block * LANES) + real(0.5) - r[X],
                        real(0.5) * r[XX], r[XY] * dy, real(0.5) * r[YY] * dy * dy, r[OPACITY],
                        r[FEATURES], r[FEATURES + 1], r[FEATURES + 2], r[FEATURES + 3],
                    )  # fmt: skip
                    m, m_x, m_xx = m + d, m_x + d_dx, m_xx + d_dx2
                    m_y, m_xy, m_yy = m_y + dy * d, m_xy + dy * d_dx, m_yy + dy * dy * d
                    red, green, blue, z = red + d_red, green + d_green, blue + d_blue, z + d_z
                    for c in range(channels):
                        plane = base + FIRST_GRADIENT + np.uint64(c) * PLANE
                        for lane in range(LANES):
                            weight = tile[base + WEIGHT + np.uint64(lane)]
                            out[COLUMNS + c] += weight * tile[plane + np.uint64(lane)]
            out[X], out[Y] = r[XX] * m_x + r[XY] * m_y, r[YY] * m_y + r[XY] * m_x
            out[XX], out[XY], out[YY] = -real(0.5) * m_xx, -m_xy, -real(0.5) * m_yy
            out[OPACITY] = m / r[OPACITY]
            out[FEATURES], out[FEATURES + 1], out[FEATURES + 2] = red, green, blue
            out[FEATURES + 3] = z
    return pairs


@inlined
def _shade_attributes(tile, base, record, channels):
    """<dL/dpixel, attributes> of eight pixels, for `_replay_lanes`."""
    for lane in range(LANES):
        i = base + np.uint64(lane)
        total = record.dtype.type(0)
        for c in range(channels):
            total += record[COLUMNS + c] * tile[i + FIRST_GRADIENT + np.uint64(c) * PLANE]
        tile[i + FROM_ATTRIBUTES] = total


@parallel
def _sum_pairs(pairs, first, order, xy, conic, opacities, color, z, attributes):
    """Adds the slots of every Gaussian into the gradients of its parameters."""
    for i in prange(len(order)):
        n = order[i]
        for k in range(first[i], first[i + 1]):
            xy[n, 0] += pairs[k, X]
            xy[n, 1] += pairs[k, Y]
            conic[n, 0] += pairs[k, XX]
            conic[n, 1] += pairs[k, XY]
            conic[n, 2] += pairs[k, YY]
            opacities[n] += pairs[k, OPACITY]
            for c in range(3):
                color[n, c] += pairs[k, FEATURES + c]
            z[n] += pairs[k, FEATURES + 3]
            for c in range(attributes.shape[1]):
                attributes[n, c] += pairs[k, COLUMNS + c]


def near_to_far(z: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Indices of the drawn Gaussians by z, equal z by index."""
    drawn = np.flatnonzero(extent[:, 0] > 0)
    if z.dtype != np.float32:
        return drawn[np.argsort(z[drawn], kind="stable")]
    # Positive floats order like their bits; numpy sorts plain integers several times faster
    keys = z[drawn].view(np.uint32).astype(np.uint64) << np.uint64(32) | drawn.astype(np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


@dataclass(frozen=True)
class _Image:
    """What drawing an image leaves behind for its backward pass."""

    order: np.ndarray
    records: np.ndarray
    boxes: np.ndarray
    start: np.ndarray
    listed: np.ndarray
    slot: np.ndarray
    first: np.ndarray


class _Composite(torch.autograd.Function):
    """Splats to [batch, target, (alpha, red, green, blue, z, median, attributes), height, width]."""

    @staticmethod
    def forward(ctx: Any, xy, conic, opacities, color, z, attributes, extent, size) -> Tensor:
        batch, targets = z.shape[:2]
        height, width = size
        rows, columns = -(-height // TILE), -(-width // TILE)
        drawn = xy.new_zeros(batch, targets, 6 + attributes.shape[-1], height, width)
        ctx.images = []
        a = [t.detach().contiguous().numpy() for t in (xy, conic, color, z, extent)]
        o, f = opacities.detach().contiguous().numpy(), attributes.detach().contiguous().numpy()
        for b in range(batch):
            for t in range(targets):
                xy_, conic_, color_, z_, extent_ = (array[b, t] for array in a)
                order = near_to_far(z_, extent_)
                records, boxes = _records(
                    order, xy_, conic_, o[b], color_, z_, f[b], extent_, height, width
                )
                lists = _list_tiles(boxes, rows, columns)
                _draw(records, boxes, lists[0], lists[1], drawn[b, t].numpy())
                ctx.images.append(_Image(order, records, boxes, *lists))
        ctx.save_for_backward(xy, conic, opacities, color, z, attributes, drawn)
        return drawn

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        *inputs, drawn = ctx.saved_tensors
        out = [torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs]
        xy, conic, opacities, color, z, attributes = (tensor.numpy() for tensor in out)
        batch, targets = z.shape[:2]
        whole, given = drawn.numpy(), grad.contiguous().numpy()
        for index, image in enumerate(ctx.images):
            b, t = divmod(index, targets)
            pairs = _replay(
                image.records, image.boxes, image.start, image.listed, image.slot,
                whole[b, t], given[b, t],
            )  # fmt: skip
            _sum_pairs(
                pairs, image.first, image.order,
                xy[b, t], conic[b, t], opacities[b], color[b, t], z[b, t], attributes[b],
            )  # fmt: skip
        return *out, None, None


def composite(
    splats: Splats, opacities: Tensor, attributes: Tensor | None, size: tuple[int, int]
) -> Blend:
    """Blends splats on the CPU, differentiably in everything but their extents."""
    if attributes is None:
        features = opacities.new_zeros(*opacities.shape, 0)
    else:
        features = attributes
    drawn = _Composite.apply(
        splats.xy, splats.conic, opacities, splats.color, splats.z, features, splats.extent, size
    )
    return Blend(
        color=drawn[:, :, 1:4],
        depth=drawn[:, :, 4],
        alpha=drawn[:, :, 0],
        attributes=None if attributes is None else drawn[:, :, 6:],
        depth_median=drawn[:, :, 5].detach(),
        screen=splats.screen,
    )


def obstacle(device: torch.device) -> UserError | None:
    """Why this backend cannot draw tensors of `device`, if so."""
    if device.type == "cpu":
        return None
    return UserError(
        f"the renderer 'cpu' was given tensors on {device}",
        "tensors on the CPU",
        "move them with .to('cpu') or choose backend='auto'",
    )


def blend(
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    attributes: Tensor | None,
    sh_degree: int | None,
    median: bool,
) -> Blend:
    """What `rasterize` wants of a backend."""
    gaussians, attributes = _projection.finite(gaussians, attributes)
    splats = _projection.project(gaussians, cameras, size, sh_degree)
    return composite(splats, gaussians.opacities, attributes, size)
