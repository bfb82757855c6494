"""The teacher of a run: what it said, from disk, or asked in the step."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import registry
from ..data._dataset import ChunkDataset
from ..data._pointmaps import Identity, Lessons
from ..errors import UserError
from ..foundation.teachers import Teacher as Asked
from ..foundation.teachers import ask
from ..types import Batch
from .settings import Experiment, LossTerm, Teacher

LISTENER = "pointmap"  # the loss that wants a teacher


def build(settings: Teacher) -> Asked:
    """The teacher itself; its weights are read when it is first asked."""
    return registry.build("foundation.teachers", settings.name, settings.settings)


def lessons(settings: Teacher, teacher: Asked, dataset: Any) -> Lessons | None:
    """Where its pointmaps are kept; None for a run without a cache.

    A relative `cache` is beside the splits, in the root of the dataset. UserError for a dataset
    that is not of chunks.
    """
    if settings.cache is None:
        return None
    if not isinstance(dataset, ChunkDataset):
        raise UserError(
            f"teacher.cache={settings.cache} with a dataset that is not of chunks "
            f"({type(dataset).__name__})",
            "one of chunks, whose pointmaps lie beside them",
            "set teacher.cache=null: the teacher is then asked in training, and needs no "
            "`pmsplat teacher cache`",
        )
    recipe = dataset.recipe
    fit = "scaled and cut" if recipe.resize else "cut"
    if teacher.posed:
        fit += ", exact principal points" if recipe.exact else ", published principal points"
    identity = Identity(teacher.name, teacher.revision, recipe.size, fit, settings.windows)
    folder = dataset.root / Path(settings.cache) / "train"
    return Lessons(folder, identity, required=settings.missing == "error")


def taught(
    experiment: Experiment, dataset: Any, tell: Callable[[str], None]
) -> tuple[Any, Callable[[Batch, int], Batch] | None]:
    """The dataset with what is on disk, and who completes the batches that come without, from the
    step on at which a loss listens.

    Raises UserError for a teacher that no loss listens to, and for a loss that wants one.
    """
    settings = experiment.teacher
    listeners = _listeners(experiment)
    if settings is None:
        return dataset, None
    first = min(term.start_step for term in listeners)
    teacher = build(settings)
    kept = lessons(settings, teacher, dataset)
    if kept is not None:
        tell(
            f"Context views are frames that {teacher.name} saw together: every "
            f"{settings.windows.every}-th, up to {settings.windows.frames} at a time."
        )
        dataset = dataset.taught(kept)
        if kept.required:
            return dataset, None

    def answered(batch: Batch, step: int) -> Batch:
        if batch.context.pointmap is not None or step < first:
            return batch
        context = replace(batch.context, pointmap=ask(teacher, batch.context))
        return replace(batch, context=context)

    return dataset, answered


def _listeners(experiment: Experiment) -> list[LossTerm]:
    """Losses that a teacher may be asked for, which those of other people (a dotted name) are too:
    of them nothing is known."""
    terms = [term for term in experiment.loss.values() if term.weight]
    listeners = [term for term in terms if term.name == LISTENER or "." in term.name]
    if experiment.teacher is None and any(term.name == LISTENER for term in terms):
        raise UserError(
            f"loss.{LISTENER} without a teacher",
            "a run with one",
            f"choose one, as teacher=vggt, or drop the loss: ~loss.{LISTENER}",
        )
    if experiment.teacher is not None and not listeners:
        raise UserError(
            f"the teacher {experiment.teacher.name!r} and no loss that listens to it",
            f"loss.{LISTENER}",
            f"add it (+loss.{LISTENER}={{}}), or drop the teacher (teacher=null)",
        )
    return listeners
