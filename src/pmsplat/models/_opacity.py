"""Opacity that the photographs correct: where Gaussians of two views disagree, drawing both views
tells which one stands before what is seen.

A few steps of Adam (Kingma and Ba, ICLR 2015) on the squared error of the context views, as
optimized scenes are fitted (Kerbl et al., "3D Gaussian Splatting", SIGGRAPH 2023), of one number of
each Gaussian: nothing moves, and nothing is learned.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..render import rasterize
from ..types import Gaussians, Views

RATE = 1.5  # of a step, before the sigmoid
BETAS = (0.9, 0.999)
SLOPE = 0.1  # of the squared error, summed over pixels: smaller ones hardly count
LEAST = 1e-4  # of opacity, and of what is left to 1, where the steps begin


@torch.inference_mode(False)  # whose tensors have no gradient
def correct_opacity(gaussians: Gaussians, views: Views, steps: int) -> tuple[Gaussians, ...]:
    """The Gaussians after each of so many steps; only their opacity differs, without gradient.

    `gaussians` are a prediction of `views`, to whose pictures they are fitted. Scenes of a batch do
    not depend on each other, and the size of the pictures does not change what a step is.
    """
    levels: list[Gaussians] = []
    fixed, seen = gaussians.detach().map(_usual), views.map(_usual)
    logits = gaussians.opacities.detach().float().clamp(LEAST, 1 - LEAST).logit()
    mean, square = torch.zeros_like(logits), torch.zeros_like(logits)
    for step in range(1, steps + 1):
        with torch.enable_grad():
            moving = logits.detach().requires_grad_()
            drawn = replace(fixed, opacities=moving.sigmoid())
            error = rasterize(drawn, seen.cameras, seen.size).color - seen.images
            (slope,) = torch.autograd.grad(error.square().sum(), moving)
        mean = torch.lerp(slope, mean, BETAS[0])
        square = torch.lerp(slope.square(), square, BETAS[1])
        size = (square / (1 - BETAS[1] ** step)).sqrt() + SLOPE
        logits = logits - RATE * mean / (1 - BETAS[0] ** step) / size
        levels.append(replace(gaussians, opacities=logits.sigmoid().to(gaussians.opacities)))
    return tuple(levels)


def _usual(tensor: Tensor) -> Tensor:
    """The same outside of `torch.inference_mode`."""
    return tensor.clone() if tensor.is_inference() else tensor
