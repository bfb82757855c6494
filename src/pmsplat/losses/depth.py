"""Distance of the predicted depth of the context views from known depth, in inverse depth.

The objective of DepthSplat's depth models: Xu et al., "DepthSplat: Connecting Gaussian Splatting
and Depth", CVPR 2025, after Xu et al., "Unifying Flow, Stereo and Depth Estimation", TPAMI 2023
(UniMatch). As the papers have it; UniMatch's code drops the signs of both gradients, so that a
surface sloping the wrong way costs it nothing.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..contracts import Loss
from ..errors import UserError
from ..registry import check_settings, number
from ..types import StepOutput


@dataclass
class Config:
    value: float = 20.0  # weight of the error of inverse depth
    gradient: float = 20.0  # weight of the error of its differences between neighbouring pixels

    def __post_init__(self) -> None:
        check_settings(self, {"value": number(0), "gradient": number(0)}, "loss.depth.")


def build(cfg: Config) -> Loss:
    """`value` · mean |e| + `gradient` · (mean |Δx e| + mean |Δy e|), e the error of 1 / depth.

    Means run over the context pixels with known depth, and over the neighbours, beside and below
    each other, that both have one; 0 where there are none. In inverse scene units: the weights are
    meant for scenes whose near is about 0.5. Gradients reach the depth of known pixels alone, not
    the Gaussians. Raises UserError for data without depth.
    """

    def depth(step: StepOutput) -> Float[Tensor, ""] | None:
        known = known_depth(step, "depth")
        if step.depth is None:
            return None
        counts = known > 0
        predicted = step.depth.to(known.dtype)
        error = 1 / torch.where(counts, predicted, 1) - 1 / torch.where(counts, known, 1)
        beside = error[..., 1:] - error[..., :-1]
        below = error[..., 1:, :] - error[..., :-1, :]
        gradient = _mean(beside, counts[..., 1:] & counts[..., :-1])
        gradient = gradient + _mean(below, counts[..., 1:, :] & counts[..., :-1, :])
        return cfg.value * _mean(error, counts) + cfg.gradient * gradient

    return depth


def known_depth(step: StepOutput, loss: str) -> Float[Tensor, "batch view height width"]:
    """The known depth of the views that were predicted, 0 = none; UserError without any."""
    known = step.context.depth
    if known is None:
        raise UserError(
            f"loss.{loss} on a dataset without depth",
            "data that brings it",
            f"choose other data, or drop the loss: ~loss.{loss}",
        )
    return known


def _mean(error: Float[Tensor, "*shape"], counts: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The mean |error| where `counts`; 0 where nothing does."""
    return torch.where(counts, error, 0).abs().sum() / counts.sum().clamp(min=1)
