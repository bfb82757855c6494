"""The mean opacity of the predicted Gaussians, so that those that no picture needs fade.

Ziwen et al., "Long-LRM: Long-sequence Large Reconstruction Model for Wide-coverage Gaussian
Splats", ICCV 2025 (arXiv 2410.12781), where its weight is 0.1; so too YoNoSplat (arXiv 2511.07321).
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..contracts import Loss
from ..errors import UserError
from ..types import StepOutput


@dataclass
class Config:
    """Nothing to set: the mean runs over scenes and Gaussians, whatever share of them is drawn."""


def build(cfg: Config) -> Loss:
    """The mean opacity of the last level, in [0, 1]; gradients reach the opacities alone.

    Raises UserError for a model that predicts depth alone.
    """

    def opacity(step: StepOutput) -> Float[Tensor, ""]:
        if not step.prediction.gaussians:
            raise UserError(
                "loss.opacity for a model that predicts depth alone",
                "a model with Gaussians",
                "drop it: ~loss.opacity",
            )
        return step.prediction.gaussians[-1].opacities.float().mean()

    return opacity
