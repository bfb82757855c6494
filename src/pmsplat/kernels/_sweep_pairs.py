"""The plane sweep for small maps: correlations of all pixels, then a look-up.

Bilinear sampling is linear, so the correlation of a reference pixel with a *sampled* source feature
equals the bilinear sample of its correlations with all source pixels: one matrix product, then a
look-up, by Triton on CUDA devices and by torch elsewhere. Products are in the type of the features;
those of float32 follow torch's `set_float32_matmul_precision`, as those of any layer do.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import sweep
from . import cuda
from ._sweep import FlatSweep, normalize

BUDGET_CPU, BUDGET = 32 * 2**20, 128 * 2**20  # bytes of correlations held, on CPUs and elsewhere


@dataclass(frozen=True)
class _Chunk:
    """All pixels of some reference views, or some pixels of one."""

    views: slice
    pixels: slice
    reference: Tensor  # tokens [view, pixel, channel]
    seen: Tensor  # tokens of the other views, [view, other · source pixel, channel]


def forward(tokens: Tensor, where: FlatSweep, scale: float, out: Tensor) -> None:
    """Writes scale · Σ_o <token, sampled token of view o> to `out` [view, pixel, plane]."""
    others = where.others.shape[1]
    for chunk in _chunks(tokens, where):
        rows = chunk.reference.shape[:2]
        scores = tokens.new_empty(*rows, chunk.seen.shape[1])
        # The scale goes in here, where sums are float32: float16 might overflow without it
        scores.baddbmm_(chunk.reference, chunk.seen.transpose(1, 2), beta=0, alpha=scale)
        scores = scores.unflatten(2, (others, -1))
        if _by_triton(tokens):
            from . import _sweep_triton

            _sweep_triton.look_up(scores, where, chunk.views, chunk.pixels, out)
        else:
            out[chunk.views, chunk.pixels] = _look_up(scores, where, chunk)


def backward(gradient: Tensor, tokens: Tensor, where: FlatSweep, scale: float, out: Tensor) -> None:
    """Adds the gradient of `tokens` to `out` [view, pixel, channel], float32."""
    others, pixels = where.others.shape[1], tokens.shape[1]
    for chunk in _chunks(tokens, where):
        rows = chunk.reference.shape[:2]
        if _by_triton(tokens):
            from . import _sweep_triton

            scores = gradient.new_zeros(*rows, others, pixels)
            _sweep_triton.scatter(gradient, where, chunk.views, chunk.pixels, scores)
        else:
            scores = _scatter(gradient[chunk.views, chunk.pixels], where, chunk)
        scores = scores.mul_(scale).to(tokens.dtype).flatten(2)
        out[chunk.views, chunk.pixels] += scores @ chunk.seen
        to_seen = (scores.transpose(1, 2) @ chunk.reference).view(-1, *tokens.shape[1:])
        out.index_add_(0, where.others[chunk.views].flatten(), to_seen.to(out.dtype))


def _by_triton(tokens: Tensor) -> bool:
    return cuda.has_kernels(tokens.device)


def _chunks(tokens: Tensor, where: FlatSweep) -> Iterator[_Chunk]:
    """Splits the work into pieces whose correlations fit into the budget."""
    views, pixels, _ = tokens.shape
    budget = BUDGET_CPU if tokens.device.type == "cpu" else BUDGET
    rows = max(1, budget // (tokens.element_size() * where.others.shape[1] * pixels))
    step = max(1, rows // pixels)
    for first in range(0, views, step):
        chosen = slice(first, first + step)
        seen = tokens[where.others[chosen]].flatten(1, 2)
        for start in range(0, pixels, rows):
            part = slice(start, start + rows)
            yield _Chunk(chosen, part, tokens[chosen, part], seen)


def _grid(where: FlatSweep, chunk: _Chunk) -> Tensor:
    """Returns where to sample, for `grid_sample`: [view · pixel · other, plane, 1, 2]."""
    size = (where.height, where.width)
    coordinates = sweep.source_coordinates(
        where.homographies[chunk.views], where.inv_depth[chunk.views, None], *size,
        where.pixel_center,
    )  # fmt: skip
    grid = normalize(coordinates, *size).flatten(3, 4)[:, :, :, chunk.pixels]
    return grid.permute(0, 3, 1, 2, 4).flatten(0, 2)[:, :, None]


def _look_up(scores: Tensor, where: FlatSweep, chunk: _Chunk) -> Tensor:
    """Returns the samples, summed over the other views: [view, pixel, plane]."""
    # Bilinear, zero padding. Not `grid_sample`: on CUDA that is cuDNN's, which
    # refuses 65,536 images (pytorch/pytorch#88380), and each pixel is one here.
    images = scores.flatten(0, 2).float().view(-1, 1, where.height, where.width)
    samples = torch.ops.aten.grid_sampler_2d(images, _grid(where, chunk), 0, 0, False)
    return samples.view(*scores.shape[:3], -1).sum(dim=2)


def _scatter(gradient: Tensor, where: FlatSweep, chunk: _Chunk) -> Tensor:
    """Returns the gradient of the scores: [view, pixel, other, source pixel]."""
    others = where.others.shape[1]
    images = gradient[:, :, None].expand(-1, -1, others, -1).reshape(-1, 1, gradient.shape[2], 1)
    shape = (len(images), 1, where.height, where.width)
    # Needs the values of the scores only for the gradient of the grid
    scores, _ = torch.ops.aten.grid_sampler_2d_backward(
        images, gradient.new_empty(1).expand(shape), _grid(where, chunk), 0, 0, False, [True, False]
    )
    return scores.view(*gradient.shape[:2], others, -1)
