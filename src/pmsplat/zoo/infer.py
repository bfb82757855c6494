"""The network between two units of length: that of the user's cameras, and the one it learned."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..errors import UserError
from ..models._padding import predict_padded
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
        found = predict_padded(model, Views(views.images, scaled).to(device), multiple)
    return found.scaled(1 / span.scale)


@dataclass(frozen=True)
class Reconstruction:
    """A prediction in the unit of its input, and how much larger the network saw the world."""

    prediction: Prediction
    scale: float


def infer(model: Callable[[Views], Prediction], views: Views) -> Prediction:
    """What an encoder says of photographs, in their unit of length and on its device; no gradient.

    As `predict` and `depth` ask it: with the scene scaled to the unit that the encoder learned in,
    and one range of depth for all views. `model(views)` itself takes the unit as it is, which is
    right for data in the encoder's own unit (RealEstate10K, DL3DV), and for training.
    """
    device = views.images.device
    if isinstance(model, nn.Module):
        device = next((parameter.device for parameter in model.parameters()), device)
    return answer(model, views, whole_span(views.cameras, model), device)


def reconstruct(
    model: Callable[[Views], Prediction], views: Views, device: torch.device | str = "cpu"
) -> Reconstruction:
    """The model's answer, in the unit of the views, on `device`.

    One span holds for all, from the nearest near to the farthest far: see `answer`. Raises
    UserError for a model that predicts depth alone.
    """
    span = whole_span(views.cameras, model)
    prediction = answer(model, views, span, device)
    if not prediction.gaussians:
        raise depth_alone()
    return Reconstruction(prediction, span.scale)


def depth_alone() -> UserError:
    """What to raise for a model without Gaussians where they are wanted."""
    return UserError(
        "a model that predicts depth alone",
        "one that predicts Gaussians",
        "choose another --model, or run `pmsplat depth`",
    )
