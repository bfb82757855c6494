"""Plane sweep: depth hypotheses of a reference view projected into a source view.

Source coordinates are in index space, as bilinear sampling expects them: (0, 0) is the centre of
the first sample of the feature map.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .products import matmul

MIN_Z = 1e-3  # least divisor z; nearer points project far outside the image either way


def inverse_depth_planes(
    near: Float[Tensor, "*#batch"], far: Float[Tensor, "*#batch"], planes: int
) -> Float[Tensor, "*_ plane"]:
    """Returns inverse depths evenly spaced from 1/far up to 1/near."""
    steps = torch.linspace(0, 1, planes, device=near.device, dtype=near.dtype)
    low, high = 1 / far, 1 / near
    return low[..., None] + steps * (high - low)[..., None]


def homography(
    ref_to_src: Float[Tensor, "*#batch 4 4"],
    K_ref_px: Float[Tensor, "*#batch 3 3"],
    K_src_px: Float[Tensor, "*#batch 3 3"],
) -> Float[Tensor, "*_ 3 4"]:
    """Returns [A | b]: reference pixel (x, y) at depth z maps to source A · (x, y, 1) · z + b."""
    # On CUDA the check for a singular K would make the host wait for the device
    K_inverse = torch.linalg.inv_ex(K_ref_px, check_errors=not K_ref_px.is_cuda).inverse
    linear = matmul(matmul(K_src_px, ref_to_src[..., :3, :3]), K_inverse)
    return torch.cat([linear, matmul(K_src_px, ref_to_src[..., :3, 3:])], dim=-1)


def source_coordinates(
    homographies: Float[Tensor, "*#batch 3 4"],
    inv_depth: Float[Tensor, "*#batch plane height_or_1 width_or_1"],
    height: int,
    width: int,
    pixel_center: float = 0.5,
) -> Float[Tensor, "*_ plane height width 2"]:
    """Projects every reference pixel, per hypothesis, to (x, y) in index space of the source map.

    `homographies` are in pixels of the feature map; `inv_depth` is per plane, or per plane and
    pixel. `pixel_center` is the offset of a pixel's ray within the pixel (0 in published networks).
    Where z is below MIN_Z in the source camera, MIN_Z is the divisor, as published.
    """
    like = homographies
    y = torch.arange(height, device=like.device, dtype=like.dtype) + pixel_center
    x = torch.arange(width, device=like.device, dtype=like.dtype) + pixel_center
    a = homographies[..., None, None, :, :]
    # A · (x, y, 1) as [*batch, height, width, 3]
    linear = x[:, None] * a[..., 0] + y[:, None, None] * a[..., 1] + a[..., 2]
    points = linear[..., None, :, :, :] / inv_depth[..., None] + a[..., None, :, :, :, 3]
    return points[..., :2] / points[..., 2:].clamp_min(MIN_Z) - pixel_center
