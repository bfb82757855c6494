"""The plane sweep for CPUs, compiled: samples and correlates without storing warped features.

Equals `cost_volume.warped`. The forward pass runs in parallel over image rows, the backward pass
over blocks of channels, so no two threads write to one place and the result does not depend on
their number.
"""

from typing import Any

import numpy as np
from numba import njit, prange
from torch import Tensor

from ..geometry.sweep import MIN_Z
from . import compiled
from ._sweep import FlatSweep
from ._tracing import untraced

BLOCK = 32  # channels per job of the backward pass
Array = np.ndarray[Any, np.dtype[Any]]

inlined: Any = njit(inline="always", fastmath=True)
parallel: Any = compiled.parallel(fastmath=True)


@untraced
def forward(tokens: Tensor, where: FlatSweep, scale: float, out: Tensor) -> None:
    """Writes scale · Σ_o <token, sampled token of view o> to `out` [view, pixel, plane], 0."""
    volume = out.unflatten(1, (where.height, where.width))
    _forward(tokens.numpy(), *_arrays(where), volume.numpy())
    out.mul_(scale)


@untraced
def backward(gradient: Tensor, tokens: Tensor, where: FlatSweep, scale: float, out: Tensor) -> None:
    """Writes the gradient of `tokens` to `out` [view, pixel, channel], 0."""
    incoming = gradient.unflatten(1, (where.height, where.width))
    _backward(incoming.numpy(), tokens.numpy(), *_arrays(where), out.numpy())
    out.mul_(scale)


def _arrays(where: FlatSweep) -> tuple[Any, ...]:
    fields = (where.others, where.homographies, where.inv_depth)
    return *(x.numpy() for x in fields), where.pixel_center


@inlined
def _locate(a: Array, x: float, y: float, inv: float, center: float) -> tuple[float, float]:
    """Projects pixel (x, y) of the reference map into the source map, in index space."""
    px = a[0, 0] * x + a[0, 1] * y + a[0, 2] + a[0, 3] * inv
    py = a[1, 0] * x + a[1, 1] * y + a[1, 2] + a[1, 3] * inv
    pz = a[2, 0] * x + a[2, 1] * y + a[2, 2] + a[2, 3] * inv
    pz = max(pz, np.float32(MIN_Z) * inv)
    return px / pz - center, py / pz - center


@inlined
def _corners(u: float, v: float, height: int, width: int) -> Any:
    """Returns flat indices of the four samples around (u, v) and their weights (0 outside)."""
    left, top = int(np.floor(u)), int(np.floor(v))
    du, dv = np.float32(u - left), np.float32(v - top)
    one = np.float32(1)
    x0, x1 = one - du if left >= 0 else du * 0, du if left + 1 < width else du * 0
    y0, y1 = one - dv if top >= 0 else dv * 0, dv if top + 1 < height else dv * 0
    xs, xe = max(left, 0), min(left + 1, width - 1)
    ys, ye = max(top, 0) * width, min(top + 1, height - 1) * width
    return ys + xs, ys + xe, ye + xs, ye + xe, y0 * x0, y0 * x1, y1 * x0, y1 * x1


@parallel
def _forward(
    tokens: Array, source: Array, homographies: Array, inv_depth: Array, center: float, out: Array
) -> None:
    """Adds Σ_o <tokens[n, yx], tokens[source[n, o]] sampled at hypothesis d> to out[n, y, x, d]."""
    views, height, width, planes = out.shape
    channels = tokens.shape[2]
    rows, columns = inv_depth.shape[2:]
    for job in prange(views * height):
        n, y = job // height, job % height
        for x in range(width):
            feature = tokens[n, y * width + x]
            for o in range(source.shape[1]):
                seen = tokens[source[n, o]]
                matrix = homographies[n, o]
                for d in range(planes):
                    inv = inv_depth[n, d, y if rows > 1 else 0, x if columns > 1 else 0]
                    u, v = _locate(matrix, x + center, y + center, inv, center)
                    if not (-1 < u < width and -1 < v < height):
                        continue
                    i, j, k, m, wi, wj, wk, wm = _corners(u, v, height, width)
                    total = np.float32(0)
                    for c in range(channels):
                        sample = wi * seen[i, c] + wj * seen[j, c]
                        sample += wk * seen[k, c] + wm * seen[m, c]
                        total += feature[c] * sample
                    out[n, y, x, d] += total


@parallel
def _backward(
    gradient: Array,
    tokens: Array,
    source: Array,
    homographies: Array,
    inv_depth: Array,
    center: float,
    out: Array,
) -> None:
    """Adds the gradient of the features to `out` [n, yx, channel]."""
    views, height, width, planes = gradient.shape
    channels = tokens.shape[2]
    rows, columns = inv_depth.shape[2:]
    for block in prange((channels + BLOCK - 1) // BLOCK):
        first, last = block * BLOCK, min((block + 1) * BLOCK, channels)
        for n in range(views):
            for pixel in range(height * width):
                y, x = pixel // width, pixel % width
                feature, out_reference = tokens[n, pixel], out[n, pixel]
                for o in range(source.shape[1]):
                    seen, out_source = tokens[source[n, o]], out[source[n, o]]
                    matrix = homographies[n, o]
                    for d in range(planes):
                        inv = inv_depth[n, d, y if rows > 1 else 0, x if columns > 1 else 0]
                        u, v = _locate(matrix, x + center, y + center, inv, center)
                        if not (-1 < u < width and -1 < v < height):
                            continue
                        i, j, k, m, wi, wj, wk, wm = _corners(u, v, height, width)
                        g = gradient[n, y, x, d]
                        for c in range(first, last):
                            sample = wi * seen[i, c] + wj * seen[j, c]
                            out_reference[c] += g * (sample + wk * seen[k, c] + wm * seen[m, c])
                        for c in range(first, last):
                            step = g * feature[c]
                            out_source[i, c] += wi * step
                            out_source[j, c] += wj * step
                            out_source[k, c] += wk * step
                            out_source[m, c] += wm * step
