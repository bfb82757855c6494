"""The plane sweep on CUDA devices, by tiles of pixels: matrix products over small boxes.

Neighbouring pixels look for their hypotheses in the same part of another view. A program takes a
tile of pixels and some of their planes, encloses all samples of these in a box of the other view,
correlates the tile with the box by a matrix product, a strip of `SOURCES` pixels at a time, and
looks the samples up in the product. The work grows with the tiles' boxes, at worst with pixels²
(all of another view in every box); the memory is that of `_sweep_triton`, whose gradient this path
takes: by products it is slower than there (12 views of 64x120: 5.9 ms and 2.9 ms on an H100).

Products of float32 are made of three of TF32 where there are tensor cores for them, which loses
nothing that counts (relative error 1e-6), and of float32 elsewhere; half precision stays so.
"""

# Python's type checker does not understand Triton's language.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportIndexIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import cuda
from ._sweep import FlatSweep
from ._sweep_triton import _cell, _locate, arguments, backward, check_size

__all__ = ["backward", "forward"]

# Sizes of a program: pixels and planes of a tile, and of a strip pixels and channels at once.
# Larger ones spill registers on sm_90.
TILE_Y, TILE_X, PLANES, SOURCES, CHANNELS = 4, 4, 32, 64, 32


def forward(tokens: Tensor, where: FlatSweep, scale: float, out: Tensor) -> None:
    """Writes scale · Σ_o <token, sampled token of view o> to `out` [view, pixel, plane]."""
    check_size(tokens, where)
    planes = out.shape[2]
    tiles_x = triton.cdiv(where.width, TILE_X)
    tiles = tiles_x * triton.cdiv(where.height, TILE_Y)
    block = min(PLANES, triton.next_power_of_2(planes))
    cuda.launch(
        _forward, (len(tokens) * tiles, triton.cdiv(planes, block)),
        tokens, *arguments(where), out, scale,
        where.height, where.width, tokens.shape[2], planes, tiles, tiles_x,
        TILE_Y=TILE_Y, TILE_X=TILE_X, PLANES=block, SOURCES=SOURCES, CHANNELS=CHANNELS,
        PRECISION=_precision(tokens), num_warps=4, num_stages=2,
    )  # fmt: skip


def _precision(tokens: Tensor) -> str:
    """Returns how `tl.dot` shall multiply float32; it is without meaning for half precision."""
    if tokens.dtype != torch.float32:
        return "tf32"
    turing = tokens.is_cuda and torch.cuda.get_device_capability(tokens.device) < (8, 0)
    return "ieee" if turing else "tf32x3"


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
    center, out, scale, height, width, channels, planes, tiles, tiles_x,
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
