"""The plane sweep on CUDA devices: samples and correlates without storing warped features.

Equals `cost_volume.warped`. `forward` gives one program to a pixel and a block of its planes: it
gathers the four samples around each hypothesis, channels innermost. `backward` walks along the
planes of one pixel. Consecutive hypotheses mostly fall between the same four samples, so it sums
their weights first and touches the feature maps once per run; a run costs four vectors of additions
to the source map. Memory: the features, their gradient and the volume.

`look_up` and `scatter` are for small maps, whose correlations between all pixels fit into memory:
they sample those instead of features (see `_sweep_pairs`).

Sums are float32 whatever the features are. Additions to the source map are atomic; where torch is
asked for deterministic algorithms they are made in fixed point, in which the order does not matter.
"""

# Python's type checker does not understand Triton's language.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import UserError
from ..geometry.sweep import MIN_Z
from . import cuda
from ._sweep import FlatSweep

# Sizes of a program: of `forward`, `backward`, and of `look_up` and `scatter`
PLANES, CHANNELS, WARPS = 64, 32, 4
CHANNELS_BACKWARD, WARPS_BACKWARD = 128, 1
PIXELS_PAIRS, PLANES_PAIRS, WARPS_PAIRS = 8, 32, 8

FIXED_BITS = 61  # bits of the fixed-point sums, besides the sign and one to spare

_MIN_Z = tl.constexpr(MIN_Z)


def forward(tokens: Tensor, where: FlatSweep, scale: float, out: Tensor) -> None:
    """Writes scale · Σ_o <token, sampled token of view o> to `out` [view, pixel, plane]."""
    check_size(tokens, where)
    views, pixels, channels = tokens.shape
    planes = out.shape[2]
    block = min(PLANES, triton.next_power_of_2(planes))
    cuda.launch(
        _forward, (views * pixels, triton.cdiv(planes, block)),
        tokens, *arguments(where), out, scale,
        pixels, where.width, channels, planes,
        PLANES=block, CHANNELS=min(CHANNELS, triton.next_power_of_2(channels)), num_warps=WARPS,
    )  # fmt: skip


def backward(gradient: Tensor, tokens: Tensor, where: FlatSweep, scale: float, out: Tensor) -> None:
    """Adds the gradient of `tokens` to `out` [view, pixel, channel], float32."""
    check_size(tokens, where)
    views, pixels, channels = tokens.shape
    block = min(CHANNELS_BACKWARD, triton.next_power_of_2(channels))
    fixed = torch.are_deterministic_algorithms_enabled()
    sums, unit = out, out
    if fixed:
        # No sum exceeds this bound: the weights of a sample are at most 1 together.
        bound = 2 * scale * gradient.abs().sum(dtype=torch.float64) * tokens.abs().max()
        unit = (2.0**FIXED_BITS / bound).clamp(max=2.0**100).float()
        sums = torch.zeros_like(out, dtype=torch.int64)
    cuda.launch(
        _backward, (views * pixels, triton.cdiv(channels, block)),
        gradient, tokens, *arguments(where), sums, unit, scale,
        pixels, where.width, channels, gradient.shape[2],
        FIXED=fixed, CHANNELS=block, num_warps=WARPS_BACKWARD,
    )  # fmt: skip
    if fixed:
        out += sums.double() / unit


def look_up(scores: Tensor, where: FlatSweep, views: slice, part: slice, out: Tensor) -> None:
    """Samples the correlations of some pixels with all pixels of their other views.

    scores: [view, pixel, other, source pixel] of `views` and of their pixels `part`. Writes the sum
    over the other views to these places of `out` [view, pixel, plane].
    """
    _launch_pairs(_look_up, scores, where, views, part, out)


def scatter(gradient: Tensor, where: FlatSweep, views: slice, part: slice, scores: Tensor) -> None:
    """Adds to `scores` what `look_up` would pass back for the gradient of its `out`."""
    if torch.are_deterministic_algorithms_enabled():
        raise UserError(
            "path 'all_pairs' under torch.use_deterministic_algorithms, on a CUDA device",
            "a path whose gradient does not depend on the order of additions",
            "leave `path` out, or use 'tiled' or 'direct'",
        )
    _launch_pairs(_scatter, scores, where, views, part, gradient)


def _launch_pairs(
    kernel: Any, scores: Tensor, where: FlatSweep, views: slice, part: slice, volume: Tensor
) -> None:
    count, rows = scores.shape[:2]
    pixels, planes = volume.shape[1:]
    blocks = triton.cdiv(rows, PIXELS_PAIRS)
    block = min(PLANES_PAIRS, triton.next_power_of_2(planes))
    cuda.launch(
        kernel, (count * blocks, triton.cdiv(planes, block)),
        scores, *arguments(where), volume,
        pixels, where.width, planes, views.start, part.start, rows,
        PIXELS=PIXELS_PAIRS, PLANES=block, num_warps=WARPS_PAIRS,
    )  # fmt: skip


def arguments(where: FlatSweep) -> tuple[Any, ...]:
    """Returns the arguments that all kernels share, beginning with the other views."""
    inv_depth, shared = where.inv_depth, where.inv_depth.shape[2:] == (1, 1)
    strides = (0, 0) if shared else inv_depth.stride()[2:]
    return (
        where.others, where.homographies, inv_depth,
        where.others.shape[1], *inv_depth.stride()[:2], *strides, where.pixel_center,
    )  # fmt: skip


def check_size(tokens: Tensor, where: FlatSweep) -> None:
    """Refuses maps whose places do not fit into the kernels' 32-bit integers."""
    views, pixels, channels = tokens.shape
    planes = where.inv_depth.shape[1]
    cuda.check_places(
        f"{views} feature maps of {pixels} pixels and {channels} channels, at {planes} depths",
        "fewer than 2³¹ pixels in all, and values and depths of one map",
        views * pixels, pixels * channels, where.inv_depth[0].numel(),
    )  # fmt: skip


@triton.jit
def _locate(matrix, x, y, inv, center):
    """Projects pixel (x, y) of the reference map into the source map, in index space."""
    x += center
    y += center
    px = tl.load(matrix) * x + tl.load(matrix + 1) * y + tl.load(matrix + 2)
    py = tl.load(matrix + 4) * x + tl.load(matrix + 5) * y + tl.load(matrix + 6)
    pz = tl.load(matrix + 8) * x + tl.load(matrix + 9) * y + tl.load(matrix + 10)
    px += tl.load(matrix + 3) * inv
    py += tl.load(matrix + 7) * inv
    pz = tl.maximum(pz + tl.load(matrix + 11) * inv, _MIN_Z * inv)
    return px / pz - center, py / pz - center


@triton.jit
def _cell(u, v, height, width):
    """Returns the sample left of and above (u, v), and the way from it to there.

    (-2, -2) stands for no sample at all, where (u, v) is outside the map or not a number.
    """
    inside = (u > -1) & (u < width) & (v > -1) & (v < height)
    u, v = tl.where(inside, u, -2.0), tl.where(inside, v, -2.0)
    left, top = tl.floor(u), tl.floor(v)
    return left.to(tl.int32), top.to(tl.int32), u - left, v - top


@triton.jit
def _corners(matrix, x, y, inv, center, valid, height, width):
    """Returns the place of the sample left of and above where pixel (x, y) is seen, the way from it
    to there, and which of the four samples around exist: left and right above, left and right
    below."""
    u, v = _locate(matrix, x.to(tl.float32), y.to(tl.float32), inv, center)
    left, top, du, dv = _cell(u, v, height, width)
    at_left, at_right = valid & (left >= 0), valid & (left > -2) & (left + 1 < width)
    at_top, at_bottom = top >= 0, (top > -2) & (top + 1 < height)
    known = at_left & at_top, at_right & at_top, at_left & at_bottom, at_right & at_bottom
    return top * width + left, du, dv, known


@triton.jit
def _forward(
    tokens, others, homographies, inv_depth, count, stride_view, stride_plane, stride_y, stride_x,
    center, out, scale, pixels, width, channels, planes,
    PLANES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    view, pixel = (tl.program_id(0) // pixels).to(tl.int64), tl.program_id(0) % pixels
    y, x, height = pixel // width, pixel % width, pixels // width
    plane = tl.program_id(1) * PLANES + tl.arange(0, PLANES)
    valid = plane < planes
    inv_depth += view * stride_view + y * stride_y + x * stride_x
    inv = tl.load(inv_depth + plane * stride_plane, valid, 1.0)
    own = tokens + (view * pixels + pixel) * channels
    total = tl.zeros((PLANES,), tl.float32)
    for other in range(count):
        pair = view * count + other
        matrix = homographies + pair * 12
        place, du, dv, corners = _corners(matrix, x, y, inv, center, valid, height, width)
        seen = tokens + tl.load(others + pair) * pixels * channels
        place *= channels
        for first in range(0, channels, CHANNELS):
            channel = first + tl.arange(0, CHANNELS)
            known = channel < channels
            feature = tl.load(own + channel, known, 0.0).to(tl.float32)
            at = seen + place[:, None] + channel[None, :]
            known = known[None, :]
            sample = _sample(at, corners[0][:, None] & known, (1 - du) * (1 - dv))
            at += channels
            sample += _sample(at, corners[1][:, None] & known, du * (1 - dv))
            at += (width - 1) * channels
            sample += _sample(at, corners[2][:, None] & known, (1 - du) * dv)
            at += channels
            sample += _sample(at, corners[3][:, None] & known, du * dv)
            total += tl.sum(sample * feature[None, :], 1)
    tl.store(out + (view * pixels + pixel) * planes + plane, total * scale, valid)


@triton.jit
def _sample(at, mask, weight):
    return tl.load(at, mask, 0.0).to(tl.float32) * weight[:, None]


@triton.jit
def _backward(
    gradient, tokens, others, homographies, inv_depth, count, stride_view, stride_plane, stride_y,
    stride_x, center, out, unit, scale, pixels, width, channels, planes,
    FIXED: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    view, pixel = (tl.program_id(0) // pixels).to(tl.int64), tl.program_id(0) % pixels
    y, x, height = pixel // width, pixel % width, pixels // width
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    if FIXED:
        unit = tl.load(unit)
    inv_depth += view * stride_view + y * stride_y + x * stride_x
    gradient += (view * pixels + pixel) * planes
    own = (view * pixels + pixel) * channels + channel
    feature = tl.load(tokens + own, known, 0.0).to(tl.float32) * scale
    total = tl.zeros((CHANNELS,), tl.float32)
    for other in range(count):
        pair = view * count + other
        matrix = homographies + pair * 12
        source = tl.load(others + pair) * pixels * channels
        # The run of planes that fall between the same four samples, and its four weights
        left, top = tl.full((), -2, tl.int32), tl.full((), -2, tl.int32)
        w00, w01, w10, w11 = 0.0, 0.0, 0.0, 0.0
        for plane in range(planes):
            inv = tl.load(inv_depth + plane * stride_plane)
            u, v = _locate(matrix, x.to(tl.float32), y.to(tl.float32), inv, center)
            new_left, new_top, du, dv = _cell(u, v, height, width)
            if (new_left != left) | (new_top != top):
                total += _close_run(
                    tokens, out, source, channel, feature, left, top, w00, w01, w10, w11,
                    unit, width, height, channels, FIXED,
                )  # fmt: skip
                left, top = new_left, new_top
                w00, w01, w10, w11 = 0.0, 0.0, 0.0, 0.0
            step = tl.where(new_left > -2, tl.load(gradient + plane), 0.0)
            w00 += step * (1 - du) * (1 - dv)
            w01 += step * du * (1 - dv)
            w10 += step * (1 - du) * dv
            w11 += step * du * dv
        total += _close_run(
            tokens, out, source, channel, feature, left, top, w00, w01, w10, w11,
            unit, width, height, channels, FIXED,
        )  # fmt: skip
    _add(out + own, total * scale, known, unit, FIXED)


@triton.jit
def _close_run(
    tokens, out, source, channel, feature, left, top, w00, w01, w10, w11,
    unit, width, height, channels, FIXED: tl.constexpr,
):  # fmt: skip
    """Adds the weighted feature to four places of `out`; returns the weighted sum of their
    tokens."""
    at = source + (top * width + left) * channels + channel
    # No channel of a sample outside the map
    at_left, at_right = left >= 0, (left > -2) & (left + 1 < width)
    at_top, at_bottom = top >= 0, (top > -2) & (top + 1 < height)
    known = channel < tl.where(at_left & at_top, channels, 0)
    total = _exchange(tokens, out, at, known, w00, feature, unit, FIXED)
    at += channels
    known = channel < tl.where(at_right & at_top, channels, 0)
    total += _exchange(tokens, out, at, known, w01, feature, unit, FIXED)
    at += (width - 1) * channels
    known = channel < tl.where(at_left & at_bottom, channels, 0)
    total += _exchange(tokens, out, at, known, w10, feature, unit, FIXED)
    at += channels
    known = channel < tl.where(at_right & at_bottom, channels, 0)
    total += _exchange(tokens, out, at, known, w11, feature, unit, FIXED)
    return total


@triton.jit
def _exchange(tokens, out, at, mask, weight, feature, unit, FIXED: tl.constexpr):
    _add(out + at, weight * feature, mask, unit, FIXED)
    return tl.load(tokens + at, mask, 0.0).to(tl.float32) * weight


@triton.jit
def _add(at, value, mask, unit, FIXED: tl.constexpr):
    if FIXED:
        tl.atomic_add(at, (value * unit).to(tl.int64), mask, sem="relaxed")
    else:
        tl.atomic_add(at, value, mask, sem="relaxed")


@triton.jit
def _look_up(
    scores, others, homographies, inv_depth, count, stride_view, stride_plane, stride_y, stride_x,
    center, out, pixels, width, planes, first_view, first_pixel, rows,
    PIXELS: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    view, row, pixel, plane, valid = _pair_block(
        pixels, planes, first_view, first_pixel, rows, PIXELS, PLANES
    )
    y, x, height = pixel // width, pixel % width, pixels // width
    inv_depth += view * stride_view + y * stride_y + x * stride_x
    inv = tl.load(inv_depth + plane * stride_plane, valid, 1.0)
    total = tl.zeros((PIXELS * PLANES,), tl.float32)
    for other in range(count):
        matrix = homographies + (view * count + other) * 12
        place, du, dv, known = _corners(matrix, x, y, inv, center, valid, height, width)
        at = scores + (row * count + other) * pixels + place
        total += tl.load(at, known[0], 0.0) * ((1 - du) * (1 - dv))
        total += tl.load(at + 1, known[1], 0.0) * (du * (1 - dv))
        at += width
        total += tl.load(at, known[2], 0.0) * ((1 - du) * dv)
        total += tl.load(at + 1, known[3], 0.0) * (du * dv)
    tl.store(out + (view * pixels + pixel) * planes + plane, total, valid)


@triton.jit
def _scatter(
    scores, others, homographies, inv_depth, count, stride_view, stride_plane, stride_y, stride_x,
    center, gradient, pixels, width, planes, first_view, first_pixel, rows,
    PIXELS: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    view, row, pixel, plane, valid = _pair_block(
        pixels, planes, first_view, first_pixel, rows, PIXELS, PLANES
    )
    y, x, height = pixel // width, pixel % width, pixels // width
    inv_depth += view * stride_view + y * stride_y + x * stride_x
    inv = tl.load(inv_depth + plane * stride_plane, valid, 1.0)
    step = tl.load(gradient + (view * pixels + pixel) * planes + plane, valid, 0.0)
    for other in range(count):
        matrix = homographies + (view * count + other) * 12
        place, du, dv, known = _corners(matrix, x, y, inv, center, valid, height, width)
        at = scores + (row * count + other) * pixels + place
        tl.atomic_add(at, step * (1 - du) * (1 - dv), known[0], sem="relaxed")
        tl.atomic_add(at + 1, step * du * (1 - dv), known[1], sem="relaxed")
        at += width
        tl.atomic_add(at, step * (1 - du) * dv, known[2], sem="relaxed")
        tl.atomic_add(at + 1, step * du * dv, known[3], sem="relaxed")


@triton.jit
def _pair_block(
    pixels, planes, first_view, first_pixel, rows, PIXELS: tl.constexpr, PLANES: tl.constexpr
):
    """Returns, per lane, view, row of the scores, pixel and plane, and whether they exist."""
    blocks = tl.cdiv(rows, PIXELS)
    member, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    lane = tl.arange(0, PIXELS * PLANES)
    row, plane = block * PIXELS + lane // PLANES, tl.program_id(1) * PLANES + lane % PLANES
    return (
        first_view + member,
        member * rows + row,
        first_pixel + row,
        plane,
        (row < rows) & (plane < planes),
    )
