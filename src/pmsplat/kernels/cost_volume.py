"""Plane-sweep correlation that never stores the warped features.

Bilinear sampling is linear, so the correlation of a reference pixel with a *sampled* source feature
equals the bilinear sample of its correlations with all source pixels: one matrix product, then a
look-up. On the CPU a compiled pass samples and correlates at once. `warped` is the definition that
both are tested against: warp, then correlate. Collins, "A space-sweep approach to true multi-image
matching", CVPR 1996; Yao et al., "MVSNet", ECCV 2018.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import grid_sample

from ..geometry import sweep

BUDGET_CPU, BUDGET = 32 * 2**20, 512 * 2**20  # bytes of correlations held, on CPUs and elsewhere


@dataclass(frozen=True)
class Sweep:
    """The geometry of a sweep: the other views of each view, and the inverse depths of its pixels.

    `homographies[b, v, o]` map view v to view `others[b, v, o]`, in pixels of the feature map;
    `inv_depth` is per plane, or per plane and pixel. No field receives a gradient.
    """

    others: Int[Tensor, "batch view other"]
    homographies: Float[Tensor, "batch view other 3 4"]
    inv_depth: Float[Tensor, "batch view plane height_or_1 width_or_1"]
    pixel_center: float


def correlation(
    features: Float[Tensor, "batch view channel height width"], where: Sweep, path: str = "auto"
) -> Float[Tensor, "batch view plane height width"]:
    """Returns, per hypothesis, the mean over other views of <feature, sampled feature>/√channel.

    Samples outside the other view count as 0. float32, with gradients to `features` only. `path` is
    "compiled" (CPU), "all_pairs" (any device), or "auto": compiled on the CPU, else all_pairs.
    """
    if path == "auto":
        path = "compiled" if features.device.type == "cpu" else "all_pairs"
    function = {"compiled": _Compiled, "all_pairs": _AllPairs}[path]
    return function.apply(features.float(), where)  # pyright: ignore[reportReturnType]


def warped(
    features: Float[Tensor, "batch view channel height width"], where: Sweep
) -> Float[Tensor, "batch view plane height width"]:
    """Computes `correlation` by its definition, with warped features [b, v, o, c, d, h, w]."""
    batch, views, channels, height, width = features.shape
    others = where.others.shape[-1]
    scene = torch.arange(batch, device=features.device)[:, None, None]
    sources = features[scene, where.others].flatten(0, 2)
    with torch.no_grad():
        coordinates = sweep.source_coordinates(
            where.homographies, where.inv_depth[:, :, None], height, width, where.pixel_center
        )
        grid = _normalize(coordinates, height, width).flatten(0, 2).flatten(1, 2)
    samples = grid_sample(sources, grid, padding_mode="zeros", align_corners=True)
    samples = samples.reshape(batch, views, others, channels, -1, height, width)
    product = torch.einsum("bvchw,bvocdhw->bvdhw", features, samples)
    return product / (others * channels**0.5)


def _normalize(coordinates: Tensor, height: int, width: int) -> Tensor:
    """Converts index space to the [-1, 1] of `grid_sample` with aligned corners."""
    x, y = coordinates.unbind(dim=-1)  # Python numbers: a tensor of them is an upload, and a wait
    return torch.stack([x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], dim=-1)


def _flat_others(where: Sweep) -> Tensor:
    """Returns [(batch view), other], indices into the flattened views."""
    batch, views, _ = where.others.shape
    scene = torch.arange(batch, device=where.others.device)[:, None, None]
    return (where.others + scene * views).flatten(0, 1)


class _Compiled(torch.autograd.Function):
    """Correlation by the compiled pass; only the features are kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, where: Sweep) -> Tensor:
        from . import _sweep_cpu

        batch, views, channels, height, width = features.shape
        tokens = features.flatten(0, 1).flatten(2).transpose(1, 2).contiguous()
        ctx.save_for_backward(tokens)
        ctx.where, ctx.size = where, (height, width)
        out = features.new_zeros(batch * views, height, width, where.inv_depth.shape[2])
        _sweep_cpu.forward(tokens.numpy(), *_arrays(where), out.numpy())
        out = out.mul_(1 / (where.others.shape[-1] * channels**0.5))
        return out.permute(0, 3, 1, 2).unflatten(0, (batch, views))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        from . import _sweep_cpu

        (tokens,), where = ctx.saved_tensors, ctx.where
        incoming = gradients[0].flatten(0, 1).permute(0, 2, 3, 1).contiguous()
        out = torch.zeros_like(tokens)
        _sweep_cpu.backward(incoming.numpy(), tokens.numpy(), *_arrays(where), out.numpy())
        out = out.mul_(1 / (where.others.shape[-1] * tokens.shape[2] ** 0.5))
        return out.transpose(1, 2).unflatten(2, ctx.size).unflatten(0, where.others.shape[:2]), None


def _arrays(where: Sweep) -> tuple[Any, ...]:
    """Returns `where` as arguments of the compiled pass, views flattened."""
    views = (where.homographies.flatten(0, 1), where.inv_depth.flatten(0, 1))
    return _flat_others(where).numpy(), *(x.contiguous().numpy() for x in views), where.pixel_center


@dataclass(frozen=True)
class _Chunk:
    """All pixels of some reference views, or some pixels of one, with their source coordinates."""

    views: slice
    pixels: slice
    source: Tensor  # flat index of the source view of each reference view
    grid: Tensor  # [view · pixel, plane, 1, 2]


def _chunks(where: Sweep, height: int, width: int, budget: int) -> Iterator[_Chunk]:
    """Splits the work into pieces whose correlations fit into `budget` bytes."""
    batch, views, others = where.others.shape
    flat = _flat_others(where)
    homographies = where.homographies.flatten(0, 1)
    inv_depth = where.inv_depth.flatten(0, 1)
    pixels = height * width
    rows = max(1, budget // (4 * pixels))
    step = max(1, rows // pixels)
    for first in range(0, batch * views, step):
        chosen = slice(first, first + step)
        for other in range(others):
            coordinates = sweep.source_coordinates(
                homographies[chosen, other], inv_depth[chosen], height, width, where.pixel_center
            )
            grid = _normalize(coordinates, height, width).flatten(2, 3).transpose(1, 2)
            for start in range(0, pixels, rows):
                part = slice(start, start + rows)
                yield _Chunk(
                    chosen, part, flat[chosen, other], grid[:, part].flatten(0, 1)[:, :, None]
                )


def _budget(features: Tensor) -> int:
    return BUDGET_CPU if features.device.type == "cpu" else BUDGET


class _AllPairs(torch.autograd.Function):
    """Correlation by matrix products and look-ups; only the features are kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, where: Sweep) -> Tensor:
        ctx.save_for_backward(features)
        ctx.where = where
        batch, views, channels, height, width = features.shape
        tokens = features.flatten(0, 1).flatten(2)
        planes = where.inv_depth.shape[2]
        out = features.new_zeros(batch * views, height * width, planes)
        budget = _budget(features)
        for chunk in _chunks(where, height, width, budget):
            reference = tokens[chunk.views, :, chunk.pixels].transpose(1, 2)
            scores = reference @ tokens[chunk.source]
            # Bilinear, zero padding, aligned corners. Not `grid_sample`: on CUDA that is cuDNN's,
            # which refuses 65,536 images (pytorch/pytorch#88380), and each pixel is one here.
            samples = torch.ops.aten.grid_sampler_2d(
                scores.flatten(0, 1).unflatten(-1, (1, height, width)), chunk.grid, 0, 0, True
            )
            out[chunk.views, chunk.pixels] += samples.view(*scores.shape[:2], planes)
        out = out.mul_(1 / (where.others.shape[-1] * channels**0.5))
        return out.transpose(1, 2).reshape(batch, views, planes, height, width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (features,), where = ctx.saved_tensors, ctx.where
        channels, height, width = features.shape[-3:]
        tokens = features.flatten(0, 1).flatten(2)
        scale = 1 / (where.others.shape[-1] * channels**0.5)
        incoming = gradients[0].flatten(0, 1).flatten(2).transpose(1, 2) * scale
        out = torch.zeros_like(tokens)
        for chunk in _chunks(where, height, width, _budget(features)):
            reference = tokens[chunk.views, :, chunk.pixels]
            gradient = incoming[chunk.views, chunk.pixels]
            rows = gradient.shape[0] * gradient.shape[1]
            # Bilinear, zero padding, aligned corners; the scores' gradient, which needs no values
            scores, _ = torch.ops.aten.grid_sampler_2d_backward(
                gradient.reshape(rows, 1, -1, 1),
                tokens.new_empty(1).expand(rows, 1, height, width),
                chunk.grid, 0, 0, True, [True, False],
            )  # fmt: skip
            scores = scores.view(*gradient.shape[:2], height * width)
            out[chunk.views, :, chunk.pixels] += tokens[chunk.source] @ scores.transpose(1, 2)
            out.index_add_(0, chunk.source, reference @ scores)
        return out.view_as(features), None
