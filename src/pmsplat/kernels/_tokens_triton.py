"""Layer norm of tokens, and scaled residual connections, on CUDA devices; and their gradients.

Programs take some tokens each, whole ones, and every number is read and written once. Gradients of
what all tokens share are summed over a program's tokens; torch adds these sums, so equal input
gives equal bits.
"""

# Python's type checker does not understand Triton's language.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIncompatibleMethodOverride=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import cuda

TILE = 4096  # numbers that a program holds at a time
PROGRAMS = 256  # of a gradient, at most: each has a sum for every channel


class LayerNorm(torch.autograd.Function):
    """layer_norm(x) (+ added) in `dtype`; the input is kept for the gradient, not the result."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        added: Tensor | None,
        eps: float,
        dtype: torch.dtype,
    ) -> Tensor:
        tokens, sizes = _sizes(x)
        x, other = x.contiguous(), x if added is None else added.contiguous()
        out = torch.empty_like(x, dtype=dtype)
        kind = torch.promote_types(x.dtype, torch.float32)
        stats = x.new_empty(2, tokens, dtype=kind)
        cuda.launch(
            _normalize, (triton.cdiv(tokens, sizes["ROWS"]),),
            x, weight, bias, other, out, stats, tokens, eps, ADDS=added is not None, **sizes,
        )  # fmt: skip
        ctx.save_for_backward(x, weight, stats)
        ctx.added = None if added is None else added.dtype
        ctx.bias = bias.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, stats = ctx.saved_tensors
        incoming = gradients[0].reshape(-1, x.shape[-1])  # a view of rows that lie apart
        incoming = incoming if incoming.stride(1) == 1 else incoming.contiguous()
        tokens, sizes = _sizes(x)
        programs, steps = _shares(tokens, sizes["ROWS"])
        out = torch.empty_like(x)
        sums = stats.new_empty(2, programs, x.shape[-1])
        cuda.launch(
            _normalize_back, (programs,),
            incoming, x, weight, stats, out, sums, tokens, steps, incoming.stride(0), **sizes,
        )  # fmt: skip
        of_weight, of_bias = sums.sum(dim=1).unbind(0)
        passed = None if ctx.added is None else gradients[0].to(ctx.added)
        return out, of_weight.to(weight.dtype), of_bias.to(ctx.bias), passed, None, None


class AddScaled(torch.autograd.Function):
    """x + scale · change, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Tensor, scale: Tensor) -> Tensor:
        tokens, sizes = _sizes(x)
        x, change = x.contiguous(), change.contiguous()
        out = torch.empty_like(x, dtype=torch.promote_types(x.dtype, change.dtype))
        grid = (triton.cdiv(tokens, sizes["ROWS"]),)
        cuda.launch(_add_scaled, grid, x, change, scale, out, tokens, **sizes)
        ctx.save_for_backward(change, scale)
        ctx.dtype = x.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        change, scale = ctx.saved_tensors
        incoming = gradients[0].contiguous()
        tokens, sizes = _sizes(change)
        programs, steps = _shares(tokens, sizes["ROWS"])
        out = torch.empty_like(change)
        kind = torch.promote_types(incoming.dtype, torch.float32)
        sums = change.new_empty(programs, change.shape[-1], dtype=kind)
        given = (incoming, change, scale, out, sums)
        cuda.launch(_add_scaled_back, (programs,), *given, tokens, steps, **sizes)
        return incoming.to(ctx.dtype), out, sums.sum(dim=0).to(scale.dtype)


def _sizes(x: Tensor) -> tuple[int, dict[str, int]]:
    """How many tokens there are, and what a kernel is compiled for."""
    channels = x.shape[-1]
    cuda.check_places(
        f"tokens of {tuple(x.shape)}", "fewer than 2³¹ numbers in one tensor", x.numel()
    )
    wide = triton.next_power_of_2(channels)
    rows = max(1, TILE // wide)
    return x.numel() // channels, {"CHANNELS": channels, "WIDE": wide, "ROWS": rows}


def _shares(tokens: int, rows: int) -> tuple[int, int]:
    """How many programs a gradient has, and how many tiles of so many rows each of them takes."""
    tiles = triton.cdiv(tokens, rows)
    steps = triton.cdiv(tiles, PROGRAMS)
    return triton.cdiv(tiles, steps), steps


@triton.jit
def _tile(tile, tokens, CHANNELS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr):
    """Returns some tokens, the places of their numbers, and which of them are there."""
    row, channel = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDE)
    there = (row < tokens)[:, None] & (channel < CHANNELS)[None, :]
    return row, row[:, None] * CHANNELS + channel[None, :], there


@triton.jit
def _normalize(
    x, weight, bias, added, out, stats, tokens, eps,
    ADDS: tl.constexpr, CHANNELS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Tokens of one program; mean and inverse deviation of each are kept in `stats`."""
    kind: tl.constexpr = stats.dtype.element_ty
    row, at, there = _tile(tl.program_id(0), tokens, CHANNELS, WIDE, ROWS)
    channel = tl.arange(0, WIDE)
    scale = tl.load(weight + channel, channel < CHANNELS, 0.0).to(kind)
    shift = tl.load(bias + channel, channel < CHANNELS, 0.0).to(kind)
    value = tl.load(x + at, there, 0.0).to(kind)
    mean = tl.sum(value, 1) / CHANNELS
    apart = tl.where(there, value - mean[:, None], 0.0)
    spread = 1.0 / tl.sqrt(tl.sum(apart * apart, 1) / CHANNELS + eps)
    tl.store(stats + row, mean, row < tokens)
    tl.store(stats + tokens + row, spread, row < tokens)
    value = apart * spread[:, None] * scale[None, :] + shift[None, :]
    if ADDS:
        value += tl.load(added + at, there, 0.0).to(kind)
    tl.store(out + at, value.to(out.dtype.element_ty), there)


@triton.jit
def _normalize_back(
    incoming, x, weight, stats, out, sums, tokens, steps, to_next,
    CHANNELS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The gradient of the tokens, and this program's share of those of weight and bias."""
    channel = tl.arange(0, WIDE)
    kind: tl.constexpr = stats.dtype.element_ty
    scale = tl.load(weight + channel, channel < CHANNELS, 0.0).to(kind)
    of_weight, of_bias = tl.zeros([WIDE], kind), tl.zeros([WIDE], kind)
    for step in range(steps):
        row, at, there = _tile(tl.program_id(0) * steps + step, tokens, CHANNELS, WIDE, ROWS)
        mean = tl.load(stats + row, row < tokens, 0.0)
        spread = tl.load(stats + tokens + row, row < tokens, 0.0)
        normal = (tl.load(x + at, there, 0.0).to(kind) - mean[:, None]) * spread[:, None]
        normal = tl.where(there, normal, 0.0)
        place = row.to(tl.int64)[:, None] * to_next + channel[None, :]
        gradient = tl.load(incoming + place, there, 0.0).to(kind)
        of_bias += tl.sum(gradient, 0)
        of_weight += tl.sum(gradient * normal, 0)
        # What mean and deviation take away
        gradient *= scale[None, :]
        level = tl.sum(gradient, 1) / CHANNELS
        slope = tl.sum(gradient * normal, 1) / CHANNELS
        found = (gradient - level[:, None] - normal * slope[:, None]) * spread[:, None]
        tl.store(out + at, found.to(out.dtype.element_ty), there)
    to = tl.program_id(0) * CHANNELS + channel
    tl.store(sums + to, of_weight, channel < CHANNELS)
    tl.store(sums + tl.num_programs(0) * CHANNELS + to, of_bias, channel < CHANNELS)


@triton.jit
def _add_scaled(
    x, change, scale, out, tokens,
    CHANNELS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Tokens of one program."""
    _, at, there = _tile(tl.program_id(0), tokens, CHANNELS, WIDE, ROWS)
    channel = tl.arange(0, WIDE)
    factor = tl.load(scale + channel, channel < CHANNELS, 0.0)
    value, more = tl.load(x + at, there, 0.0), tl.load(change + at, there, 0.0)
    if out.dtype.element_ty != tl.float64:
        factor, value, more = factor.to(tl.float32), value.to(tl.float32), more.to(tl.float32)
    value += factor[None, :] * more
    tl.store(out + at, value.to(out.dtype.element_ty), there)


@triton.jit
def _add_scaled_back(
    incoming, change, scale, out, sums, tokens, steps,
    CHANNELS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The gradient of the change, and this program's share of that of the scale."""
    channel = tl.arange(0, WIDE)
    kind: tl.constexpr = sums.dtype.element_ty
    factor = tl.load(scale + channel, channel < CHANNELS, 0.0).to(kind)
    share = tl.zeros([WIDE], kind)
    for step in range(steps):
        _, at, there = _tile(tl.program_id(0) * steps + step, tokens, CHANNELS, WIDE, ROWS)
        gradient = tl.load(incoming + at, there, 0.0).to(kind)
        share += tl.sum(gradient * tl.load(change + at, there, 0.0).to(kind), 0)
        tl.store(out + at, (gradient * factor[None, :]).to(out.dtype.element_ty), there)
    tl.store(sums + tl.program_id(0) * CHANNELS + channel, share, channel < CHANNELS)
