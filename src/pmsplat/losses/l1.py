"""Mean absolute error of the rendered color."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..contracts import Loss
from ..types import StepOutput


@dataclass
class Config:
    """Nothing to set: the mean runs over scenes, targets, channels and pixels."""


def build(cfg: Config) -> Loss:
    """The absolute difference between the last rendering, not clamped, and the target images.

    Raises UserError for a model that predicts depth alone.
    """

    def l1(step: StepOutput) -> Float[Tensor, ""]:
        return (step.rendering.color - step.batch.target.images).abs().mean()

    return l1
