"""LPIPS of the rendered color: perceptual distance in the features of VGG-16."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..contracts import LPIPS, Loss
from ..foundation.lpips import load
from ..nn.maps import move_to
from ..types import StepOutput

WANTS = {LPIPS}


@dataclass
class Config:
    net: str = "vgg16"  # vgg16 (published training) or alexnet (a fifth of the time)
    weights: str | None = None  # a local .npz; None searches as foundation/lpips.py says


def build(cfg: Config) -> Loss:
    """The mean LPIPS between the last rendering, not clamped, and the target images.

    Gradients reach the rendering alone. Raises Unavailable where the weights cannot be had,
    UserError for a model that predicts depth alone.
    """
    distance = load(cfg.net, cfg.weights)

    def lpips(step: StepOutput) -> Float[Tensor, ""]:
        color = step.rendering.color
        move_to(distance, color.device)
        return distance(color.flatten(0, 1), step.batch.target.images.flatten(0, 1)).mean()

    return lpips
