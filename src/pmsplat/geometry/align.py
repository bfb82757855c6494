"""Alignment of points and depths in closed form."""

import torch
from jaxtyping import Float
from torch import Tensor


def umeyama(
    source: Float[Tensor, "*#batch point 3"],
    target: Float[Tensor, "*#batch point 3"],
    weights: Float[Tensor, "*#batch point"] | None = None,
) -> Float[Tensor, "*_ 4 4"]:
    """The similarity [sR t] that takes `source` to `target` with least weighted squared error.

    Weights are non-negative, uniform by default. Differentiable in points and weights where the
    singular values differ. Umeyama, "Least-squares estimation of transformation parameters between
    two point patterns", PAMI 1991.
    """
    if weights is None:
        weights = torch.ones_like(source[..., 0])
    w = (weights / weights.sum(dim=-1, keepdim=True))[..., None]
    mean_source = (w * source).sum(dim=-2, keepdim=True)
    mean_target = (w * target).sum(dim=-2, keepdim=True)
    x, y = source - mean_source, target - mean_target
    u, s, vh = torch.linalg.svd((w * y).transpose(-1, -2) @ x)
    sign = torch.linalg.det(u) * torch.linalg.det(vh)
    flip = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign.sign()], dim=-1)
    rotation = (u * flip[..., None, :]) @ vh
    scale = (s * flip).sum(dim=-1) / (w * x * x).sum(dim=(-1, -2))
    linear = scale[..., None, None] * rotation
    translation = mean_target - mean_source @ linear.transpose(-1, -2)
    top = torch.cat([linear, translation.transpose(-1, -2)], dim=-1)
    bottom = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, bottom], dim=-2)
