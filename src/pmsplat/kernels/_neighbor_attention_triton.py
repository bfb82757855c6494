"""Attention of points to their neighbours on CUDA devices: every neighbour is read once.

A program goes through the neighbours of a block of points with a running softmax (Milakov and
Gimelshein, "Online normalizer calculation for softmax", 2018). In the backward pass one kernel does
the same for the gradient of the queries and leaves the weights; the other gathers, for each point,
from all that attend to it. Sums are float32, and without atomics: equal input gives equal bits.
"""

# Python's type checker does not understand Triton's language.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportArgumentType=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import cuda
from .neighbor_attention import InverseTable

TILE = 1024  # numbers of a block of points that a program holds at a time
GATHERED = 512  # the same of a point's readers, by one warp


def forward(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the result and the logarithms of the sums."""
    q, k, v, table = *(_side_by_side(x) for x in (queries, keys, values)), table.contiguous()
    batch, n, near = table.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    log_sums = q.new_empty(batch, n, dtype=torch.promote_types(q.dtype, torch.float32))
    sizes = _sizes(q.shape[2], TILE)
    for part in cuda.parts(batch):
        cuda.launch(
            _forward, (triton.cdiv(n, sizes["BLOCK"]), part.stop - part.start),
            *(x[part] for x in (q, k, v, table, out, log_sums)),
            n, near, *_strides(q, k, v), **sizes,
        )  # fmt: skip
    return out, log_sums


def backward(
    gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor,
    log_sums: Tensor, inverse: InverseTable,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns the gradients of queries, keys and values."""
    g, q, k, v = (_side_by_side(x) for x in (gradient, queries, keys, values))
    table = table.contiguous()
    (batch, n, near), m = table.shape, k.shape[1]
    of_queries, of_keys, of_values = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)
    )
    # Of every place its weight and the gradient of that; of every point the mean of these gradients
    weights, slopes = log_sums.new_empty(2, batch, n, near).unbind(0)
    means = torch.empty_like(log_sums)
    sizes, readers = _sizes(q.shape[2], TILE), _sizes(q.shape[2], GATHERED)
    for part in cuda.parts(batch):
        scenes = part.stop - part.start
        given = (g, q, k, v, table, log_sums, weights, slopes, means, of_queries)
        cuda.launch(
            _backward_queries, (triton.cdiv(n, sizes["BLOCK"]), scenes),
            *(x[part] for x in given), n, near, *_strides(g, q, k, v), **sizes,
        )  # fmt: skip
        given = (g, q, inverse.places, inverse.starts, weights, slopes, means)
        cuda.launch(
            _backward_keys, (m, scenes),
            *(x[part] for x in (*given, of_keys, of_values)),
            n, m, near, *_strides(g, q), **readers, num_warps=1,
        )  # fmt: skip
    return of_queries, of_keys, of_values


def _side_by_side(tensor: Tensor) -> Tensor:
    """Returns the tensor with each point's numbers side by side in memory."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _sizes(channels: int, numbers: int) -> dict[str, Any]:
    """The arguments that the kernels are compiled for."""
    wide = triton.next_power_of_2(channels)
    return {
        "SCALE": channels**-0.5,
        "CHANNELS": channels,
        "WIDE": wide,
        "BLOCK": max(1, numbers // wide),
    }


@triton.jit
def _rows(base, index, stride, valid, CHANNELS: tl.constexpr, WIDE: tl.constexpr):
    """Loads the points at `index`, 0 where they are not valid."""
    channel = tl.arange(0, WIDE)
    there = valid[:, None] & (channel < CHANNELS)[None, :]
    return tl.load(base + index.to(tl.int64)[:, None] * stride + channel[None, :], there, 0.0)


@triton.jit
def _forward(
    queries, keys, values, table, out, log_sums, n, near,
    q_sample, q_point, k_sample, k_point, v_sample, v_point,
    SCALE: tl.constexpr, CHANNELS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes the result of a block of points."""
    kind: tl.constexpr = log_sums.dtype.element_ty
    sample = tl.program_id(1).to(tl.int64)
    queries, keys, values = (
        queries + sample * q_sample, keys + sample * k_sample, values + sample * v_sample,
    )  # fmt: skip
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = point < n
    at = sample * n + point
    query = _rows(queries, point, q_point, valid, CHANNELS, WIDE).to(kind)
    highest = tl.full([BLOCK], -float("inf"), kind)
    total, sums = tl.zeros([BLOCK], kind), tl.zeros([BLOCK, WIDE], kind)
    for s in range(near):
        index = tl.load(table + at * near + s, valid, 0)
        key = _rows(keys, index, k_point, valid, CHANNELS, WIDE).to(kind)
        value = _rows(values, index, v_point, valid, CHANNELS, WIDE).to(kind)
        score = tl.sum(query * key, 1) * SCALE
        higher = tl.maximum(highest, score)
        kept, weight = tl.exp(highest - higher), tl.exp(score - higher)
        total = total * kept + weight
        sums = sums * kept[:, None] + value * weight[:, None]
        highest = higher
    tl.store(log_sums + at, highest + tl.log(total), valid)
    channel = tl.arange(0, WIDE)
    to = out + at[:, None] * CHANNELS + channel[None, :]
    there = valid[:, None] & (channel < CHANNELS)[None, :]
    tl.store(to, (sums / total[:, None]).to(out.dtype.element_ty), there)


@triton.jit
def _backward_queries(
    gradient, queries, keys, values, table, log_sums, weights, slopes, means, of_queries, n, near,
    g_sample, g_point, q_sample, q_point, k_sample, k_point, v_sample, v_point,
    SCALE: tl.constexpr, CHANNELS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of a block of queries, and what `_backward_keys` needs of them.

    The gradient of a score is weight · (slope - mean slope), and the mean is known only at the end.
    """
    kind: tl.constexpr = log_sums.dtype.element_ty
    sample = tl.program_id(1).to(tl.int64)
    gradient, queries = gradient + sample * g_sample, queries + sample * q_sample
    keys, values = keys + sample * k_sample, values + sample * v_sample
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = point < n
    at = sample * n + point
    query = _rows(queries, point, q_point, valid, CHANNELS, WIDE).to(kind)
    incoming = _rows(gradient, point, g_point, valid, CHANNELS, WIDE).to(kind)
    log_sum, mean = tl.load(log_sums + at, valid, 0.0), tl.zeros([BLOCK], kind)
    steep, level = tl.zeros([BLOCK, WIDE], kind), tl.zeros([BLOCK, WIDE], kind)
    for s in range(near):
        index = tl.load(table + at * near + s, valid, 0)
        key = _rows(keys, index, k_point, valid, CHANNELS, WIDE).to(kind)
        value = _rows(values, index, v_point, valid, CHANNELS, WIDE).to(kind)
        weight = tl.exp(tl.sum(query * key, 1) * SCALE - log_sum)
        slope = tl.sum(incoming * value, 1)
        tl.store(weights + at * near + s, weight, valid)
        tl.store(slopes + at * near + s, slope, valid)
        mean += weight * slope
        level += weight[:, None] * key
        steep += (weight * slope)[:, None] * key
    tl.store(means + at, mean, valid)
    channel = tl.arange(0, WIDE)
    to = of_queries + at[:, None] * CHANNELS + channel[None, :]
    there = valid[:, None] & (channel < CHANNELS)[None, :]
    found = (steep - mean[:, None] * level) * SCALE
    tl.store(to, found.to(of_queries.dtype.element_ty), there)


@triton.jit
def _backward_keys(
    gradient, queries, places, starts, weights, slopes, means, of_keys, of_values, n, m, near,
    g_sample, g_point, q_sample, q_point,
    SCALE: tl.constexpr, CHANNELS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of one key and its value: sums over the places that name it."""
    named, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    kind: tl.constexpr = means.dtype.element_ty
    gradient, queries = gradient + sample * g_sample, queries + sample * q_sample
    places += sample * n * near
    weights, slopes = weights + sample * n * near, slopes + sample * n * near
    first = tl.load(starts + sample * (m + 1) + named)
    last = tl.load(starts + sample * (m + 1) + named + 1)
    of_key, of_value = tl.zeros([WIDE], kind), tl.zeros([WIDE], kind)
    for entry in range(first, last, BLOCK):
        at = entry + tl.arange(0, BLOCK)
        valid = at < last
        place = tl.load(places + at, valid, 0)
        point = place // near
        weight = tl.load(weights + place, valid, 0.0)
        mean = tl.load(means + sample * n + point, valid, 0.0)
        share = weight * (tl.load(slopes + place, valid, 0.0) - mean) * SCALE
        query = _rows(queries, point, q_point, valid, CHANNELS, WIDE).to(kind)
        incoming = _rows(gradient, point, g_point, valid, CHANNELS, WIDE).to(kind)
        of_key += tl.sum(share[:, None] * query, 0)
        of_value += tl.sum(weight[:, None] * incoming, 0)
    channel = tl.arange(0, WIDE)
    to = (sample * m + named) * CHANNELS + channel
    tl.store(of_keys + to, of_key.to(of_keys.dtype.element_ty), channel < CHANNELS)
    tl.store(of_values + to, of_value.to(of_values.dtype.element_ty), channel < CHANNELS)
