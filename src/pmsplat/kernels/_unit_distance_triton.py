"""Distances between maps of unit vectors on CUDA devices: both maps are read once.

Every program takes some pixels of one image, all channels of them, and writes its share of the
distance; torch adds the shares, so equal input gives equal bits. The gradient computes lengths
anew, and writes nothing but itself. With u = a / s, s = |a| + e and g the gradient of u, that of a
is (g - a (g · u) / |a|) / s, and 0 where a is 0.
"""

# Python's type checker does not understand Triton's language.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIncompatibleMethodOverride=false

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import cuda

TILE = 4096  # numbers of a map that a program holds at a time
CHUNKS = 256  # of an image, at most


@dataclass(frozen=True)
class _Plan:
    """How maps [n, channel, height, width] are cut: `rows` pixels at a time, `steps` times."""

    pixels: int
    channels: int
    rows: int
    steps: int
    chunks: int

    @staticmethod
    def of(features: Tensor) -> "_Plan":
        pixels, channels = features.shape[2] * features.shape[3], features.shape[1]
        cuda.check_places(
            f"{len(features)} maps of {pixels} pixels and {channels} channels",
            "fewer than 2³¹ numbers in one map",
            pixels * channels,
        )
        rows = max(1, TILE // triton.next_power_of_2(channels))
        tiles = -(-pixels // rows)
        steps = -(-tiles // CHUNKS)
        return _Plan(pixels, channels, rows, steps, -(-tiles // steps))

    @property
    def sizes(self) -> dict[str, int]:
        """What a kernel is compiled for."""
        wide = triton.next_power_of_2(self.channels)
        return {"CHANNELS": self.channels, "WIDE": wide, "ROWS": self.rows}


class UnitDistance(torch.autograd.Function):
    """Distances [n] of maps from targets; gradients go to the maps alone."""

    @staticmethod
    def forward(
        ctx: Any, targets: tuple[Tensor, ...], weights: tuple[Tensor, ...], *maps: Tensor
    ) -> Tensor:
        plans = [_Plan.of(a) for a in maps]
        pairs = [(_dense(a), _dense(b), w) for a, b, w in zip(maps, targets, weights, strict=True)]
        count, shares = len(maps[0]), sum(plan.chunks for plan in plans)
        dtype = torch.promote_types(maps[0].dtype, torch.float32)
        partial = maps[0].new_empty(count, shares, dtype=dtype)
        first = 0
        for plan, (a, b, weight) in zip(plans, pairs, strict=True):
            cuda.launch(
                _distance, (count, plan.chunks),
                a, b, weight, partial[:, first:], plan.pixels, plan.steps, shares,
                *_steps(a), *_steps(b), **plan.sizes,
            )  # fmt: skip
            first += plan.chunks
        ctx.save_for_backward(*(x for pair in pairs for x in pair))
        ctx.plans = plans
        return partial.sum(dim=1).to(maps[0].dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved, found = ctx.saved_tensors, []
        incoming = gradients[0].to(torch.promote_types(gradients[0].dtype, torch.float32))
        for i, plan in enumerate(ctx.plans):
            a, b, weight = saved[3 * i : 3 * i + 3]
            out = torch.empty_like(a)
            cuda.launch(
                _gradient, (len(a), plan.chunks),
                a, b, weight, incoming, out, plan.pixels, plan.steps, incoming.stride(0),
                *_steps(a), *_steps(b), **plan.sizes,
            )  # fmt: skip
            found.append(out)
        return None, None, *found


def _dense(features: Tensor) -> Tensor:
    """The same without gaps, in whichever order of axes it has."""
    last = features.is_contiguous(memory_format=torch.channels_last)
    return features if last else features.contiguous()


def _steps(features: Tensor) -> tuple[int, int, int]:
    """From image to image, pixel to pixel, channel to channel."""
    n, channel, row, pixel = features.stride()
    return n, pixel if features.shape[3] > 1 else row, channel


@triton.jit
def _read(
    features, step, pixels, steps, to_pixel, to_channel, kind: tl.constexpr,
    CHANNELS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Returns offsets of a tile of this program in its image, what is there, its vectors, and their
    lengths."""
    row = (tl.program_id(1) * steps + step) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDE)
    there = (row < pixels)[:, None] & (channel < CHANNELS)[None, :]
    at = row[:, None] * to_pixel + channel[None, :] * to_channel
    value = tl.load(features + at, there, 0.0).to(kind)
    return at, there, value, tl.sqrt(tl.sum(value * value, 1))


@triton.jit
def _unit(value, length):
    """Returns vectors of length 1, as the definition has them."""
    return value / (length + 1e-10)[:, None]


@triton.jit
def _distance(
    a, b, weights, partial, pixels, steps, shares, an, ap, ac, bn, bp, bc,
    CHANNELS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Writes this program's share; strides are named by tensor and axis."""
    image = tl.program_id(0).to(tl.int64)
    kind: tl.constexpr = partial.dtype.element_ty
    channel = tl.arange(0, WIDE)
    weight = tl.load(weights + channel, channel < CHANNELS, 0.0).to(kind)
    sums = tl.zeros([ROWS], kind)
    for step in range(steps):
        _, _, u, length = _read(
            a + image * an, step, pixels, steps, ap, ac, kind, CHANNELS, WIDE, ROWS
        )
        u = _unit(u, length)  # before the other is read, which takes fewer registers
        _, _, v, length = _read(
            b + image * bn, step, pixels, steps, bp, bc, kind, CHANNELS, WIDE, ROWS
        )
        v = _unit(v, length)
        sums += tl.sum(weight[None, :] * (u - v) * (u - v), 1)
    tl.store(partial + image * shares + tl.program_id(1), tl.sum(sums, 0) / pixels)


@triton.jit
def _gradient(
    a, b, weights, incoming, out, pixels, steps, gn, an, ap, ac, bn, bp, bc,
    CHANNELS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of this program's pixels, in the order of `a`."""
    image = tl.program_id(0).to(tl.int64)
    kind: tl.constexpr = incoming.dtype.element_ty
    channel = tl.arange(0, WIDE)
    weight = tl.load(weights + channel, channel < CHANNELS, 0.0).to(kind)
    weight = 2.0 * weight * tl.load(incoming + image * gn) / pixels
    for step in range(steps):
        _, _, v, length = _read(
            b + image * bn, step, pixels, steps, bp, bc, kind, CHANNELS, WIDE, ROWS
        )
        v = _unit(v, length)
        at, there, value, length = _read(
            a + image * an, step, pixels, steps, ap, ac, kind, CHANNELS, WIDE, ROWS
        )
        unit = _unit(value, length)
        of_unit = weight[None, :] * (unit - v)
        along = tl.sum(of_unit * unit, 1) / tl.where(length == 0.0, 1.0, length)
        found = _unit(of_unit - value * along[:, None], length)
        found = tl.where((length == 0.0)[:, None], 0.0, found)
        tl.store(out + image * an + at, found.to(out.dtype.element_ty), there)
