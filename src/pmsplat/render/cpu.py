"""Rasterisation on the CPU with numba, in parallel over Gaussians and tiles.

The result has the same bits for any number of threads. The kernels are in `_cpu_blend.py` and
`_cpu_projection.py`. They must not be called in a process forked from one that has called them (GNU
OpenMP terminates it): a Dataset that rasterises needs spawned workers.
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..geometry import camera, sh
from ..types import CLASSIC, Cameras, DrawingRules, Gaussians
from . import _cpu_blend as kernels
from . import _cpu_first, _cpu_projection, _projection
from ._projection import Blend, Splats

LICENSE = "MIT, as all of pmsplat"

compile_beside = _cpu_first.compile_beside


def near_to_far(z: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Returns the indices of the drawn Gaussians, sorted by z, ties by index."""
    drawn = np.flatnonzero(extent[:, 0] > 0)
    if z.dtype != np.float32:
        return drawn[np.argsort(z[drawn], kind="stable")]
    # Positive floats are ordered like their bits, and numpy sorts integers several times faster.
    keys = z[drawn].view(np.uint32).astype(np.uint64) << np.uint64(32) | drawn.astype(np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


class _Project(torch.autograd.Function):
    """Means, scales and quaternions -> the xy, conic, z, compensation and extent of splats.

    The compensation, which multiplies opacities, is empty where the rules are not antialiased.
    """

    @staticmethod
    def forward(ctx: Any, means, scales, quats, reach_squared, cameras, size, rules) -> Any:
        height, width = size
        inputs = [tensor.detach().contiguous() for tensor in (means, scales, quats)]
        shape = (len(means), cameras.shape[1], means.shape[1])
        xy, conic, z, extent = (means.new_empty(*shape, *n) for n in ((2,), (3,), (), (2,)))
        compensation = z.new_empty(*shape[:2], shape[2] if rules.antialiased else 0)
        arrays = [tensor.numpy() for tensor in (*inputs, reach_squared.contiguous(), cameras)]
        out = [tensor.numpy() for tensor in (xy, conic, z, compensation, extent)]
        for b in range(len(means)):
            _cpu_projection.project(
                *(x[b] for x in arrays), width, height, rules.blur, *(x[b] for x in out)
            )
        ctx.save_for_backward(*inputs, cameras)
        ctx.blur = rules.blur
        ctx.mark_non_differentiable(extent)
        return xy, conic, z, compensation, extent

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        given = [tensor.contiguous().numpy() for tensor in grads[:4]]
        arrays = [tensor.numpy() for tensor in ctx.saved_tensors]
        out = [torch.zeros_like(tensor) for tensor in ctx.saved_tensors[:3]]
        for b in range(len(out[0])):
            _cpu_projection.project_back(
                *(x[b] for x in arrays), ctx.blur,
                *(x[b] for x in given), *(x[b].numpy() for x in out),
            )  # fmt: skip
        return *out, None, None, None, None


class _Shade(torch.autograd.Function):
    """SH basis [batch, target, gaussian, sh] and coefficients -> colours."""

    @staticmethod
    def forward(ctx: Any, basis, coefficients) -> Tensor:
        basis, coefficients = basis.detach().contiguous(), coefficients.detach().contiguous()
        color = basis.new_empty(*basis.shape[:3], 3)
        for b in range(len(basis)):
            _cpu_projection.shade(basis[b].numpy(), coefficients[b].numpy(), color[b].numpy())
        ctx.save_for_backward(basis, coefficients, color)
        return color

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        arrays = [x.numpy() for x in (*ctx.saved_tensors, grads[0].contiguous())]
        out = [torch.zeros_like(tensor) for tensor in ctx.saved_tensors[:2]]
        for b in range(len(out[0])):
            _cpu_projection.shade_back(*(x[b] for x in arrays), *(x[b].numpy() for x in out))
        return tuple(out)


def project(
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    sh_degree: int | None = None,
    rules: DrawingRules = CLASSIC,
) -> Splats:
    """Computes `_projection.project`, several times faster."""
    height, width = size
    K = camera.K_px(cameras.K, height, width)
    fx, fy, cx, cy = K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2]
    columns = [fx, fy, cx, cy, *_projection.tilt_limits(fx, cx, width, rules)]
    columns += _projection.tilt_limits(fy, cy, height, rules)
    columns += [rules.near * cameras.near, _projection.far_plane(cameras, rules)]
    rows = _projection.world_to_camera(cameras)[..., :3, :].flatten(-2)
    packed = torch.cat([rows, torch.stack(columns, dim=-1)], dim=-1).double().contiguous()
    reach_squared = _projection.reach_squared(gaussians.opacities.detach())
    xy, conic, z, compensation, extent = _Project.apply(
        gaussians.means, gaussians.scales, gaussians.quats_wxyz, reach_squared, packed, size, rules
    )
    opacity = gaussians.opacities[:, None]
    if rules.antialiased:
        opacity = opacity * compensation
    directions = _projection.view_directions(gaussians, cameras)
    degree = gaussians.sh_degree if sh_degree is None else sh_degree
    color = _Shade.apply(sh.basis(directions, degree), gaussians.sh)
    return Splats(xy=xy, conic=conic, z=z, color=color, opacity=opacity, extent=extent)


@dataclass(frozen=True)
class _Image:
    """The arrays of one image that the backward pass needs again."""

    order: np.ndarray
    start: np.ndarray
    first: np.ndarray
    place: np.ndarray
    records: np.ndarray
    spans: np.ndarray


class _Composite(torch.autograd.Function):
    """Splats -> [batch, target, channel, height, width]: alpha, rgb, z, median, attributes."""

    @staticmethod
    def forward(ctx: Any, xy, conic, opacities, color, z, attributes, extent, size, cap) -> Tensor:
        height, width = size
        tiles = [-(-length // kernels.TILE) for length in size]
        inputs = [t.detach().contiguous() for t in (xy, conic, opacities, color, z, attributes)]
        batch, targets = z.shape[:2]
        xy_, conic_, opacities_, color_, z_, attributes_ = _rows(inputs, targets)
        extent_ = extent.contiguous().numpy()
        channels = kernels.IMAGE_ATTRIBUTES + attributes.shape[-1]
        drawn = xy.new_zeros(batch, targets, channels, height, width)
        ctx.images = []
        for b, t in np.ndindex(batch, targets):
            order = near_to_far(z_[b, t], extent_[b, t])
            boxes = kernels.boxes_of(order, xy_[b, t], extent_[b, t], height, width)
            start, first, place = kernels.pair(boxes, *tiles)
            records, spans = kernels.records_of(
                order, boxes, first, place,
                xy_[b, t], conic_[b, t], opacities_[b, t], color_[b, t], z_[b, t], attributes_[b],
            )  # fmt: skip
            kernels.draw(records, spans, start, cap, drawn[b, t].numpy())
            ctx.images.append(_Image(order, start, first, place, records, spans))
        ctx.save_for_backward(*inputs, drawn)
        ctx.cap = cap
        return drawn

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        *inputs, drawn = ctx.saved_tensors
        given, values = grads[0].contiguous().numpy(), drawn.numpy()
        out = [torch.zeros_like(tensor) for tensor in inputs]
        xy, conic, opacities, color, z, attributes = _rows(out, drawn.shape[1])
        for (b, t), image in zip(np.ndindex(*z.shape[:2]), ctx.images, strict=True):
            pairs = kernels.replay(
                image.records, image.spans, image.start, ctx.cap, values[b, t], given[b, t]
            )
            kernels.add_pairs(
                pairs, image.first, image.place, image.order,
                xy[b, t], conic[b, t], opacities[b, t], color[b, t], z[b, t], attributes[b],
            )  # fmt: skip
        return *out, None, None, None


def _rows(tensors: list[Tensor], targets: int) -> tuple[np.ndarray, ...]:
    """What `_Composite` reads and writes, as arrays; targets that share opacities share memory."""
    xy, conic, opacities, color, z, attributes = tensors
    parts = (xy, conic, opacities.expand(-1, targets, -1), color, z, attributes)
    return tuple(part.numpy() for part in parts)


def composite(
    splats: Splats, attributes: Tensor | None, size: tuple[int, int], alpha_cap: float
) -> Blend:
    """Blends splats; differentiable in everything except their extents."""
    z, features = splats.z, attributes
    if features is None:
        features = z.new_zeros(len(z), z.shape[2], 0)
    drawn = _Composite.apply(
        splats.xy, splats.conic, splats.opacity, splats.color, z, features, splats.extent,
        size, alpha_cap,
    )  # fmt: skip
    return Blend(
        color=drawn[:, :, kernels.IMAGE_ALPHA + 1 : kernels.IMAGE_DEPTH],
        depth=drawn[:, :, kernels.IMAGE_DEPTH],
        alpha=drawn[:, :, kernels.IMAGE_ALPHA],
        attributes=None if attributes is None else drawn[:, :, kernels.IMAGE_ATTRIBUTES :],
        depth_median=drawn[:, :, kernels.IMAGE_MEDIAN].detach(),
        screen=splats.screen,
    )


def threads() -> int:
    """Returns the number of threads that numba's kernels use."""
    return numba.get_num_threads()


def set_threads(count: int) -> None:
    """Sets the number of threads of numba's kernels, at most the number of cores."""
    numba.set_num_threads(count)


def obstacle(device: torch.device) -> UserError | None:
    """Returns the reason why this backend cannot draw on `device`, or None if it can."""
    if device.type == "cpu":
        return None
    return UserError(
        f"the renderer 'cpu' was given tensors on {device}",
        "tensors on the CPU",
        "move them with .to('cpu'), or choose the renderer 'auto'",
    )


def blend(
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    attributes: Tensor | None,
    sh_degree: int | None,
    median: bool,
    rules: DrawingRules,
) -> Blend:
    """Projects and blends all scenes, as `rasterize` expects of a backend."""
    _cpu_first.wait()
    gaussians, attributes = _projection.finite(gaussians, attributes)
    splats = project(gaussians, cameras, size, sh_degree, rules)
    return composite(splats, attributes, size, rules.alpha_cap)
