"""Smoothness of the predicted depth of the context views, except at the edges of the photographs.

Godard et al., "Unsupervised Monocular Depth Estimation with Left-Right Consistency", CVPR 2017, of
inverse depth divided by its mean (Wang et al., "Learning Depth from Monocular Videos using Direct
Methods", CVPR 2018), as ReSplat trains its initial model (Xu et al., arXiv 2510.08575).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..contracts import Loss
from ..types import StepOutput

SMALL = 1e-7  # keeps the quotient finite


@dataclass
class Config:
    """Nothing to set: inverse depth is relative to its mean, so scenes of any scale count alike."""


def build(cfg: Config) -> Loss:
    """mean |Δx d| exp(-|Δx I|) + mean |Δy d| exp(-|Δy I|), averaged over the context views.

    d is the inverse depth of a view, divided by its mean; I its photograph in [0, 1], whose
    differences are averaged over the channels. None for a level without a depth of its own.
    Gradients reach the depth, not the Gaussians.
    """

    def smoothness(step: StepOutput) -> Float[Tensor, ""] | None:
        if step.depth is None:
            return None
        images = step.context.images
        inverse = 1 / step.depth.to(images.dtype)
        relative = inverse / (inverse.mean(dim=(-2, -1), keepdim=True) + SMALL)
        return _unevenness(relative, images, -1) + _unevenness(relative, images, -2)

    return smoothness


def _unevenness(
    maps: Float[Tensor, "batch view height width"],
    images: Float[Tensor, "batch view 3 height width"],
    axis: int,
) -> Float[Tensor, ""]:
    """The mean difference of neighbors along an axis, less where the images differ too."""
    edges = torch.diff(images, dim=axis).abs().mean(dim=2)
    return (torch.diff(maps, dim=axis).abs() * torch.exp(-edges)).mean()
