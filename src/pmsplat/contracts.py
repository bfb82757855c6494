"""What an encoder, a data set, a loss and a teacher must be, and what each may add.

A component is a file with a dataclass `Config` and a callable `build(config)` (see `registry`);
these are the contracts of what `build` returns. Required parts are the methods of a Protocol;
optional parts, with their defaults, are the fields of the dataclass beside it. Only this file looks
at whether an optional part is there.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import IterableDataset

from .errors import UserError
from .types import Batch, Pointmap, Prediction, StepOutput, Views


class Encoder(Protocol):
    """Views in, depth and Gaussians of every context view out; an nn.Module where it is trained.

    Optional: the fields of `EncoderTraits`, and `backbone_parameters()`, an iterator over the
    pretrained parameters, which training gives a smaller learning rate.
    """

    def __call__(self, views: Views, /) -> Prediction: ...


@dataclass(frozen=True)
class EncoderTraits:
    """The optional parts of an encoder.

    `multiple`: image sides that are multiples of it are taken as they are; others the encoder pads
    (`pmsplat.models.predict_padded` does that).
    `near`: the nearest depth of the scenes that it learned from, in its own unit of length; scenes
    are scaled until theirs is the same. None: it takes every scene in its own unit.
    `draws`: it predicts Gaussians, not depth alone.
    """

    multiple: int = 1
    near: float | None = None
    draws: bool = True


def encoder_traits(encoder: Encoder) -> EncoderTraits:
    """The optional parts of `encoder`, defaults where it has none."""
    default = EncoderTraits()
    return EncoderTraits(**{k: getattr(encoder, k, v) for k, v in vars(default).items()})


def backbone_parameters(encoder: nn.Module) -> Iterator[nn.Parameter]:
    """The pretrained parameters of `encoder`; none where it does not name them."""
    named: Callable[[], Iterator[nn.Parameter]] | None
    named = getattr(encoder, "backbone_parameters", None)
    return iter(()) if named is None else named()


class Dataset(Protocol):
    """Scenes as batches, for training and for evaluation.

    `train` is an endless stream of examples with a batch axis of 1: `step` is a shared-memory
    scalar that follows the optimizer's step, `skip` the number of examples that all ranks and
    workers have consumed before, `batch_size` that of the loader. `evaluation` yields one batch per
    scene, of the first `limit` scenes. Lengths are in the unit of the data.

    Optional: the fields of `DatasetTraits`, and for `pmsplat teacher cache` what
    `pmsplat.data.ChunkDataset` adds.
    """

    def train(
        self, seed: int, step: Tensor, skip: int = 0, batch_size: int = 1
    ) -> IterableDataset[Batch]: ...

    def evaluation(self, limit: int | None = None) -> Iterable[Batch]: ...


@dataclass(frozen=True)
class DatasetTraits:
    """The optional parts of a data set.

    `scale_near`: its scenes come in units of their own, so each is scaled until its nearest near is
    that of the model. `near`: the near of every scene, where it is one number for all.
    """

    scale_near: bool = False
    near: float | None = None


def dataset_traits(dataset: Dataset) -> DatasetTraits:
    """The optional parts of `dataset`, defaults where it has none."""
    default = DatasetTraits()
    return DatasetTraits(**{k: getattr(dataset, k, v) for k, v in vars(default).items()})


@dataclass(frozen=True)
class Partial:
    """A loss that skipped some samples of the batch, and how many: a count on the device."""

    value: Tensor
    skipped: Tensor


class Loss(Protocol):
    """A scalar to minimize; None where it has nothing to say of this level of the prediction.

    Optional, in the module beside `build`: `WANTS`, a set of names of what the run must bring
    (`POINTMAP`: a teacher; `LPIPS`: the validation measures LPIPS too).
    """

    def __call__(self, step: StepOutput) -> Tensor | Partial | None: ...


POINTMAP = "pointmap"
LPIPS = "lpips"


def wants(module: ModuleType) -> frozenset[str]:
    """What the loss of this module wants; UserError for a want that no run can bring."""
    wanted = frozenset(getattr(module, "WANTS", ()))
    if unknown := wanted - {POINTMAP, LPIPS}:
        raise UserError(
            f"the loss {module.__name__} wants {', '.join(sorted(unknown))}",
            f"{POINTMAP} or {LPIPS}",
            "correct WANTS in its module",
        )
    return wanted


class Teacher(Protocol):
    """Views in, their pointmap out, of the views' own size, without gradients.

    `name` and `revision` say what its answers depend on beside the views: a cache is keyed by them.
    The answer for one view may depend on all views given with it, and on their cameras too
    (`posed`). Scenes of a batch do not look at each other.
    """

    name: str
    revision: str
    posed: bool

    def __call__(self, views: Views) -> Pointmap: ...


def require(component: Any, part: str, owner: str, purpose: str) -> Any:
    """The attribute `part` of a component; UserError naming it where the component lacks it."""
    found = getattr(component, part, None)
    if found is None:
        raise UserError(
            f"{owner} has no `{part}`, which {purpose} wants",
            "the whole contract (see pmsplat.contracts)",
            f"add `{part}` to it",
        )
    return found
