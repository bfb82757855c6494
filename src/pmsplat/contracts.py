"""What an encoder, a dataset, a loss and a teacher must be, and what each may add.

A component is a file with a dataclass `Config` and a callable `build(config)` (see `registry`);
these are the contracts of what `build` returns. Required parts are the methods of a Protocol;
optional parts, with their defaults, are the fields of the dataclass beside it. Only this file looks
at whether a part is there.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, Literal, Protocol, cast, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from .errors import UserError
from .types import Batch, Pointmap, PosedDepth, Prediction, StepOutput, Views


class Encoder(Protocol):
    """Views in, depth and Gaussians of every context view out; an nn.Module where it is trained.

    Its Gaussians carry the rules by which they were drawn in training (`Gaussians.rules`, CLASSIC
    where it sets none): `rasterize` follows them here, and files keep them.

    Optional: the fields of `EncoderTraits`, and `backbone_parameters()`, an iterator over the
    pretrained parameters, which training gives a smaller learning rate. Its Config may have
    `init_from`, the pretrained weights from which training starts. Where it is made of another
    encoder, the module `base`, its Config has `base`, the settings of that (`registry.nested`), and
    `base_weights`, what training loads it from.
    """

    def __call__(self, views: Views, /) -> Prediction: ...


class SteppedEncoder(Protocol):
    """An encoder that changes its Gaussians in steps, any number from 0; `EncoderTraits.steps` is
    its own. `all_levels`: the Gaussians before the first step and after each, in eval mode too.
    """

    def __call__(
        self, views: Views, /, steps: int | None = None, all_levels: bool = False
    ) -> Prediction: ...


class GatheringEncoder(Protocol):
    """An encoder that gathers what all views show in some of them, the anchors: in so many, or in
    all where there are no more. `EncoderTraits.anchors` is its own number; `Prediction.views` says
    which they are. With steps too, it takes the parameters of both.
    """

    def __call__(self, views: Views, /, anchors: int | None = None) -> Prediction: ...


@dataclass(frozen=True)
class Conditioned:
    """A prediction of a single level, and the map that its Gaussians were made from.

    Maps are of the views of one scene after those of another, as large as the images or smaller.
    """

    prediction: Prediction
    condition: Float[Tensor, "n channel rows columns"]


class ConditionedEncoder(Encoder, Protocol):
    """An encoder that a recurrent update can be trained on (the model `updated`).

    `condition_width` is the number of channels of its map. `predict_with_condition` takes views of
    sizes that its `multiple` divides, and, of an encoder that gathers views, `anchors` as a
    `GatheringEncoder` does. Optional: `unit`, where a Gaussian stands for a block of `unit` x
    `unit` pixels of a view; 1 by default.
    """

    condition_width: int

    def predict_with_condition(self, views: Views) -> Conditioned: ...


def conditioned_encoder(encoder: Encoder, owner: str) -> ConditionedEncoder:
    """`encoder` as one that an update can be trained on; UserError where it is none."""
    if not encoder_traits(encoder).draws:
        raise UserError(
            f"{owner}, which predicts depth alone", "an encoder of Gaussians", "choose another one"
        )
    if encoder_traits(encoder).steps is not None:
        raise UserError(
            f"{owner}, which has an update of its own",
            "an encoder that predicts in a single pass",
            "choose another one, or train its own update",
        )
    for part in ("condition_width", "predict_with_condition"):
        require(encoder, part, owner, "an update", f"add `{part}` to it, or choose another encoder")
    return cast(ConditionedEncoder, encoder)


def predict_with_condition(encoder: ConditionedEncoder, views: Views, anchors: int) -> Conditioned:
    """What `encoder` predicts, with its map, gathering views in `anchors`; 0: it gathers none."""
    predict = cast(Callable[..., Conditioned], encoder.predict_with_condition)
    return predict(views, anchors=anchors) if anchors else predict(views)


def pixels_per_side(encoder: ConditionedEncoder) -> int:
    """The side of the block of pixels that has one Gaussian."""
    return getattr(encoder, "unit", 1)


@dataclass(frozen=True)
class EncoderTraits:
    """The optional parts of an encoder.

    `multiple`: image sides that are multiples of it are taken as they are; others the encoder pads
    (`pmsplat.models.predict_padded` does that). Where it depends on the width, `multiple_at` is a
    method of the encoder too.
    `near`: the nearest depth of the scenes that it learned from, in its own unit of length; scenes
    are scaled until theirs is the same. None: it takes every scene in its own unit.
    `far`: it searches depth from `near` to `far` in its own unit, whatever the range of the scene.
    None: it searches the range of each scene.
    `typical_depth`: where `far` is set, scenes are scaled until the middle of their range of depth
    is this, the usual depth of the scenes that it learned from, instead of going by `near`.
    `draws`: it predicts Gaussians, not depth alone.
    `frame`: the world that it wants. "given": any; "middle": the axes and the place of the middle
    one of its context views, number view // 2.
    `steps`: how many steps it takes unless told otherwise (see `SteppedEncoder`). None: it has no
    steps and is called with views alone.
    `anchors`: in how many of the context views, at most, it gathers what all of them show; its
    prediction speaks of those (`Prediction.views`). 0: of all.
    `half_weights`: it computes in the dtype of its weights, whatever that of the views, so that
    bf16 can cast them once. False: in bf16 it runs under torch.autocast, with weights in float32.
    """

    multiple: int = 1
    near: float | None = None
    far: float | None = None
    typical_depth: float | None = None
    draws: bool = True
    frame: Literal["given", "middle"] = "given"
    steps: int | None = None
    anchors: int = 0
    half_weights: bool = False

    @property
    def searched(self) -> tuple[float, float] | None:
        """The (near, far) that it searches in every scene; None: the range of the scene."""
        return None if self.near is None or self.far is None else (self.near, self.far)


def encoder_traits(encoder: Encoder) -> EncoderTraits:
    """The optional parts of `encoder`, defaults where it has none."""
    default = EncoderTraits()
    return EncoderTraits(**{k: getattr(encoder, k, v) for k, v in vars(default).items()})


def multiple_at(encoder: Encoder, width: int) -> int:
    """The `multiple` of `encoder` for images about `width` pixels wide."""
    own: Callable[[int], int] | None = getattr(encoder, "multiple_at", None)
    return encoder_traits(encoder).multiple if own is None else own(width)


def count_steps(steps: int | None, own: int | None) -> int:
    """How many steps an encoder takes where it is asked for `steps`; None: its own number.

    `own` is the trait of the encoder. UserError for steps of an encoder that has none, and for a
    number below 0.
    """
    if steps is None:
        return own or 0
    if type(steps) is not int or steps < 0:
        remedy = "leave `steps` out" + (f" to take {own}" if own else "")
        raise UserError(f"`steps={steps!r}`", "a whole number from 0", remedy)
    if steps and own is None:
        raise UserError(
            f"`steps={steps}` for a model that predicts in a single pass",
            "a model that changes its Gaussians in steps",
            "leave `steps` out, or choose another model",
        )
    return steps


def count_anchors(anchors: int | None, own: int) -> int:
    """In how many views an encoder gathers all where it is asked for `anchors`; None: its own.

    `own` is the trait of the encoder. UserError for anchors of an encoder that has none, and for
    fewer than two.
    """
    if anchors is None:
        return own
    if type(anchors) is not int or anchors < 2:
        remedy = "leave `anchors` out" + (f" to take {own}" if own else "")
        raise UserError(f"`anchors={anchors!r}`", "a whole number from 2", remedy)
    if not own:
        raise UserError(
            f"`anchors={anchors}` for a model in which each view speaks for itself",
            "a model that gathers views in anchors",
            "leave `anchors` out, or choose another model",
        )
    return anchors


def take_steps(
    encoder: Encoder, steps: int | None, all_levels: bool = False, anchors: int | None = None
) -> Callable[[Views], Prediction]:
    """`encoder` with this number of steps and of anchors; None: its own.

    UserError as of `count_steps` and `count_anchors`.
    """
    traits = encoder_traits(encoder)
    count_steps(steps, traits.steps)
    count_anchors(anchors, traits.anchors)
    chosen: dict[str, Any] = {}
    if traits.steps is not None and (steps is not None or all_levels):
        chosen |= {"steps": steps, "all_levels": all_levels}
    if anchors is not None:
        chosen |= {"anchors": anchors}
    return partial(cast(Callable[..., Prediction], encoder), **chosen) if chosen else encoder


def backbone_parameters(encoder: nn.Module) -> Iterator[nn.Parameter]:
    """The pretrained parameters of `encoder`; none where it does not name them."""
    named: Callable[[], Iterator[nn.Parameter]] | None
    named = getattr(encoder, "backbone_parameters", None)
    return iter(()) if named is None else named()


def is_within(parameter: str, part: str) -> bool:
    """Whether a parameter is of a part: the beginning of its name up to a dot, or all of it."""
    return f"{parameter}.".startswith(f"{part}.")


def has_initial_weights(config: Any) -> bool:
    """Whether the Config of an encoder has `init_from`, whatever its value."""
    return hasattr(config, "init_from")


def has_base(config: Any) -> bool:
    """Whether the Config of an encoder has `base` and `base_weights`, whatever their values."""
    return hasattr(config, "base_weights")


class Teacher(Protocol):
    """Views in, their pointmap out, of the views' own size, without gradients.

    `name` and `revision` say what the pointmap depends on besides the views: they are part of the
    key of a cache. The pointmap of one view may depend on all views given with it, and, where it is
    `posed`, on their cameras. Scenes of a batch do not depend on each other.
    """

    name: str
    revision: str
    posed: bool

    def __call__(self, views: Views) -> Pointmap: ...


class PoseTeacher(Protocol):
    """A network that finds the cameras of photographs: what a teacher may be besides, or instead.

    `name` and `pose_revision` say what its cameras depend on besides the photographs: they are part
    of the key of a cache. `choose_size` gives the (height, width) of the images that it wants for
    photographs of an aspect ratio (width / height). `prepare` reads the weights, which nothing else
    does before the first call; UserError where they, or the code, cannot be had. `pose` answers for
    images in [0, 1], on their device, without gradients; scenes of a batch do not depend on each
    other.
    """

    name: str
    pose_revision: str

    def choose_size(self, aspect: float) -> tuple[int, int]: ...

    def prepare(self) -> None: ...

    def pose(self, images: Float[Tensor, "batch view 3 height width"]) -> PosedDepth: ...


def check_pose_teacher(teacher: Any) -> PoseTeacher:
    """`teacher`; UserError naming the first part of the contract that it lacks."""
    for part in ("name", "pose_revision", "choose_size", "prepare", "pose"):
        if not hasattr(teacher, part):
            raise UserError(
                f"a {type(teacher).__name__} without `{part}` as `poses`",
                "a teacher that finds cameras (see pmsplat.contracts.PoseTeacher)",
                "choose one that does, such as da3 or vggt",
            )
    return teacher


def check_teacher(teacher: Any) -> Teacher:
    """`teacher`; UserError naming the first part of the contract that it lacks."""
    parts = {part: hasattr(teacher, part) for part in ("name", "revision", "posed")}
    parts["__call__"] = callable(teacher)
    for part, there in parts.items():
        if not there:
            raise UserError(
                f"a teacher of type {type(teacher).__name__} without `{part}`",
                f"one with {', '.join(f'`{part}`' for part in parts)}",
                "add it, or choose a teacher by its name (see pmsplat.contracts.Teacher)",
            )
    return teacher


class Dataset(Protocol):
    """Scenes as batches, for training and for evaluation.

    `train` is an endless stream of examples with a batch axis of 1: `step` is a shared-memory
    scalar that follows the optimizer's step, `skip` the number of examples that all ranks and
    workers have consumed before, `batch_size` that of the loader. `evaluation` yields one batch per
    scene, of the first `limit` scenes. Lengths are in the unit of the data.

    Optional: the fields of `DatasetTraits`, the parts of `CachingDataset`, and `skips` of a stream
    (`pmsplat.data.Skips`), which says what scenes are left out. What `evaluation` returns may share
    its scenes among the ranks of torchrun; it then has `keys`, the names of all scenes in order,
    and `without`, which gives the same without some of them. `listed` (`pmsplat.data.Listed`) is
    what its index names besides.
    """

    def train(
        self, seed: int, step: Tensor, skip: int = 0, batch_size: int = 1
    ) -> IterableDataset[Batch]: ...

    def evaluation(self, limit: int | None = None) -> IterableDataset[Batch]: ...


@dataclass(frozen=True)
class DatasetTraits:
    """The optional parts of a dataset.

    `scale_near`: its scenes come in units of their own, so each is scaled until the smallest `near`
    of its context views equals the model's `near`, or as its `typical_depth` says. `near` and
    `far`: those of every scene, where they are one number for all. `index`: the file that says
    what `evaluation` measures, where there is one. `has_test`: there are scenes for `evaluation`,
    as far as is known before it is asked; without them training does not validate.
    """

    scale_near: bool = False
    near: float | None = None
    far: float | None = None
    index: str | None = None
    has_test: bool = True


class CachingDataset(Dataset, Protocol):
    """A dataset that keeps a teacher's pointmaps on disk, as the setting `teacher.cache` needs.

    It has all of these parts or none; `pmsplat.data.ChunkDataset` is one. The types that this floor
    does not know are `PointmapCache` and `Windows` of `pmsplat.data`, `Split` and `ChunkScene` of
    `pmsplat.io.chunks`.

    `pointmap_cache` finds the cache in `folder`; `with_pointmaps` is the same dataset whose
    training examples have pointmaps from it, and `check_pointmaps` raises where a required one is
    missing. To fill the cache: `split` has the chunks, and `window_views` gives frames of a scene
    as the teacher sees them (`pmsplat.data.Unusable` where training skips the scene).
    """

    def pointmap_cache(
        self, teacher: Teacher, folder: str, windows: Any, required: bool = True
    ) -> Any: ...

    def with_pointmaps(self, cache: Any) -> "CachingDataset": ...

    def check_pointmaps(self) -> None: ...

    def split(self, name: str) -> Any: ...

    def window_views(self, scene: Any, frames: tuple[int, ...]) -> Views: ...


def caching_dataset(dataset: Dataset, owner: str, remedy: str) -> CachingDataset:
    """`dataset` as one that keeps pointmaps; UserError naming the first part that it lacks."""
    parts = ("pointmap_cache", "with_pointmaps", "check_pointmaps", "split", "window_views")
    for part in parts:
        require(dataset, part, owner, "teacher.cache", f"add `{part}` to it, or {remedy}")
    return cast(CachingDataset, dataset)


def order_of_scenes(scenes: Any) -> list[str]:
    """The names of all scenes of an evaluation, in order; none where it has no `keys`."""
    return list(getattr(scenes, "keys", ()))


def list_skips(scenes: Any) -> list[Any]:
    """The `pmsplat.data.Skip` of a stream or an evaluation since the last call; none without
    `skips`."""
    skips = getattr(scenes, "skips", None)
    return [] if skips is None else skips.take()


def get_listed(scenes: Any) -> Any | None:
    """The `pmsplat.data.Listed` of an evaluation: what its index lists beside; None without one."""
    return getattr(scenes, "listed", None)


def without_scenes(scenes: Any, done: Collection[str]) -> Iterable[Batch]:
    """The scenes of an evaluation that are not done; those that are done are read where it has no
    `without`."""
    if not done:
        return scenes
    if hasattr(scenes, "without"):
        return scenes.without(done)
    return (batch for batch in scenes if batch.scene[0] not in done)


def dataset_traits(dataset: Dataset) -> DatasetTraits:
    """The optional parts of `dataset`, defaults where it has none."""
    default = DatasetTraits()
    return DatasetTraits(**{k: getattr(dataset, k, v) for k, v in vars(default).items()})


@dataclass(frozen=True)
class Partial:
    """A loss that skipped some samples of the batch, and how many: a count on the device."""

    value: Tensor
    skipped: Tensor


@runtime_checkable  # tests check annotations at run time
class Loss(Protocol):
    """A scalar to minimize; None if it does not apply to this level of the prediction.

    Optional, in the module beside `build`: `WANTS`, a set of what it wants of a run: `POINTMAP`,
    a teacher whose pointmap is in `step.batch.context`; `LPIPS`, that validation measures LPIPS.
    """

    def __call__(self, step: StepOutput) -> Tensor | Partial | None: ...


POINTMAP = "pointmap"
LPIPS = "lpips"


def wants(module: ModuleType) -> frozenset[str]:
    """What the loss of this module wants; UserError for an unknown want."""
    wanted = getattr(module, "WANTS", frozenset())
    if not isinstance(wanted, set | frozenset) or not wanted <= {POINTMAP, LPIPS}:
        raise UserError(
            f"WANTS = {wanted!r} in the loss {module.__name__}",
            f"a set of {POINTMAP!r} or {LPIPS!r}",
            "correct WANTS in its module",
        )
    return frozenset(wanted)


def require(component: Any, part: str, owner: str, purpose: str, remedy: str | None = None) -> Any:
    """The attribute `part` of a component; UserError naming it where the component lacks it."""
    found = getattr(component, part, None)
    if found is None:
        raise UserError(
            f"{owner} has no `{part}`, which {purpose} needs",
            "the whole contract (see pmsplat.contracts)",
            remedy or f"add `{part}` to it",
        )
    return found
