"""Plane sweep: depth hypotheses of a reference view carried into a source view.

Source coordinates are in index space: (0, 0) is the centre of the first sample of the feature map,
so they can be handed to a bilinear look-up as they are.
"""

import torch
from jaxtyping import Float
from torch import Tensor

MIN_Z = 1e-3  # nearest z that is divided by; what lies nearer projects far outside the image


def inverse_depth_planes(
    near: Float[Tensor, "*#batch"], far: Float[Tensor, "*#batch"], planes: int
) -> Float[Tensor, "*_ plane"]:
    """Inverse depths evenly spaced from 1/far up to 1/near."""
    steps = torch.linspace(0, 1, planes, device=near.device, dtype=near.dtype)
    low, high = 1 / far, 1 / near
    return low[..., None] + steps * (high - low)[..., None]


def homography(
    ref_to_src: Float[Tensor, "*#batch 4 4"],
    K_ref_px: Float[Tensor, "*#batch 3 3"],
    K_src_px: Float[Tensor, "*#batch 3 3"],
) -> Float[Tensor, "*_ 3 4"]:
    """[A | b] with source pixel ~ A · (x, y, 1) · z + b for reference pixel (x, y) at depth z."""
    linear = K_src_px @ ref_to_src[..., :3, :3] @ torch.linalg.inv(K_ref_px)
    return torch.cat([linear, K_src_px @ ref_to_src[..., :3, 3:]], dim=-1)


def source_coordinates(
    homographies: Float[Tensor, "*#batch 3 4"],
    inv_depth: Float[Tensor, "*#batch plane height_or_1 width_or_1"],
    height: int,
    width: int,
    pixel_center: float = 0.5,
) -> Float[Tensor, "*_ plane height width 2"]:
    """Where every reference pixel lands in the source map, (x, y) in index space, per hypothesis.

    `homographies` are in pixels of the feature map; `inv_depth` is per plane, or per plane and
    pixel. `pixel_center` is where in its square a pixel's ray starts (published networks used 0).
    Points nearer than MIN_Z to the source camera's plane are divided by MIN_Z, as published.
    """
    like = homographies
    y = torch.arange(height, device=like.device, dtype=like.dtype) + pixel_center
    x = torch.arange(width, device=like.device, dtype=like.dtype) + pixel_center
    a = homographies[..., None, None, :, :]
    # A · (x, y, 1), kept as [*batch, height, width, 3]
    linear = x[:, None] * a[..., 0] + y[:, None, None] * a[..., 1] + a[..., 2]
    points = linear[..., None, :, :, :] / inv_depth[..., None] + a[..., None, :, :, :, 3]
    return points[..., :2] / points[..., 2:].clamp_min(MIN_Z) - pixel_center
