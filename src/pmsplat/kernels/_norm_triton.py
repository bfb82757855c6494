"""Group norm of maps with channels last, its activation, and their gradient.

A map is cut into chunks of pixels. One kernel writes mean and squared deviations of every channel
of every chunk; the other joins them (Chan, Golub and LeVeque, "Updating Formulae and a Pairwise
Algorithm for Computing Sample Variances", 1979), over chunks and over the channels of a group, and
normalizes its chunk. The gradient has the same two steps, with the two sums that it needs. Sums are
float32, and without atomics: equal input gives equal bits.
"""

# Python's type checker does not understand Triton's language.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportArgumentType=false

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import cuda

TILE = 4096  # numbers that a program holds at a time
CHUNKS = 32  # of a map, at most: every program reads what all of its map wrote
_CODES = {"none": 0, "relu": 1, "silu": 2, "gelu": 3}


@dataclass(frozen=True)
class _Plan:
    """How maps [n, channel, height, width] are cut: `rows` pixels at a time, `steps` times."""

    pixels: int
    channels: int
    groups: int
    wide: int  # channels, rounded up to a power of two
    sets: int  # groups, the same
    rows: int
    steps: int
    chunks: int

    @staticmethod
    def of(x: Tensor, groups: int) -> "_Plan":
        pixels, channels = x.shape[2] * x.shape[3], x.shape[1]
        wide = triton.next_power_of_2(channels)
        rows = max(1, TILE // wide)
        tiles = -(-pixels // rows)
        steps = -(-tiles // CHUNKS)
        chunks = -(-tiles // steps)
        return _Plan(
            pixels, channels, groups, wide, triton.next_power_of_2(groups), rows, steps, chunks
        )

    @property
    def counts(self) -> tuple[int, int, int]:
        """The arguments that change from map to map without a new build."""
        return self.pixels, self.steps, self.chunks

    @property
    def sizes(self) -> dict[str, int]:
        """The arguments that every kernel is compiled for."""
        return {
            "CHANNELS": self.channels,
            "GROUPS": self.groups,
            "WIDE": self.wide,
            "SETS": self.sets,
            "ROWS": self.rows,
        }


class GroupNorm(torch.autograd.Function):
    """activation(group_norm(x)) and its gradient; the input is kept for it, not the result."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        groups: int,
        weight: Tensor | None,
        bias: Tensor | None,
        activation: str,
        eps: float,
    ) -> Tensor:
        plan, count = _Plan.of(x, groups), len(x)
        cuda.check_places(
            f"{count} maps of {plan.pixels} pixels and {plan.channels} channels",
            "fewer than 2³¹ numbers in one map, and in the moments of all",
            plan.pixels * plan.channels, 2 * count * plan.chunks * plan.channels,
        )  # fmt: skip
        out = torch.empty_like(x, memory_format=torch.channels_last)
        partial = x.new_empty(2, count, plan.chunks, plan.channels, dtype=torch.float32)
        stats = x.new_empty(2, count, plan.channels, dtype=torch.float32)
        grid = (count, plan.chunks)
        affine, code = weight is not None, _CODES[activation]
        weight = x if weight is None else weight  # any pointer will do
        bias = x if bias is None else bias
        cuda.launch(_moments, grid, x, partial, count, *plan.counts, **plan.sizes)
        cuda.launch(
            _normalize, grid,
            x, out, partial, stats, weight, bias, count, *plan.counts, eps,
            AFFINE=affine, ACTIVATION=code, **plan.sizes,
        )  # fmt: skip
        ctx.save_for_backward(x, stats, weight, bias)
        ctx.plan, ctx.affine, ctx.code = plan, affine, code
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, stats, weight, bias = ctx.saved_tensors
        x = x.contiguous(memory_format=torch.channels_last)  # what keeps tensors may lay them out
        plan, count = ctx.plan, len(x)
        incoming = gradients[0].contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x, memory_format=torch.channels_last)
        partial = x.new_empty(2, count, plan.chunks, plan.channels, dtype=torch.float32)
        grid = (count, plan.chunks)
        options = {"AFFINE": ctx.affine, "ACTIVATION": ctx.code, **plan.sizes}
        for kernel, more in ((_sums, ()), (_input_gradient, (out,))):
            cuda.launch(
                kernel, grid,
                x, incoming, *more, partial, stats, weight, bias, count, *plan.counts, **options,
            )  # fmt: skip
        if not ctx.affine:
            return out, None, None, None, None, None
        of_bias, of_weight = partial.sum(dim=(1, 2)).to(weight.dtype).unbind(0)
        return out, None, of_weight, of_bias, None, None


@triton.jit
def _tile(step, pixels, steps, CHANNELS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr):
    """Returns offsets of a tile of this program's chunk from the start of its map, and what of it
    is there."""
    row = (tl.program_id(1) * steps + step) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDE)
    there = (row < pixels)[:, None] & (channel < CHANNELS)[None, :]
    return row[:, None] * CHANNELS + channel[None, :], there


@triton.jit
def _moments(
    x, partial, count, pixels, steps, chunks,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WIDE: tl.constexpr, SETS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Writes mean, and sum of squared deviations, of the channels of a chunk."""
    image = tl.program_id(0).to(tl.int64)
    mean, squares = tl.zeros([WIDE], tl.float32), tl.zeros([WIDE], tl.float32)
    seen = 0.0
    for step in range(steps):
        at, there = _tile(step, pixels, steps, CHANNELS, WIDE, ROWS)
        value = tl.load(x + image * pixels * CHANNELS + at, there, 0.0).to(tl.float32)
        left = pixels - (tl.program_id(1) * steps + step) * ROWS
        rows = tl.minimum(tl.maximum(left, 0), ROWS).to(tl.float32)
        here = tl.sum(value, 0) / tl.maximum(rows, 1.0)
        apart = tl.where(there, value - here[None, :], 0.0)
        total = seen + rows
        share = rows / tl.maximum(total, 1.0)
        squares += tl.sum(apart * apart, 0) + (here - mean) * (here - mean) * seen * share
        mean += (here - mean) * share
        seen = total
    channel = tl.arange(0, WIDE)
    to = (image * chunks + tl.program_id(1)) * CHANNELS + channel
    tl.store(partial + to, mean, channel < CHANNELS)
    tl.store(partial + count * chunks * CHANNELS + to, squares, channel < CHANNELS)


@triton.jit
def _of_group(
    value,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDE: tl.constexpr,
    SETS: tl.constexpr,
):
    """Returns, for every channel, the sum of `value` over the channels of its group."""
    if GROUPS == CHANNELS:
        return value
    else:
        channel = tl.arange(0, WIDE)
        group = tl.where(channel < CHANNELS, channel // (CHANNELS // GROUPS), SETS)
        member = group[:, None] == tl.arange(0, SETS)[None, :]
        sums = tl.sum(tl.where(member, value[:, None], 0.0), 0)
        return tl.sum(tl.where(member, sums[None, :], 0.0), 1)


@triton.jit
def _affine(weight, bias, AFFINE: tl.constexpr, CHANNELS: tl.constexpr, WIDE: tl.constexpr):
    """Returns weight and bias of the channels."""
    channel = tl.arange(0, WIDE)
    scale = tl.full([WIDE], 1.0, tl.float32)
    shift = tl.zeros([WIDE], tl.float32)
    if AFFINE:
        scale = tl.load(weight + channel, channel < CHANNELS, 0.0).to(tl.float32)
        shift = tl.load(bias + channel, channel < CHANNELS, 0.0).to(tl.float32)
    return scale, shift


@triton.jit
def _normalize(
    x, out, partial, stats, weight, bias, count, pixels, steps, chunks, eps,
    AFFINE: tl.constexpr, ACTIVATION: tl.constexpr,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WIDE: tl.constexpr, SETS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Joins the moments of all chunks, and normalizes and activates its own."""
    image, channel = tl.program_id(0).to(tl.int64), tl.arange(0, WIDE)
    inside = channel < CHANNELS
    # Moments of the channels of the map, then of their groups
    mean, squares = tl.zeros([WIDE], tl.float32), tl.zeros([WIDE], tl.float32)
    seen = 0.0
    for chunk in range(chunks):
        at = (image * chunks + chunk) * CHANNELS + channel
        here = tl.load(partial + at, inside, 0.0)
        apart = tl.load(partial + count * chunks * CHANNELS + at, inside, 0.0)
        rows = tl.minimum(pixels - chunk * steps * ROWS, steps * ROWS).to(tl.float32)
        share = rows / (seen + rows)
        squares += apart + (here - mean) * (here - mean) * seen * share
        mean += (here - mean) * share
        seen += rows
    members: tl.constexpr = CHANNELS // GROUPS
    center = _of_group(mean, CHANNELS, GROUPS, WIDE, SETS) / members
    squares += (mean - center) * (mean - center) * seen
    squares = _of_group(tl.where(inside, squares, 0.0), CHANNELS, GROUPS, WIDE, SETS)
    spread = 1.0 / tl.sqrt(squares / (seen * members) + eps)
    if tl.program_id(1) == 0:
        tl.store(stats + image * CHANNELS + channel, center, inside)
        tl.store(stats + (count + image) * CHANNELS + channel, spread, inside)
    scale, shift = _affine(weight, bias, AFFINE, CHANNELS, WIDE)
    for step in range(steps):
        at, there = _tile(step, pixels, steps, CHANNELS, WIDE, ROWS)
        at += image * pixels * CHANNELS
        value = (tl.load(x + at, there, 0.0).to(tl.float32) - center[None, :]) * spread[None, :]
        value = value * scale[None, :] + shift[None, :]
        if ACTIVATION == 1:
            value = tl.where(value < 0.0, 0.0, value)  # NaN stays
        elif ACTIVATION == 2:
            value = value * tl.sigmoid(value)
        elif ACTIVATION == 3:
            value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
        tl.store(out + at, value.to(out.dtype.element_ty), there)


@triton.jit
def _read_stats(stats, count, CHANNELS: tl.constexpr, WIDE: tl.constexpr):
    """Returns this program's image, its channels, which of them exist, and what normalizes them."""
    image, channel = tl.program_id(0).to(tl.int64), tl.arange(0, WIDE)
    inside = channel < CHANNELS
    center = tl.load(stats + image * CHANNELS + channel, inside, 0.0)
    spread = tl.load(stats + (count + image) * CHANNELS + channel, inside, 0.0)
    return image, channel, inside, center, spread


@triton.jit
def _before_activation(
    x, incoming, at, there, center, spread, scale, shift, ACTIVATION: tl.constexpr
):
    """Returns a tile, normalized, and the gradient of what the activation was applied to."""
    normal = (tl.load(x + at, there, 0.0).to(tl.float32) - center[None, :]) * spread[None, :]
    gradient = tl.load(incoming + at, there, 0.0).to(tl.float32)
    value = normal * scale[None, :] + shift[None, :]
    if ACTIVATION == 1:
        gradient = tl.where(value > 0.0, gradient, 0.0)
    elif ACTIVATION == 2:
        sigmoid = tl.sigmoid(value)
        gradient = gradient * sigmoid * (1.0 + value * (1.0 - sigmoid))
    elif ACTIVATION == 3:
        density = 0.3989422804014327 * tl.exp(-0.5 * value * value)
        below = 0.5 * (1.0 + tl.erf(value * 0.7071067811865476))
        gradient = gradient * (below + value * density)
    return normal, gradient


@triton.jit
def _sums(
    x, incoming, partial, stats, weight, bias, count, pixels, steps, chunks,
    AFFINE: tl.constexpr, ACTIVATION: tl.constexpr,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WIDE: tl.constexpr, SETS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Writes, for the channels of a chunk, the gradients of bias and weight."""
    image, channel, inside, center, spread = _read_stats(stats, count, CHANNELS, WIDE)
    scale, shift = _affine(weight, bias, AFFINE, CHANNELS, WIDE)
    of_bias, of_weight = tl.zeros([WIDE], tl.float32), tl.zeros([WIDE], tl.float32)
    for step in range(steps):
        at, there = _tile(step, pixels, steps, CHANNELS, WIDE, ROWS)
        at += image * pixels * CHANNELS
        normal, gradient = _before_activation(
            x, incoming, at, there, center, spread, scale, shift, ACTIVATION
        )
        of_bias += tl.sum(gradient, 0)
        of_weight += tl.sum(gradient * normal, 0)
    to = (image * chunks + tl.program_id(1)) * CHANNELS + channel
    tl.store(partial + to, of_bias, inside)
    tl.store(partial + count * chunks * CHANNELS + to, of_weight, inside)


@triton.jit
def _input_gradient(
    x, incoming, out, partial, stats, weight, bias, count, pixels, steps, chunks,
    AFFINE: tl.constexpr, ACTIVATION: tl.constexpr,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WIDE: tl.constexpr, SETS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Joins the sums of all chunks, and writes the gradient of its own."""
    image, channel, inside, center, spread = _read_stats(stats, count, CHANNELS, WIDE)
    scale, shift = _affine(weight, bias, AFFINE, CHANNELS, WIDE)
    of_bias, of_weight = tl.zeros([WIDE], tl.float32), tl.zeros([WIDE], tl.float32)
    for chunk in range(chunks):
        at = (image * chunks + chunk) * CHANNELS + channel
        of_bias += tl.load(partial + at, inside, 0.0)
        of_weight += tl.load(partial + count * chunks * CHANNELS + at, inside, 0.0)
    # What the mean and the spread of the group take away
    numbers = pixels * (CHANNELS // GROUPS)
    level = (
        _of_group(tl.where(inside, scale * of_bias, 0.0), CHANNELS, GROUPS, WIDE, SETS) / numbers
    )
    slope = (
        _of_group(tl.where(inside, scale * of_weight, 0.0), CHANNELS, GROUPS, WIDE, SETS) / numbers
    )
    for step in range(steps):
        at, there = _tile(step, pixels, steps, CHANNELS, WIDE, ROWS)
        at += image * pixels * CHANNELS
        normal, gradient = _before_activation(
            x, incoming, at, there, center, spread, scale, shift, ACTIVATION
        )
        value = gradient * scale[None, :] - level[None, :] - normal * slope[None, :]
        tl.store(out + at, (value * spread[None, :]).to(out.dtype.element_ty), there)
