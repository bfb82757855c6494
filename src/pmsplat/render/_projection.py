"""Projection of Gaussians onto images, and the blending constants that our backends share.

EWA splatting (Zwicker et al., "EWA Volume Splatting", 2001) with the rules of 3D Gaussian Splatting
(Kerbl et al., 2023): the Jacobian is taken at a point clamped to slightly more than the field of
view, and a blur is added to the variances of every splat. Where the rules are antialiased, opacity
makes up for the blur (Yu et al., "Mip-Splatting", 2024). All is batched over scenes and targets.

Gradients are exact. gsplat's of the antialiased opacity is not: it divides by 2 (c + 1e-6) instead
of 2 c, for the factor c. As a splat is drawn where c > 1/255 at least, that is a share of 1/3900.
"""

from dataclasses import dataclass, replace
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..geometry import camera, gaussian, se3, sh
from ..geometry.constants import constant
from ..geometry.products import matmul
from ..types import CLASSIC, Bundle, Cameras, DrawingRules, Gaussians, Screen

# Numba compiles these into its kernels: after a change, delete render/__pycache__.
FIELD_OF_VIEW = 1.3  # how far x/z and y/z reach in the Jacobian, in half fields of view
ALPHA_MIN = 1 / 255  # fainter contributions are skipped
TRANSMITTANCE_MIN = 1e-4  # a Gaussian that would leave less ends its pixel and is not added
MAX_PIXELS = 1e8  # wider or more distant splats are not drawn: float32 would overflow
REACH_MARGIN = 1e-3  # of squared distances, against rounding: blending tests alpha exactly


@dataclass(frozen=True)
class Splats(Bundle):
    """All Gaussians projected into all targets, also those that are not drawn.

    `xy` is in pixels; `conic` is the inverse covariance (xx, xy, yy) in 1/px²; `z` is in scene
    units. `opacity` has a target axis of 1 where it is the same from everywhere: where the rules
    are not antialiased. `extent` is half the width and height in pixels of the box outside which
    alpha < 1/255; it is 0 where a Gaussian is not drawn, and has no gradient.
    """

    xy: Float[Tensor, "batch target gaussian 2"]
    conic: Float[Tensor, "batch target gaussian 3"]
    z: Float[Tensor, "batch target gaussian"]
    color: Float[Tensor, "batch target gaussian 3"]
    opacity: Float[Tensor, "batch target_or_1 gaussian"]
    extent: Float[Tensor, "batch target gaussian 2"]

    @property
    def screen(self) -> Screen:
        return Screen(means=self.xy, radii=self.extent.amax(dim=-1))


@dataclass(frozen=True)
class Blend(Bundle):
    """The output of a backend: sums of weight · feature over the Gaussians of a pixel.

    The weight is alpha times the transmittance in front; `depth` is Σ z · weight. `rasterize` adds
    the background later.
    """

    color: Float[Tensor, "batch target 3 height width"]
    depth: Float[Tensor, "batch target height width"]
    alpha: Float[Tensor, "batch target height width"]
    attributes: Float[Tensor, "batch target channel height width"] | None
    depth_median: Float[Tensor, "batch target height width"] | None
    screen: Screen


def world_to_camera(cameras: Cameras) -> Float[Tensor, "batch target 4 4"]:
    """Returns w2c, sheared if K has skew, so that fx, fy, cx and cy project exactly as K does."""
    skew = cameras.K[..., 0, 1] / cameras.K[..., 0, 0]
    shear = torch.eye(4, device=skew.device, dtype=skew.dtype).repeat(*skew.shape, 1, 1)
    shear[..., 0, 1] = skew
    return matmul(shear, se3.invert(cameras.c2w))


def finite(
    gaussians: Gaussians, attributes: Tensor | None
) -> tuple[Gaussians, Float[Tensor, "batch gaussian channel"] | None]:
    """Returns both inputs with all values 0 in Gaussians that contain a NaN or an infinity.

    Harmonics, which are most of a Gaussian, are copied for that on the CPU alone, and only if there
    is something to clean: elsewhere they stay as they are, and `view_color` is 0 for those.
    """
    on_cpu = gaussians.means.device.type == "cpu"
    parts = [gaussians.means, gaussians.scales, gaussians.quats_wxyz, gaussians.sh.flatten(2)]
    parts += [gaussians.opacities[..., None]] + ([] if attributes is None else [attributes])
    parts = [part.detach() for part in parts]
    if on_cpu and all(part.sum().isfinite() for part in parts):
        return gaussians, attributes
    largest = torch.stack([_largest(part) for part in parts], dim=-1)
    good, zero = _largest(largest) < torch.inf, gaussians.means.new_zeros(())  # NaN is not less

    def clean(tensor: Tensor) -> Tensor:
        mask = good.reshape(good.shape + (1,) * (tensor.ndim - good.ndim))
        return torch.where(mask, tensor, zero)

    cleaned = replace(
        gaussians,
        means=clean(gaussians.means),
        scales=clean(gaussians.scales),
        quats_wxyz=clean(gaussians.quats_wxyz),
        opacities=clean(gaussians.opacities),
        sh=clean(gaussians.sh) if on_cpu else gaussians.sh,
    )
    return cleaned, None if attributes is None else clean(attributes)


def _largest(parts: Float[Tensor, "*batch part"]) -> Float[Tensor, "*batch"]:
    """The largest absolute value; NaN where there is a NaN."""
    return torch.linalg.vector_norm(parts, ord=torch.inf, dim=-1)


def view_color(
    gaussians: Gaussians, cameras: Cameras, sh_degree: int | None = None
) -> Float[Tensor, "batch target gaussian 3"]:
    """Returns the colour of every Gaussian seen from every camera of its scene.

    0, without a gradient, where harmonics that `finite` left alone are not finite.
    """
    color = sh.color(gaussians.sh[:, None], view_directions(gaussians, cameras), sh_degree)
    return color if color.device.type == "cpu" else torch.where(color < torch.inf, color, 0)


def view_directions(
    gaussians: Gaussians, cameras: Cameras
) -> Float[Tensor, "batch target gaussian 3"]:
    """Returns unit world directions from every camera to every Gaussian of its scene."""
    return normalize(gaussians.means[:, None] - cameras.c2w[:, :, None, :3, 3], dim=-1)


def project(
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    sh_degree: int | None = None,
    rules: DrawingRules = CLASSIC,
) -> Splats:
    """Projects every Gaussian into every target of its scene, differentiable in its parameters.

    Gaussians must be finite. Those that are not drawn (too near or too far, outside the image,
    fainter than 1/255, wider than MAX_PIXELS) have extent 0, finite values and zero gradients.
    """
    height, width = size
    w2c = world_to_camera(cameras)
    K = camera.K_px(cameras.K, height, width)[..., None, :, :]
    fx, fy, cx, cy = K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2]
    means_cam = se3.transform(w2c, gaussians.means[:, None])

    # Project the means, with a harmless point in place of those that are culled.
    with torch.no_grad():
        z = means_cam[..., 2]
        reach = torch.maximum(
            means_cam[..., :2].abs().amax(dim=-1), gaussians.scales.amax(-1)[:, None]
        )
        kept = z > rules.near * cameras.near[..., None]
        kept = kept & (z <= far_plane(cameras, rules)[..., None])
        kept = kept & (reach * torch.maximum(fx, fy) < MAX_PIXELS * z)
    ahead = constant((0.0, 0.0, 1.0), means_cam)
    x, y, z = torch.where(kept[..., None], means_cam, ahead).unbind(dim=-1)
    x_over_z, y_over_z = x / z, y / z
    xy = torch.stack([fx * x_over_z + cx, fy * y_over_z + cy], dim=-1)

    # Compute the rows of J R S: the projected axes of a Gaussian, in pixels.
    scales = torch.where(kept[..., None], gaussians.scales[:, None], 0)
    root = gaussian.quat_to_rotation(gaussians.quats_wxyz)[:, None] * scales[..., None, :]
    axes = matmul(w2c[:, :, None, :3, :3], root)
    low_x, high_x = tilt_limits(fx, cx, width, rules)
    low_y, high_y = tilt_limits(fy, cy, height, rules)
    tilt_x = torch.minimum(torch.maximum(x_over_z, low_x), high_x)[..., None]
    tilt_y = torch.minimum(torch.maximum(y_over_z, low_y), high_y)[..., None]
    a = (fx / z)[..., None] * (axes[..., 0, :] - tilt_x * axes[..., 2, :])
    b = (fy / z)[..., None] * (axes[..., 1, :] - tilt_y * axes[..., 2, :])

    # Invert the covariance; |a|²|b|² - (a·b)² = |a×b|² avoids cancellation for thin Gaussians.
    aa, bb, ab = (a * a).sum(dim=-1), (b * b).sum(dim=-1), (a * b).sum(dim=-1)
    cross, blur = torch.linalg.cross(a, b), rules.blur
    determinant = (cross * cross).sum(dim=-1) + blur * (aa + bb) + blur**2
    conic = torch.stack([bb + blur, -ab, aa + blur], dim=-1) / determinant[..., None]
    opacity = gaussians.opacities[:, None]
    if rules.antialiased:
        # The root of det Σ is |a×b|, whose gradient stays finite where a splat becomes a line.
        opacity = opacity * (cross.norm(dim=-1) / determinant.sqrt())

    # Bound each splat; its box is empty where it is not drawn.
    with torch.no_grad():
        variance = torch.stack([aa, bb], dim=-1) + blur
        extent = (reach_squared(opacity)[..., None] * variance).sqrt()
        image = constant((width, height), xy)
        inside = ((xy + extent > 0) & (xy - extent < image)).all(dim=-1)
        extent = torch.where((kept & inside)[..., None], extent, 0)
    color = view_color(gaussians, cameras, sh_degree)
    return Splats(xy=xy, conic=conic, z=z, color=color, opacity=opacity, extent=extent)


def far_plane(cameras: Cameras, rules: DrawingRules) -> Float[Tensor, "batch target"]:
    """Returns the z beyond which nothing is drawn."""
    return rules.far * cameras.far if rules.far < inf else torch.full_like(cameras.far, inf)


def tilt_limits(
    focal: Tensor, principal: Tensor, length: int, rules: DrawingRules
) -> tuple[Tensor, Tensor]:
    """Returns the least and the largest x/z in the Jacobian, or y/z, for intrinsics in pixels.

    `length` is that of the image's side.
    """
    limit = FIELD_OF_VIEW * length / (2 * focal)
    if rules.clamp == "axis":
        return -limit, limit
    middle = (length / 2 - principal) / focal
    return middle - limit, middle + limit


def reach_squared(opacities: Tensor) -> Tensor:
    """Returns the squared Mahalanobis distance at which alpha falls to 1/255, or 0 if it is lower.

    REACH_MARGIN is added.
    """
    squared = 2 * (opacities.clamp_min(ALPHA_MIN) / ALPHA_MIN).log()
    return torch.where(opacities >= ALPHA_MIN, squared + REACH_MARGIN, 0)
