"""Softmax attention by one of several backends: torch's fused kernels, xformers, plain torch.

xformers: Lefaudeux et al., "xFormers: A modular and hackable Transformer modelling library", 2022.
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..errors import UserError
from . import cpu_rules
from .linear import product

BACKENDS = ("sdpa", "xformers", "plain")
WORTHWHILE = 2**16  # scores per head from which `blocked` is faster than `plain`
WIDE = 64  # channels per head from which matrix products beat torch's fused kernel on CPUs
BLOCK = 2**18  # scores that `blocked` holds at a time: they fit a core's cache


def attention(
    q: Float[Tensor, "batch head query channel"],
    k: Float[Tensor, "batch head key channel"],
    v: Float[Tensor, "batch head key channel"],
    mask: Float[Tensor, "#batch head query key"] | None = None,
    backend: str = "sdpa",
) -> Float[Tensor, "batch head query channel"]:
    """Returns softmax(q·kᵀ/√channel + mask)·v, with gradients to q, k and v.

    Raises UserError for a backend that is unknown or cannot be used here; it never falls back to
    another backend.
    """
    if backend == "sdpa":
        ruled = q.device.type == "cpu" and not torch.compiler.is_dynamo_compiling()
        way = _way_on_cpu(q, k, v) if ruled else "fused"
        return WAYS[way](q, k, v, _like(mask, q))
    if backend == "plain":
        return plain(q, k, v, mask)
    if backend == "xformers":
        return _xformers(q, k, v, mask)
    raise UserError(
        f"attention {backend!r}", f"one of {', '.join(BACKENDS)}", "leave it at the default, 'sdpa'"
    )


def _way_on_cpu(q: Tensor, k: Tensor, v: Tensor) -> str:
    """What the rules for this processor say; where they say nothing, what is best on most."""
    trains = cpu_rules.trains(q, k, v)
    large = q.shape[-2] * k.shape[-2] >= WORTHWHILE
    wide = q.shape[-1] >= WIDE
    if q.dtype != torch.float64:
        half = q.dtype != torch.float32
        shape = cpu_rules.attention_class(wide, large, half, trains)
        way = cpu_rules.way("attention", shape)
        if way != "default":
            return way
    if wide and not trains:
        return "blocked" if large else "plain"
    return "fused"


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Computes attention by its definition: the reference for every backend."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1).to(v) @ v


def blocked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Computes `plain` for blocks of queries, on CPUs without gradients: it needs little memory.

    It is 1.5 times (float32) to several times (bfloat16) as fast as torch's fused CPU kernel. That
    one is used where gradients are needed, since it keeps no scores for them.
    """
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    rows = max(1, BLOCK // k.shape[-2])
    mask = _like(mask, q)
    for batch, head in itertools.product(range(q.shape[0]), range(q.shape[1])):
        keys = k[batch, head] * q.shape[-1] ** -0.5
        values = v[batch, head].t().contiguous()
        bias = None
        if mask is not None:
            bias = mask[batch % mask.shape[0], head % mask.shape[1]]
        for start in range(0, q.shape[-2], rows):
            part = slice(start, start + rows)
            scores = product(q[batch, head, part], keys)
            if bias is not None:
                scores = scores.add_(bias[part])
            out[batch, head, part] = product(scores.softmax(dim=-1), values)
    return out


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Computes `plain` by torch's own kernels, which store no scores."""
    return scaled_dot_product_attention(q, k, v, attn_mask=mask)


WAYS = {"fused": fused, "plain": plain, "blocked": blocked}


def _like(mask: Tensor | None, q: Tensor) -> Tensor | None:
    return mask if mask is None else mask.to(q)


def _xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if not q.is_cuda:
        raise UserError(
            f"attention 'xformers' on {q.device.type}", "tensors on cuda", "choose attention=sdpa"
        )
    try:
        from xformers.ops import memory_efficient_attention  # pyright: ignore
    except ImportError as error:
        raise UserError(
            "attention 'xformers', which is not installed",
            "a build of xformers that fits the installed torch",
            "pip install xformers, or choose attention=sdpa",
        ) from error
    batch, heads, queries, _ = q.shape
    bias = None
    if mask is not None:
        bias = mask.to(q).expand(batch, heads, queries, k.shape[-2])
    out = memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_bias=bias)
    return out.transpose(1, 2)
