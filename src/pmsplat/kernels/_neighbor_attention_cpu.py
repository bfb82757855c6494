"""Attention of points to their neighbours for CPUs, compiled: in parallel over runs of points.

A set is read in place, as flat memory with the distances of its samples and its points: queries,
keys and values are often parts of one tensor.
"""

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from . import compiled
from ._tracing import untraced
from .neighbor_attention import InverseTable

BLOCK = 128  # points per job of a thread
Array = np.ndarray[Any, np.dtype[Any]]

# Sums may be reordered; what is not a number stays so
FAST = {"reassoc", "contract", "nsz", "arcp"}
serial: Any = njit(cache=True, fastmath=FAST, error_model="numpy")
parallel: Any = compiled.parallel(fastmath=FAST, error_model="numpy")


@untraced
def forward(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the result and the logarithms of the sums."""
    q, k, v = (_single(x) for x in (queries, keys, values))
    out, log_sums = torch.empty(q.shape, dtype=q.dtype), q.new_empty(q.shape[:2])
    _forward(*_flat(q), *_flat(k), *_flat(v), _places(table), out.numpy(), log_sums.numpy())
    return out.to(queries.dtype), log_sums


@untraced
def backward(
    gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor,
    log_sums: Tensor, inverse: InverseTable,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns the gradients of queries, keys and values."""
    g, q, k, v = (_flat(_single(x)) for x in (gradient, queries, keys, values))
    # Weights of the neighbours, and gradients of their scores, of all points
    shape = (2, *table.shape)
    shares = np.empty(shape, g[0].dtype)
    of_queries = log_sums.new_empty(queries.shape)
    of_keys, of_values = log_sums.new_empty(keys.shape), log_sums.new_empty(keys.shape)
    _backward_queries(*g, *q, *k, *v, _places(table), log_sums.numpy(), shares, of_queries.numpy())
    order, starts = inverse.places.numpy(), inverse.starts.numpy()
    _backward_keys(*g, *q, order, starts, shares, of_keys.numpy(), of_values.numpy())
    dtype = queries.dtype
    return of_queries.to(dtype), of_keys.to(dtype), of_values.to(dtype)


@untraced
def sort_places(flat: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the places [batch, place] by the point that they name, and where each starts."""
    places, starts = np.empty(flat.shape, np.int32), np.zeros((len(flat), count + 1), np.int32)
    _sort_places(_places(flat), places, starts)
    return torch.from_numpy(places), torch.from_numpy(starts)


def _single(tensor: Tensor) -> Tensor:
    """Returns the tensor in float32, or float64, with each point's numbers side by side."""
    tensor = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _flat(tensor: Tensor) -> tuple[Array, int, int]:
    """Returns the memory of [batch, n, channel], and the distances of samples and of points."""
    sample, point, _ = tensor.stride()
    last = sum(
        stride * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )
    return tensor.as_strided((last + 1,), (1,)).numpy(), sample, point


def _places(table: Tensor) -> Array:
    return table.long().contiguous().numpy()


@serial
def _dot(a: Array, b: Array) -> float:
    total = a.dtype.type(0)
    for c in range(len(a)):
        total += a[c] * b[c]
    return total


@serial
def _add(sums: Array, factor: float, row: Array) -> None:
    for c in range(len(sums)):
        sums[c] += factor * row[c]


@parallel
def _forward(
    q: Array, q_sample: int, q_point: int, k: Array, k_sample: int, k_point: int, v: Array,
    v_sample: int, v_point: int, table: Array, out: Array, log_sums: Array,
) -> None:  # fmt: skip
    """Fills `out` and `log_sums`."""
    batch, n, channels = out.shape
    jobs, near = (n + BLOCK - 1) // BLOCK, table.shape[2]
    scale = out.dtype.type(1 / np.sqrt(channels))
    for job in prange(batch * jobs):
        b, first = job // jobs, job % jobs * BLOCK
        weights = np.empty(near, out.dtype)
        for i in range(first, min(first + BLOCK, n)):
            at = b * q_sample + i * q_point
            query = q[at : at + channels]
            # Scores of the neighbours
            highest = out.dtype.type(-np.inf)
            for s in range(near):
                at = b * k_sample + table[b, i, s] * k_point
                weights[s] = _dot(query, k[at : at + channels]) * scale
                highest = max(highest, weights[s])
            # Their softmax
            total = out.dtype.type(0)
            for s in range(near):
                weights[s] = np.exp(weights[s] - highest)
                total += weights[s]
            log_sums[b, i] = highest + np.log(total)
            # The weighted sum
            sums = out[b, i]
            sums[:] = 0
            for s in range(near):
                at = b * v_sample + table[b, i, s] * v_point
                _add(sums, weights[s] / total, v[at : at + channels])


@parallel
def _backward_queries(
    g: Array, g_sample: int, g_point: int, q: Array, q_sample: int, q_point: int, k: Array,
    k_sample: int, k_point: int, v: Array, v_sample: int, v_point: int, table: Array,
    log_sums: Array, shares: Array, of_queries: Array,
) -> None:  # fmt: skip
    """Fills `of_queries` and, in `shares`, weights and the gradients of scores times scale."""
    batch, n, channels = of_queries.shape
    jobs, near = (n + BLOCK - 1) // BLOCK, table.shape[2]
    scale = of_queries.dtype.type(1 / np.sqrt(channels))
    for job in prange(batch * jobs):
        b, first = job // jobs, job % jobs * BLOCK
        for i in range(first, min(first + BLOCK, n)):
            at = b * q_sample + i * q_point
            query = q[at : at + channels]
            at = b * g_sample + i * g_point
            incoming = g[at : at + channels]
            weights, slopes = shares[0, b, i], shares[1, b, i]
            # The weights again, and the gradient of each
            mean = of_queries.dtype.type(0)
            for s in range(near):
                at = b * k_sample + table[b, i, s] * k_point
                score = _dot(query, k[at : at + channels]) * scale
                weights[s] = np.exp(score - log_sums[b, i])
                at = b * v_sample + table[b, i, s] * v_point
                slopes[s] = _dot(incoming, v[at : at + channels])
                mean += weights[s] * slopes[s]
            # The gradient of each score, and of the query
            sums = of_queries[b, i]
            sums[:] = 0
            for s in range(near):
                slopes[s] = weights[s] * (slopes[s] - mean) * scale
                at = b * k_sample + table[b, i, s] * k_point
                _add(sums, slopes[s], k[at : at + channels])


@parallel
def _backward_keys(
    g: Array, g_sample: int, g_point: int, q: Array, q_sample: int, q_point: int, places: Array,
    starts: Array, shares: Array, of_keys: Array, of_values: Array,
) -> None:  # fmt: skip
    """Fills `of_keys` and `of_values`, given the `shares` of all places."""
    batch, m, channels = of_keys.shape
    jobs, near = (m + BLOCK - 1) // BLOCK, shares.shape[3]
    for job in prange(batch * jobs):
        b, first = job // jobs, job % jobs * BLOCK
        for j in range(first, min(first + BLOCK, m)):
            key, value = of_keys[b, j], of_values[b, j]
            key[:] = 0
            value[:] = 0
            for entry in range(starts[b, j], starts[b, j + 1]):
                i, s = places[b, entry] // near, places[b, entry] % near
                at = b * q_sample + i * q_point
                _add(key, shares[1, b, i, s], q[at : at + channels])
                at = b * g_sample + i * g_point
                _add(value, shares[0, b, i, s], g[at : at + channels])


@parallel
def _sort_places(table: Array, places: Array, starts: Array) -> None:
    """Sorts by counting, stably; `starts` is 0 before."""
    for b in prange(len(table)):
        for place in range(table.shape[1]):
            starts[b, table[b, place] + 1] += 1
        for j in range(1, starts.shape[1]):
            starts[b, j] += starts[b, j - 1]
        free = starts[b].copy()
        for place in range(table.shape[1]):
            places[b, free[table[b, place]]] = place
            free[table[b, place]] += 1
