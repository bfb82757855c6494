"""Ratio of the predicted depth of the context views to known depth."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..contracts import Loss
from ..types import StepOutput
from .depth import known_depth


@dataclass
class Config:
    """Nothing to set: the error is relative, so scenes of any scale count alike."""


def build(cfg: Config) -> Loss:
    """The mean |log(depth / known depth)| over the context pixels that have one.

    0 where no pixel has one. Gradients reach the depth, not the Gaussians. Raises UserError for
    data without depth.
    """

    def log_depth(step: StepOutput) -> Float[Tensor, ""] | None:
        known = known_depth(step, "log_depth")
        if step.depth is None:
            return None
        counts = known > 0
        predicted = step.depth.float()
        if known.device.type == "cpu":  # picks them; elsewhere the host would wait for their number
            ratio = predicted[counts] / known[counts]
        else:
            ratio = torch.where(counts, predicted, 1) / torch.where(counts, known, 1)
        return ratio.log().abs().sum() / counts.sum().clamp(min=1)

    return log_depth
