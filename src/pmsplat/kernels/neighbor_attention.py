"""Attention of points to their neighbours that never stores the gathered keys and values.

`attend_by_torch` is the definition. The compiled paths read each neighbour once, and keep of the
forward pass the logarithm of each softmax's sum, from which the backward pass computes the weights
again (Dao et al., "FlashAttention", NeurIPS 2022). It gathers the gradients of keys and values too:
the inverse of the table says who attends to a point. So no two threads write to one place, and
equal input gives equal bits. Such attention: Zhao et al., "Point Transformer", ICCV 2021.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from . import cuda

__all__ = ["InverseTable", "attend_by_torch", "attend_neighbors", "invert"]

GATHERED = 2**22  # numbers of keys, or of values, that the definition holds in memory at once
WIDEST = 128  # channels that a program of the CUDA kernels holds


@dataclass(frozen=True)
class InverseTable:
    """The places of a table [batch, n, k], ordered by the point that they name.

    `places[b, starts[b, j] : starts[b, j + 1]]` are, ascending, those that name point j; place
    i · k + s is neighbour s of point i.
    """

    places: Int[Tensor, "batch n*k"]
    starts: Int[Tensor, "batch m+1"]


def attend_neighbors(
    queries: Float[Tensor, "batch n channel"],
    keys: Float[Tensor, "batch m channel"],
    values: Float[Tensor, "batch m channel"],
    table: Int[Tensor, "batch n k"],
    inverse: InverseTable | None = None,
) -> Float[Tensor, "batch n channel"]:
    """Returns Σ_s softmax_s(query_i · key_t / √channel) · value_t over neighbours t = table[i, s].

    One head of 1 to 128 channels, with gradients to queries, keys and values. All have one dtype,
    which is that of the result; sums are float32 for half precision. A neighbour that comes twice
    counts twice. `inverse` is `invert(table, m)`, which the backward pass makes for itself where it
    is not given: give it to several calls with one table. Never synchronizes with a CUDA device,
    where indices outside of 0 to m - 1 are undefined; on the CPU they raise `UserError`, as
    shapes that do not fit do everywhere.
    """
    _check(queries, keys, values, table)
    if _has_kernel(queries) and queries.numel():
        return _Attention.apply(queries, keys, values, table, inverse)  # pyright: ignore
    return attend_by_torch(queries, keys, values, table)


def invert(table: Int[Tensor, "batch n k"], count: int) -> InverseTable:
    """Returns for each of `count` points the places of the table that name it."""
    if table.device.type != "cpu":
        return _sort(table, count)
    from ._neighbor_attention_cpu import sort_places

    return InverseTable(*sort_places(table.flatten(1), count))


def _sort(table: Tensor, count: int) -> InverseTable:
    named, places = table.flatten(1).sort(dim=1, stable=True)
    first = torch.arange(count + 1, dtype=named.dtype, device=table.device)
    starts = torch.searchsorted(named, first.expand(len(named), -1).contiguous())
    return InverseTable(places, starts)


def attend_by_torch(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
    """The reference of `attend_neighbors`, on any device: it gathers for some points at a time, in
    the backward pass again."""
    batch, _, k = table.shape
    dtype = torch.promote_types(queries.dtype, torch.float32)
    keys, values = keys.to(dtype), values.to(dtype)  # so that gradients are added in this precision
    rows = max(1, GATHERED // max(1, batch * k * queries.shape[2]))
    parts = zip(queries.to(dtype).split(rows, dim=1), table.split(rows, dim=1), strict=True)
    found = [
        checkpoint(_attend, some, keys, values, at, use_reentrant=False, preserve_rng_state=False)
        for some, at in parts
    ]
    return torch.cat(found, dim=1).to(queries.dtype)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
    sample = torch.arange(len(table), device=table.device)[:, None, None]
    scores = (queries[:, :, None] * keys[sample, table]).sum(dim=-1)
    weights = (scores * queries.shape[2] ** -0.5).softmax(dim=-1)
    return (weights[..., None] * values[sample, table]).sum(dim=2)


class _Passes(Protocol):
    """A module that implements the attention on a device; see `attend_neighbors` for shapes."""

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the result and, [batch, n], log Σ_s exp(query · key / √channel)."""
        ...

    def backward(
        self, gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor,
        log_sums: Tensor, inverse: InverseTable,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Returns the gradients of queries, keys and values, given that of the result."""
        ...


def _has_kernel(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" or cuda.has_kernels(tensor.device)


def _passes(device: str) -> _Passes:
    if device == "cpu":
        from . import _neighbor_attention_cpu as passes
    else:
        from . import _neighbor_attention_triton as passes
    return passes


class _Attention(torch.autograd.Function):
    """The attention by the kernels of a device."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        table: Tensor,
        inverse: InverseTable | None,
    ) -> Tensor:
        out, log_sums = _passes(queries.device.type).forward(queries, keys, values, table)
        ctx.save_for_backward(queries, keys, values, table, log_sums)
        ctx.inverse = inverse
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        queries, keys, values, table, log_sums = ctx.saved_tensors
        inverse = ctx.inverse or invert(table, keys.shape[1])
        found = _passes(queries.device.type).backward(
            gradient, queries, keys, values, table, log_sums, inverse
        )
        return *found, None, None


def _check(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> None:
    shapes = [tuple(x.shape) for x in (queries, keys, values, table)]
    batch, n, channels = queries.shape
    fits = keys.shape == values.shape == (batch, keys.shape[1], channels)
    if not fits or table.shape[:2] != (batch, n):
        raise UserError(
            "queries {}, keys {}, values {} and a table {}".format(*shapes),
            "[batch, n, channel], [batch, m, channel] twice, and [batch, n, k]",
            "project the points to as many channels for each, and search neighbors of each query",
        )
    if not 1 <= channels <= WIDEST or not table.shape[2]:
        raise UserError(
            f"{channels} channels and {table.shape[2]} neighbors",
            f"1 to {WIDEST} channels and at least one neighbor",
            "project to fewer channels, or call it once for each head",
        )
    if not queries.dtype == keys.dtype == values.dtype:
        raise UserError(
            f"queries, keys and values of {queries.dtype}, {keys.dtype} and {values.dtype}",
            "one dtype",
            "convert them",
        )
    if table.device.type == "cpu" and table.numel():
        low, high = (int(x) for x in table.aminmax())
        if low < 0 or high >= keys.shape[1]:
            raise UserError(
                f"neighbors {low} to {high} of {keys.shape[1]} points",
                f"indices from 0 to {keys.shape[1] - 1}",
                "search the neighbors among these points",
            )
