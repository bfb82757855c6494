"""Rasterisation on the CPU with numba, in parallel over Gaussians and tiles.

The same bits come out for any number of threads. The kernels are in `_cpu_blend.py`. They must not
be called in a process forked from one that has called them (GNU OpenMP ends it): a Dataset that
rasterises wants spawned workers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..types import Cameras, Gaussians
from . import _cpu_blend as kernels
from . import _projection
from ._projection import Blend, Splats


def near_to_far(z: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Indices of the drawn Gaussians by z, equal z by index."""
    drawn = np.flatnonzero(extent[:, 0] > 0)
    if z.dtype != np.float32:
        return drawn[np.argsort(z[drawn], kind="stable")]
    # Positive floats order like their bits; numpy sorts plain integers several times faster
    keys = z[drawn].view(np.uint32).astype(np.uint64) << np.uint64(32) | drawn.astype(np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


@dataclass(frozen=True)
class _Image:
    """What drawing an image leaves behind for its backward pass."""

    order: np.ndarray
    start: np.ndarray
    first: np.ndarray
    place: np.ndarray
    records: np.ndarray
    spans: np.ndarray


class _Composite(torch.autograd.Function):
    """Splats to [batch, target, (alpha, red, green, blue, z, median, attributes), height, width]."""

    @staticmethod
    def forward(ctx: Any, xy, conic, opacities, color, z, attributes, extent, size) -> Tensor:
        height, width = size
        tiles = [-(-length // kernels.TILE) for length in size]
        inputs = [t.detach().contiguous() for t in (xy, conic, opacities, color, z, attributes)]
        each, faint = [t.numpy() for t in inputs], extent.contiguous().numpy()
        xy_, conic_, opacities_, color_, z_, attributes_ = each
        batch, targets = z.shape[:2]
        channels = kernels.IMAGE_ATTRIBUTES + attributes.shape[-1]
        drawn = xy.new_zeros(batch, targets, channels, height, width)
        ctx.images = []
        for b, t in np.ndindex(batch, targets):
            order = near_to_far(z_[b, t], faint[b, t])
            boxes = kernels.boxes_of(order, xy_[b, t], faint[b, t], height, width)
            start, first, place = kernels.pair(boxes, *tiles)
            records, spans = kernels.records_of(
                order, boxes, first, place,
                xy_[b, t], conic_[b, t], opacities_[b], color_[b, t], z_[b, t], attributes_[b],
            )  # fmt: skip
            kernels.draw(records, spans, start, drawn[b, t].numpy())
            ctx.images.append(_Image(order, start, first, place, records, spans))
        ctx.save_for_backward(*inputs, drawn)
        return drawn

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        *inputs, drawn = ctx.saved_tensors
        given, values = grads[0].contiguous().numpy(), drawn.numpy()
        out = [torch.zeros_like(tensor) for tensor in inputs]
        xy, conic, opacities, color, z, attributes = (tensor.numpy() for tensor in out)
        for (b, t), image in zip(np.ndindex(*z.shape[:2]), ctx.images, strict=True):
            pairs = kernels.replay(
                image.records, image.spans, image.start, values[b, t], given[b, t]
            )
            kernels.add_pairs(
                pairs, image.first, image.place, image.order,
                xy[b, t], conic[b, t], opacities[b], color[b, t], z[b, t], attributes[b],
            )  # fmt: skip
        return *out, None, None


def composite(
    splats: Splats, opacities: Tensor, attributes: Tensor | None, size: tuple[int, int]
) -> Blend:
    """Blends splats, differentiably in everything but their extents."""
    features = opacities.new_zeros(*opacities.shape, 0) if attributes is None else attributes
    drawn = _Composite.apply(
        splats.xy, splats.conic, opacities, splats.color, splats.z, features, splats.extent, size
    )
    return Blend(
        color=drawn[:, :, kernels.IMAGE_ALPHA + 1 : kernels.IMAGE_DEPTH],
        depth=drawn[:, :, kernels.IMAGE_DEPTH],
        alpha=drawn[:, :, kernels.IMAGE_ALPHA],
        attributes=None if attributes is None else drawn[:, :, kernels.IMAGE_ATTRIBUTES :],
        depth_median=drawn[:, :, kernels.IMAGE_MEDIAN].detach(),
        screen=splats.screen,
    )


def obstacle(device: torch.device) -> UserError | None:
    """Why this backend cannot draw tensors of `device`, if so."""
    if device.type == "cpu":
        return None
    return UserError(
        f"the renderer 'cpu' was given tensors on {device}",
        "tensors on the CPU",
        "move them with .to('cpu') or choose backend='auto'",
    )


def blend(
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    attributes: Tensor | None,
    sh_degree: int | None,
    median: bool,
) -> Blend:
    """What `rasterize` wants of a backend."""
    gaussians, attributes = _projection.finite(gaussians, attributes)
    splats = _projection.project(gaussians, cameras, size, sh_degree)
    return composite(splats, gaussians.opacities, attributes, size)
