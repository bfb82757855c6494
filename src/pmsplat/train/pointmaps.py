"""The pointmaps of a run: read from a cache, or computed by the teacher in the training step."""

from collections.abc import Callable
from dataclasses import replace

from .. import registry
from ..contracts import POINTMAP, CachingDataset, Dataset, Teacher, caching_dataset, check_teacher
from ..errors import UserError
from ..foundation.teachers import query_teacher
from ..types import Batch
from .settings import Experiment, LossTerm, TeacherSettings


def build_teacher(settings: TeacherSettings) -> Teacher:
    """The teacher itself; its weights are read at its first call. UserError where it is none."""
    return check_teacher(registry.build("foundation.teachers", settings.name, settings.settings))


def require_cache(experiment: Experiment, dataset: Dataset) -> CachingDataset:
    """The dataset as one that can keep pointmaps; UserError naming the part that it lacks."""
    return caching_dataset(
        dataset,
        f"the dataset {experiment.dataset.name!r}",
        "set teacher.cache=null: the teacher then runs in every training step, and needs no "
        "`pmsplat teacher cache`",
    )


def with_pointmaps(
    experiment: Experiment, dataset: Dataset, tell: Callable[[str], None]
) -> tuple[Dataset, Callable[[Batch, int], Batch] | None]:
    """The dataset with the pointmaps of the cache, and a function that adds missing ones.

    The function takes a batch and the step; it runs the teacher from the first step at which a loss
    wants a pointmap. None where the cache has all pointmaps, or the run has no teacher. Raises
    UserError for a teacher that no loss wants, and for a loss that wants one in a run without.
    """
    settings = experiment.teacher
    terms = {k: t for k, t in experiment.losses_that_want(POINTMAP).items() if t.weight}
    _check_losses(experiment, terms)
    if settings is None:
        return dataset, None
    teacher = build_teacher(settings)
    if settings.cache is not None:
        tell(
            f"Context views are frames that {teacher.name} saw together: every "
            f"{settings.windows.every}-th, up to {settings.windows.frames} at a time."
        )
        required = settings.missing == "error"
        caching = require_cache(experiment, dataset)
        cache = caching.pointmap_cache(teacher, settings.cache, settings.windows, required)
        dataset = caching.with_pointmaps(cache)
        if required:
            return dataset, None
    first_step = min(term.start_step for term in terms.values())

    def add_pointmap(batch: Batch, step: int) -> Batch:
        if batch.context.pointmap is not None or step < first_step:
            return batch
        pointmap = query_teacher(teacher, batch.context)
        return replace(batch, context=replace(batch.context, pointmap=pointmap))

    return dataset, add_pointmap


def _check_losses(experiment: Experiment, terms: dict[str, LossTerm]) -> None:
    """UserError where a teacher is set and no loss wants its pointmaps, or the other way round."""
    if experiment.teacher is None and terms:
        key = next(iter(terms))
        raise UserError(
            f"loss.{key} without a teacher",
            "a run with one",
            f"choose one, as teacher=vggt, or drop the loss: ~loss.{key}",
        )
    if experiment.teacher is not None and not terms:
        raise UserError(
            f"teacher {experiment.teacher.name!r} is set, but no loss uses it",
            "loss.pointmap, or a loss whose module has WANTS = {'pointmap'}",
            "add it (+loss.pointmap={}), or drop the teacher (teacher=null)",
        )
