"""The network between two units of length: that of the user's cameras, and the one it learned."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..models._fit import fitted
from ..types import Cameras, Prediction, Views

NEAR = 0.5  # the near of the scenes that most networks learned from, in their unit


@dataclass(frozen=True)
class Span:
    """The depths that the network searches in every view of a scene, in the user's unit, and the
    near of the scenes it learned from, in its own."""

    near: float
    far: float
    learned: float

    @property
    def scale(self) -> float:
        """How much larger the network sees the world."""
        return self.learned / self.near


def whole_span(cameras: Cameras, model: Callable[[Views], Prediction]) -> Span:
    """From the nearest near to the farthest far of the cameras, for an encoder that may say its
    `near`."""
    learned = getattr(model, "near", NEAR)
    return Span(float(cameras.near.min()), float(cameras.far.max()), learned)


def answer(
    model: Callable[[Views], Prediction],
    views: Views,
    span: Span,
    device: torch.device | str = "cpu",
) -> Prediction:
    """The model's answer, in the unit of the views, on `device`; no gradient.

    Networks learn sizes in a unit in which near is always the same: the scene is scaled until that
    of `span` is it; depths and Gaussians are scaled back. Images of any size will do.
    """
    cameras = views.cameras
    near = torch.full_like(cameras.near, span.near)
    far = torch.full_like(cameras.far, span.far)
    scaled = replace(cameras, near=near, far=far).scaled(span.scale)
    with torch.no_grad():
        multiple = getattr(model, "multiple", 1)
        found = fitted(model, Views(views.images, scaled).to(device), multiple)
    return found.scaled(1 / span.scale)
