"""The plane sweep by warping feature maps plane by plane: for large maps where nothing is compiled.

The work grows with pixels · planes, the memory with pixels; `BUDGET` bounds the warped features.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..geometry import sweep
from ._sweep import FlatSweep, normalize

BUDGET = 128 * 2**20  # bytes of warped features held


def forward(tokens: Tensor, where: FlatSweep, scale: float, out: Tensor) -> None:
    """Writes scale · Σ_o <token, sampled token of view o> to `out` [view, pixel, plane]."""
    maps = _maps(tokens, where)
    for other in range(where.others.shape[1]):
        for view, planes, grid in _pieces(tokens, where, other):
            seen = maps[where.others[view, other]]
            samples = torch.ops.aten.grid_sampler_2d(seen, grid, 0, 0, False)
            samples = samples.unflatten(2, (-1, where.height))  # view channel plane height width
            product = torch.einsum("nchw,ncdhw->nhwd", maps[view], samples) * scale
            out[view, :, planes] += product.flatten(1, 2)


def backward(gradient: Tensor, tokens: Tensor, where: FlatSweep, scale: float, out: Tensor) -> None:
    """Adds the gradient of `tokens` to `out` [view, pixel, channel], float32."""
    maps = _maps(tokens, where)
    for other in range(where.others.shape[1]):
        for view, planes, grid in _pieces(tokens, where, other):
            source = where.others[view, other]
            seen, reference = maps[source], maps[view]
            step = gradient[view, :, planes].transpose(1, 2) * scale
            step = step.unflatten(2, (where.height, where.width))  # view plane height width
            samples = torch.ops.aten.grid_sampler_2d(seen, grid, 0, 0, False)
            samples = samples.unflatten(2, (-1, where.height))
            out[view] += torch.einsum("ndhw,ncdhw->nhwc", step, samples).flatten(1, 2)
            samples = (reference[:, :, None] * step[:, None]).flatten(2, 3)
            to_seen, _ = torch.ops.aten.grid_sampler_2d_backward(
                samples, seen, grid, 0, 0, False, [True, False]
            )
            out.index_add_(0, source, to_seen.flatten(2).transpose(1, 2))


def _maps(tokens: Tensor, where: FlatSweep) -> Tensor:
    """Returns [view, channel, height, width], float32."""
    return tokens.float().transpose(1, 2).unflatten(2, (where.height, where.width))


def _pieces(tokens: Tensor, where: FlatSweep, other: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yields views, planes and where to sample, [view, plane · height, width, 2], in pieces."""
    planes, size = where.inv_depth.shape[1], (where.height, where.width)
    count = max(1, BUDGET // (4 * tokens[0].numel()))  # warped maps at once
    views, count = max(1, count // planes), min(count, planes)
    for first in range(0, len(tokens), views):
        view = slice(first, first + views)
        for start in range(0, planes, count):
            part = slice(start, start + count)
            coordinates = sweep.source_coordinates(
                where.homographies[view, other], where.inv_depth[view, part], *size,
                where.pixel_center,
            )  # fmt: skip
            yield view, part, normalize(coordinates, *size).flatten(1, 2)
