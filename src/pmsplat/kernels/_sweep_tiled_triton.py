"""The plane sweep on CUDA devices, by tiles of pixels: matrix products over small boxes.

Neighbouring pixels look for their hypotheses in the same part of another view. A program takes a
tile of pixels and some of their planes, encloses all samples of these in a box of the other view,
correlates the tile with the box by a matrix product, a strip of `SOURCES` pixels at a time, and
looks the samples up in the product. The gradient does the same backwards: weights of samples are
summed into a matrix of tile by strip, and two products carry it to both maps. The work grows with
the tiles' boxes, at worst with pixels² (all of another view in every box); the memory is that of
`_sweep_triton`: features, gradient and volume.

Products of float32 are made of three of TF32 where there are tensor cores for them, which loses
nothing that counts (relative error 1e-6), and of float32 elsewhere; half precision stays so.
"""

# Python's type checker does not understand Triton's language.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportIndexIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _sweep_triton
from ._sweep import FlatSweep
from ._sweep_triton import FUSED, _cell, _locate, arguments, check_size
from ._triton import Build

# Sizes of a program: pixels and planes of a tile, and of a strip pixels and channels at once.
# Larger ones spill registers on sm_90.
TILE_Y, TILE_X, PLANES, SOURCES, CHANNELS = 4, 4, 32, 64, 32
FORWARD = {"num_warps": 4, "num_stages": 2, **FUSED}
BACKWARD = {"num_warps": 4, "num_stages": 1, **FUSED}


def forward(tokens: Tensor, where: FlatSweep, scale: float, out: Tensor) -> None:
    """Writes scale · Σ_o <token, sampled token of view o> to `out` [view, pixel, plane]."""
    _launch(_forward, tokens, where, scale, out, out, FORWARD)


def backward(gradient: Tensor, tokens: Tensor, where: FlatSweep, scale: float, out: Tensor) -> None:
    """Adds the gradient of `tokens` to `out` [view, pixel, channel], float32."""
    if torch.are_deterministic_algorithms_enabled():
        _sweep_triton.backward(gradient, tokens, where, scale, out)
    else:
        _launch(_backward, tokens, where, scale, gradient, out, BACKWARD)


def _launch(
    kernel: Any,
    tokens: Tensor,
    where: FlatSweep,
    scale: float,
    volume: Tensor,
    out: Tensor,
    options: dict[str, Any],
) -> None:
    check_size(tokens)
    planes = volume.shape[2]
    tiles_x = triton.cdiv(where.width, TILE_X)
    tiles = tiles_x * triton.cdiv(where.height, TILE_Y)
    block = min(PLANES, triton.next_power_of_2(planes))
    with torch.cuda.device_of(tokens):
        kernel[(len(tokens) * tiles, triton.cdiv(planes, block))](
            tokens, *arguments(where), volume, out, scale,
            where.height, where.width, tokens.shape[2], planes, tiles, tiles_x,
            TILE_Y=TILE_Y, TILE_X=TILE_X, PLANES=block, SOURCES=SOURCES, CHANNELS=CHANNELS,
            PRECISION=_precision(tokens), **options,
        )  # fmt: skip


def _precision(tokens: Tensor) -> str:
    """Returns how `tl.dot` shall multiply float32; it is without meaning for half precision."""
    if tokens.dtype != torch.float32:
        return "tf32"
    turing = tokens.is_cuda and torch.cuda.get_device_capability(tokens.device) < (8, 0)
    return "ieee" if turing else "tf32x3"


def builds() -> list[Build]:
    """Returns both kernels for features of each type, as they are compiled for large maps."""
    types = dict.fromkeys(("count", "height", "width", "channels", "planes", "tiles"), "i32")
    types |= dict.fromkeys(("stride_view", "stride_plane", "stride_y", "stride_x"), "i32")
    types |= {"others": "*i64", "homographies": "*fp32", "inv_depth": "*fp32", "center": "fp32"}
    types |= {"scale": "fp32", "tiles_x": "i32", "volume": "*fp32", "out": "*fp32"}
    found = []
    for kind, precision in (("*fp32", "tf32x3"), ("*fp32", "ieee"), ("*bf16", "tf32"),
                            ("*fp16", "tf32")):  # fmt: skip
        sizes = {"TILE_Y": TILE_Y, "TILE_X": TILE_X, "PLANES": PLANES, "SOURCES": SOURCES,
                 "CHANNELS": CHANNELS, "PRECISION": precision}  # fmt: skip
        given = types | {"tokens": kind}
        found += [Build(_forward, given, sizes, FORWARD), Build(_backward, given, sizes, BACKWARD)]
    return found


@triton.jit
def _tile(height, width, tiles, tiles_x, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """Returns the view of this program, the rows and columns of its pixels, and if they exist."""
    view, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    member = tl.arange(0, TILE_Y * TILE_X)
    y, x = tile // tiles_x * TILE_Y + member // TILE_X, tile % tiles_x * TILE_X + member % TILE_X
    return view, y, x, (y < height) & (x < width)


@triton.jit
def _extent(low, high, known, size):
    """Returns the least and the greatest sample of one axis, and how many lie between them."""
    first = tl.min(tl.min(tl.where(known, low, size), 1), 0)
    last = tl.max(tl.max(tl.where(known, high, -1), 1), 0)
    return tl.maximum(first, 0), tl.maximum(
        tl.minimum(last, size - 1) - tl.maximum(first, 0) + 1, 0
    )


@triton.jit
def _forward(
    tokens, others, homographies, inv_depth, count, stride_view, stride_plane, stride_y, stride_x,
    center, volume, out, scale, height, width, channels, planes, tiles, tiles_x,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr, PLANES: tl.constexpr, SOURCES: tl.constexpr,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    view, y, x, exists = _tile(height, width, tiles, tiles_x, TILE_Y, TILE_X)
    pixels = height * width
    # Four lanes to each plane, one to each of the samples around a hypothesis
    lane = tl.arange(0, 4 * PLANES)
    plane, right, below = tl.program_id(1) * PLANES + lane // 4, lane % 2, lane // 2 % 2
    right, below = right[None, :], below[None, :]
    valid = exists[:, None] & (plane < planes)[None, :]
    depths = inv_depth + view * stride_view + (y * stride_y + x * stride_x)[:, None]
    inv = tl.load(depths + (plane * stride_plane)[None, :], valid, 1.0)
    own = tokens + (view * pixels + (y * width + x)[:, None]) * channels
    total = tl.zeros((TILE_Y * TILE_X, 4 * PLANES), tl.float32)
    for other in range(count):
        # Which samples are looked up, with which weights, and the box around them.
        pair = view * count + other
        matrix = homographies + pair * 12
        u, v = _locate(matrix, x.to(tl.float32)[:, None], y.to(tl.float32)[:, None], inv, center)
        left, top, du, dv = _cell(u, v, height, width)
        weight = tl.where(right == 1, du, 1 - du) * tl.where(below == 1, dv, 1 - dv)
        inside = valid & (left > -2)
        column, row = left + right, top + below
        inside = inside & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        x0, across = _extent(column, column, inside, width)
        y0, down = _extent(row, row, inside, height)
        area = across * down
        place = (row - y0) * across + column - x0
        seen = tokens + tl.load(others + pair) * pixels * channels
        # Correlate the tile with the box, strip by strip, and look the samples up.
        for first in range(0, area, SOURCES):
            source = first + tl.arange(0, SOURCES)
            at = ((y0 + source // across) * width + x0 + source % across) * channels
            scores = tl.zeros((TILE_Y * TILE_X, SOURCES), tl.float32)
            for start in range(0, channels, CHANNELS):
                channel = start + tl.arange(0, CHANNELS)
                known = channel < channels
                mine = tl.load(own + channel[None, :], exists[:, None] & known[None, :], 0.0)
                known = (source < area)[None, :] & known[:, None]
                theirs = tl.load(seen + at[None, :] + channel[:, None], known, 0.0)
                scores = tl.dot(mine, theirs, scores, input_precision=PRECISION)
            here = inside & (place >= first) & (place < first + SOURCES)
            value = tl.gather(scores, tl.where(here, place - first, 0), 1)
            total += tl.where(here, value * weight, 0.0)
    total = tl.sum(tl.reshape(total, (TILE_Y * TILE_X, PLANES, 4)), 2) * scale
    plane = tl.program_id(1) * PLANES + tl.arange(0, PLANES)
    place = (view * pixels + (y * width + x)[:, None]) * planes + plane[None, :]
    tl.store(out + place, total, exists[:, None] & (plane < planes)[None, :])


@triton.jit
def _backward(
    tokens, others, homographies, inv_depth, count, stride_view, stride_plane, stride_y, stride_x,
    center, volume, out, scale, height, width, channels, planes, tiles, tiles_x,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr, PLANES: tl.constexpr, SOURCES: tl.constexpr,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    view, y, x, exists = _tile(height, width, tiles, tiles_x, TILE_Y, TILE_X)
    pixels = height * width
    first_plane = tl.program_id(1) * PLANES
    plane = first_plane + tl.arange(0, PLANES)
    valid = exists[:, None] & (plane < planes)[None, :]
    depths = inv_depth + view * stride_view + y * stride_y + x * stride_x
    gradient = volume + (view * pixels + y * width + x) * planes
    inv = tl.load(depths[:, None] + (plane * stride_plane)[None, :], valid, 1.0)
    own = (view * pixels + (y * width + x)[:, None]) * channels
    column, row = x.to(tl.float32), y.to(tl.float32)
    for other in range(count):
        # The box around all samples.
        pair = view * count + other
        matrix = homographies + pair * 12
        all_u, all_v = _locate(matrix, column[:, None], row[:, None], inv, center)
        left, top, _, _ = _cell(all_u, all_v, height, width)
        inside = valid & (left > -2)
        x0, across = _extent(left, left + 1, inside, width)
        y0, down = _extent(top, top + 1, inside, height)
        area = across * down
        seen = tl.load(others + pair) * pixels * channels
        for first in range(0, area, SOURCES):
            # Weights of all samples of the strip, times their gradients; (u, v) weighs pixels less
            # than 1 away in both axes.
            source = first + tl.arange(0, SOURCES)
            source_x, source_y = x0 + source % across, y0 + source // across
            weights = tl.zeros((TILE_Y * TILE_X, SOURCES), tl.float32)
            for i in range(tl.minimum(PLANES, planes - first_plane)):
                one = first_plane + i
                u, v = _locate(
                    matrix, column, row, tl.load(depths + one * stride_plane, exists, 1.0), center
                )
                step = tl.load(gradient + one, exists, 0.0) * scale
                near = (u > -1) & (u < width) & (v > -1) & (v < height)
                step, u, v = (
                    tl.where(near, step, 0.0),
                    tl.where(near, u, 0.0),
                    tl.where(near, v, 0.0),
                )
                along_x = 1 - tl.abs(source_x.to(tl.float32)[None, :] - u[:, None])
                along_y = 1 - tl.abs(source_y.to(tl.float32)[None, :] - v[:, None])
                weight = tl.maximum(along_x, 0.0) * tl.maximum(along_y, 0.0)
                weights += weight * step[:, None]
            # Carry them to both maps.
            at = seen + ((source_y * width + source_x) * channels)[:, None]
            for start in range(0, channels, CHANNELS):
                channel = start + tl.arange(0, CHANNELS)
                known = (channel < channels)[None, :]
                known_mine, known_theirs = exists[:, None] & known, (source < area)[:, None] & known
                mine = tl.load(tokens + own + channel[None, :], known_mine, 0.0).to(tl.float32)
                theirs = tl.load(tokens + at + channel[None, :], known_theirs, 0.0).to(tl.float32)
                to_mine = tl.dot(weights, theirs, input_precision=PRECISION)
                tl.atomic_add(out + own + channel[None, :], to_mine, known_mine, sem="relaxed")
                to_theirs = tl.dot(tl.trans(weights), mine, input_precision=PRECISION)
                tl.atomic_add(out + at + channel[None, :], to_theirs, known_theirs, sem="relaxed")
