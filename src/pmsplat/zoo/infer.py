"""The world of a model beside that of the scenes: the only place that converts them.

A network learns sizes in one unit of length, and some learn in one place: the axes and the center
of the middle one of their context views. Scenes that come in other worlds are moved and scaled to
that of the model before the network, and its predictions are brought back, harmonics included.

The unit of a model is known by the nearest depth of its scenes (`near`), which every scene is
scaled to; or, where it searches so wide a range in all scenes that its near says nothing of them,
by their usual depth (`typical_depth`). Scenes without a range of depth are in the unit of the model
(`fill_range`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..contracts import Encoder, EncoderTraits, encoder_traits, take_steps
from ..device import explain_full, float32_products
from ..errors import UserError
from ..geometry import gaussian, se3
from ..models import require_two_views
from ..types import Cameras, Factor, Motion, Prediction, Views
from . import memory

OWN_RANGE = 1e-3  # relative: so equal, far / near of a scene are those of the model


class _Movable(Protocol):
    def scaled(self, factor: Factor) -> Self: ...
    def moved(self, motion: Motion) -> Self: ...


class _Seen(_Movable, Protocol):
    def with_range(self, near: Factor, far: Factor) -> Self: ...


M = TypeVar("M", bound=_Movable)
S = TypeVar("S", bound=_Seen)


@dataclass(frozen=True)
class Frame:
    """The world of a model beside that of some scenes.

    `motion` turns and moves each scene, float64; `factor` is how many times as large the model then
    sees it; `searched` are the near and far, in the unit of the model, that it searches whatever
    the range of the scene. None: as it is, to the bit.
    """

    factor: Float[Tensor, " batch"] | None = None
    motion: Motion | None = None
    searched: tuple[float, float] | None = None

    @property
    def scale(self) -> float:
        """The factor of a single scene."""
        return 1.0 if self.factor is None else self.factor.item()

    def to_model(self, value: S) -> S:
        """Views, cameras or batches of the scenes, in the world of the model."""
        if self.motion is not None:
            with torch.autocast(self.motion.device.type, enabled=False):
                value = value.moved(self.motion)
        if self.factor is not None:
            value = value.scaled(self.factor)
        return value if self.searched is None else value.with_range(*self.searched)

    def to_scene(self, value: M) -> M:
        """Predictions or renderings of the model, in the world of the scenes."""
        if self.factor is not None:
            value = value.scaled(1 / self.factor)
        if self.motion is None:
            return value
        with torch.autocast(self.motion.device.type, enabled=False):
            return value.moved(se3.invert(self.motion))

    def find_range(self, cameras: Cameras) -> Cameras:
        """Cameras of the scenes, with the near and far between which the model searches."""
        if self.searched is None:
            return cameras
        near, far = self.searched
        if self.factor is None:
            return cameras.with_range(near, far)
        return cameras.with_range(near / self.factor, far / self.factor)


def model_frame(
    model: Encoder, context: Cameras, whole: Cameras | None = None, scale: bool = True
) -> Frame:
    """The world of `model` for scenes that it sees through the cameras of `context`.

    `whole` are all cameras of the scenes, where `context` are only some: they have one unit. With
    `scale`, scenes are scaled until the smallest `near` of their context views equals the model's
    `near`. For a model with a `typical_depth` they are scaled until the middle of their depth is
    that, unless near and far of all views are those of the model, times one number: that then is
    their unit. A model without `near` takes every scene in the scene's own unit; without `scale`
    all models do.
    """
    traits = encoder_traits(model)
    motion = _leave_middle_view(context.c2w) if traits.frame == "middle" else None
    factor = _find_factor(traits, context if whole is None else whole) if scale else None
    return Frame(factor, motion, traits.searched)


def _leave_middle_view(c2w: Float[Tensor, "batch view 4 4"]) -> Motion:
    """The motion that takes the middle view of each scene to the origin, looking along +z."""
    middle = c2w[:, c2w.shape[1] // 2].double()
    quat = gaussian.rotation_to_quat(middle[:, :3, :3])  # so that it is a rotation to all digits
    return se3.invert(se3.compose(gaussian.quat_to_rotation(quat), middle[:, :3, 3]))


def _find_factor(traits: EncoderTraits, cameras: Cameras) -> Float[Tensor, " batch"] | None:
    """How many times as large a model sees scenes; None: as they are."""
    if traits.near is None:
        return None
    nearest = cameras.near.amin(dim=1)
    by_near = torch.full_like(nearest, traits.near) / nearest
    if traits.far is None or traits.typical_depth is None:
        return by_near
    ratio = (cameras.far / cameras.near) / (traits.far / traits.near)
    is_own = ((ratio - 1).abs() < OWN_RANGE).all(dim=1)
    return torch.where(is_own, by_near, traits.typical_depth / _middle(cameras))


def _middle(cameras: Cameras) -> Float[Tensor, " batch"]:
    """The middle of the depth that cameras look at: the geometric mean of near and far of all.

    Where near and far come from sparse points, this is close to the median depth: 1.01 times it
    (quartiles 0.95 and 1.10) in 16 real scenes.
    """
    return ((cameras.near.log() + cameras.far.log()) / 2).mean(dim=1).exp()


def middle_depth(model: Encoder, cameras: Cameras) -> float | None:
    """The middle of the depth of one scene; None for a model that is not scaled by it."""
    traits = encoder_traits(model)
    by_depth = traits.searched is not None and traits.typical_depth is not None
    return _middle(cameras).item() if by_depth else None


def fill_range(
    model: Encoder, cameras: Cameras, context: Sequence[int], ranged: bool = True
) -> Cameras:
    """The cameras of a scene with the near and far between which `model` searches.

    It sees the scene through those at `context`. Where the scene has no range (not `ranged`), it is
    in the unit of the model, with near, and far if the model has one, of the model. Otherwise a
    model without a `far` leaves near and far as they are.
    """
    traits = encoder_traits(model)
    if not ranged and traits.near is not None:
        far = cameras.far if traits.far is None else torch.full_like(cameras.far, traits.far)
        cameras = replace(cameras, near=torch.full_like(cameras.near, traits.near), far=far)
    return model_frame(model, cameras.at(context)).find_range(cameras)


def predict_views(
    model: Encoder,
    views: Views,
    device: torch.device | str = "cpu",
    whole: Cameras | None = None,
    steps: int | None = None,
    anchors: int | None = None,
) -> Prediction:
    """What the model predicts for the views, in their world and unit, on `device`; no gradient.

    In float32, on CUDA too (see `float32_products`). Each view keeps its own near and far, unless
    the model searches one range in all scenes. `whole` are the cameras of the whole scene where
    these views are only some of it. Raises UserError for fewer than two views, where they do not
    fit into the memory of a GPU, and for `steps` or `anchors` of a model that has none.
    """
    require_two_views(views)
    run = take_steps(model, steps, anchors=anchors)
    given = Views(views.images, views.cameras).to(device)
    frame = model_frame(model, given.cameras, None if whole is None else whole.to(device))
    where, multiple = torch.device(device), encoder_traits(model).multiple
    plan = memory.Plan(views.images.shape[1], views.size, multiple, steps, anchors)
    with (
        explain_full(lambda problem: memory.explain(model, plan, where, problem)),
        torch.no_grad(),
        float32_products(tf32=False),
    ):
        return frame.to_scene(run(frame.to_model(given)))


def infer(
    model: Encoder, views: Views, steps: int | None = None, anchors: int | None = None
) -> Prediction:
    """What an encoder predicts for photographs, in their world and unit, on its device.

    As `predict` and `depth` do it: the scene is brought to the frame and the unit that the encoder
    learned in, and the prediction is brought back; no gradient. `steps`: how many steps it takes,
    where it has some; None: its own number. `anchors`: in how many of the views it gathers all,
    where it does; None: its own number. `Prediction.select` gives the views that are spoken of.

    `model(views)` itself takes world and unit as they are, which is right for data in those of the
    encoder, and for training: so also for scenes of published chunks, which have no near of their
    own. An encoder that wants the frame of its middle view still needs `infer`: for scenes in its
    own unit with near and far set to its own.
    """
    device = views.images.device
    if isinstance(model, nn.Module):
        device = next((parameter.device for parameter in model.parameters()), device)
    return predict_views(model, views, device, steps=steps, anchors=anchors)


@dataclass(frozen=True)
class Reconstruction:
    """A prediction in the world of its input, and how much larger the network saw the world."""

    prediction: Prediction
    scale: float


def reconstruct(
    model: Encoder,
    views: Views,
    device: torch.device | str = "cpu",
    steps: int | None = None,
    whole: Cameras | None = None,
    anchors: int | None = None,
) -> Reconstruction:
    """What the model predicts for the views of one scene, in their world and unit, on `device`.

    `whole`: see `predict_views`. Raises UserError for a model that predicts depth alone, and for
    `steps` or `anchors` of one without.
    """
    prediction = predict_views(model, views, device, whole, steps, anchors)
    if not prediction.gaussians:
        raise depth_only_error()
    return Reconstruction(prediction, model_frame(model, views.cameras, whole).scale)


def depth_only_error() -> UserError:
    """What to raise for a model without Gaussians where they are wanted."""
    return UserError(
        "a model that predicts depth alone",
        "one that predicts Gaussians",
        "choose another model, or run `pmsplat depth`",
    )
