"""Distance of the predicted depth of the context views from known depth."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..types import StepOutput
from ._schedule import Loss


@dataclass
class Config:
    """Nothing to set: the error is relative, so scenes of any scale count alike."""


def build(cfg: Config) -> Loss:
    """The mean |log(depth / known depth)| over the context pixels that have one.

    0 where no pixel has one. Gradients reach the depth, not the Gaussians. Raises UserError for
    data without depth.
    """

    def depth(step: StepOutput) -> Float[Tensor, ""]:
        known = step.batch.context.depth
        if known is None:
            raise UserError(
                "loss.depth on a dataset without depth",
                "data that brings it",
                "drop it: ~loss.depth",
            )
        counts = known > 0
        ratio = step.prediction.depths[-1].float()[counts] / known[counts]
        return ratio.log().abs().sum() / counts.sum().clamp(min=1)

    return depth
