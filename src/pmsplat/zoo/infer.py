"""The unit of length of a model beside that of the scenes: the only place that converts them.

A network learns sizes in one unit of length, in which the nearest depth of every scene is the same
(`near`). Scenes that come in other units are scaled to it before the network, and its predictions
are scaled back. Scenes without a range of depth are in that unit already (`fill_near`).
"""

import traceback
from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..contracts import Encoder, encoder_traits
from ..device import float32_products
from ..errors import UserError
from ..models import require_two_views
from ..types import Cameras, Factor, Prediction, Views
from . import memory


class _Scalable(Protocol):
    def scaled(self, factor: Factor) -> Self: ...


T = TypeVar("T", bound=_Scalable)


@dataclass(frozen=True)
class Unit:
    """The unit of a model beside that of some scenes.

    `factor` is how many times as large the model sees each scene; None: as it is, to the bit.
    """

    factor: Float[Tensor, " batch"] | None = None

    @property
    def scale(self) -> float:
        """The factor of a single scene."""
        return 1.0 if self.factor is None else self.factor.item()

    def to_model(self, value: T) -> T:
        """Views, cameras or batches of the scenes, in the unit of the model."""
        return value if self.factor is None else value.scaled(self.factor)

    def to_scene(self, value: T) -> T:
        """Predictions or renderings of the model, in the unit of the scenes."""
        return value if self.factor is None else value.scaled(1 / self.factor)


def model_unit(model: Encoder, context: Cameras) -> Unit:
    """The unit of `model` for scenes that it sees through these cameras.

    Scenes are scaled until the smallest `near` of their context views equals the model's `near`. A
    model without `near` takes every scene in the scene's own unit.
    """
    near = encoder_traits(model).near
    if near is None:
        return Unit()
    nearest = context.near.amin(dim=1)
    return Unit(torch.full_like(nearest, near) / nearest)


def fill_near(model: Encoder, cameras: Cameras, ranged: bool) -> Cameras:
    """The cameras of a scene, with the near of `model` where the scene has no range (not `ranged`).

    Such a scene is in the unit of the model: its factor is 1. Far stays, and so does near for a
    model without one.
    """
    near = encoder_traits(model).near
    if ranged or near is None:
        return cameras
    return replace(cameras, near=torch.full_like(cameras.near, near))


def predict_views(
    model: Encoder, views: Views, device: torch.device | str = "cpu", unit: Unit | None = None
) -> Prediction:
    """What the model predicts for the views, in their unit of length, on `device`; no gradient.

    In float32, on CUDA too (see `float32_products`). Each view keeps its own near and far. `unit`
    is that of the whole scene where these views are only some of it; None: of these views. Raises
    UserError for fewer than two views, and where they do not fit into the memory of a GPU.
    """
    require_two_views(views)
    given = Views(views.images, views.cameras).to(device)
    unit = model_unit(model, given.cameras) if unit is None else unit
    try:
        with torch.no_grad(), float32_products(tf32=False):
            return unit.to_scene(model(unit.to_model(given)))
    except torch.OutOfMemoryError as error:
        plan = memory.Plan(views.images.shape[1], views.size, encoder_traits(model).multiple)
        reason = str(error).partition("\n")[0].partition(". ")[0]
        problem = error
    traceback.clear_frames(problem.__traceback__)  # they hold what the model computed
    raise memory.explain(model, plan, torch.device(device), reason) from problem


def infer(model: Encoder, views: Views) -> Prediction:
    """What an encoder predicts for photographs, in their unit of length and on its device.

    As `predict` and `depth` do it: the scene is scaled to the unit that the encoder learned in, and
    the prediction is scaled back; no gradient. `model(views)` itself takes the unit as it is, which
    is right for data in the encoder's own unit, and for training: so also for scenes of published
    chunks, which have no near of their own.
    """
    device = views.images.device
    if isinstance(model, nn.Module):
        device = next((parameter.device for parameter in model.parameters()), device)
    return predict_views(model, views, device)


@dataclass(frozen=True)
class Reconstruction:
    """A prediction in the unit of its input, and how much larger the network saw the world."""

    prediction: Prediction
    scale: float


def reconstruct(model: Encoder, views: Views, device: torch.device | str = "cpu") -> Reconstruction:
    """What the model predicts for the views of one scene, in their unit, on `device`.

    Raises UserError for a model that predicts depth alone.
    """
    unit = model_unit(model, views.cameras)
    prediction = predict_views(model, views, device, unit)
    if not prediction.gaussians:
        raise depth_only_error()
    return Reconstruction(prediction, unit.scale)


def depth_only_error() -> UserError:
    """What to raise for a model without Gaussians where they are wanted."""
    return UserError(
        "a model that predicts depth alone",
        "one that predicts Gaussians",
        "choose another model, or run `pmsplat depth`",
    )
