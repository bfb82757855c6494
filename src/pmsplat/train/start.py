"""What a run starts from: data, the settings of its model that they decide, and weights.

Lightning is not imported here: it takes seconds, and what is wrong is told before.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from .. import registry
from ..contracts import (
    Dataset,
    DatasetTraits,
    EncoderTraits,
    dataset_traits,
    has_base,
    has_initial_weights,
    require,
)
from ..errors import UserError
from ..io.weights import check_same
from ..types import Batch
from ..zoo.init import initialize, open_base
from ..zoo.load import load
from . import pointmaps
from .devices import is_first
from .resume import AS_WRITTEN
from .settings import Component, Experiment, Trainer


@dataclass(frozen=True)
class Data:
    """A dataset, and what adds the pointmaps which it lacks to the batch of a step, if any does.

    `experiment` is that of the run; it does not validate where the data has no test split.
    """

    dataset: Dataset
    experiment: Experiment
    add_pointmap: Callable[[Batch, int], Batch] | None = None


def open_data(experiment: Experiment, tell: Callable[[str], None]) -> Data:
    """The data of a run, with pointmaps where its losses want some.

    UserError for a wrong path, and where the dataset has not all the parts that the run needs.
    """
    name, teacher = experiment.dataset.name, experiment.teacher
    dataset: Dataset = registry.build("data", name, experiment.dataset.settings)
    owner = f"the dataset {name!r}"
    require(dataset, "train", owner, "training")
    if experiment.trainer.validate_every:
        remedy = "add `evaluation` to it, or train without validation: trainer.validate_every=0"
        require(dataset, "evaluation", owner, "validation", remedy)
        if not dataset_traits(dataset).has_test:
            if is_first():
                tell("There is no validation, as the data has no test split.")
            trainer = replace(experiment.trainer, validate_every=0)
            experiment = replace(experiment, trainer=trainer)
    dataset, add_pointmap = pointmaps.with_pointmaps(experiment, dataset, tell)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the other processes start later
        open_splits(dataset, experiment, torch.zeros((), dtype=torch.int64))
        if teacher is not None and teacher.cache is not None:
            pointmaps.require_cache(experiment, dataset).check_pointmaps()
    return Data(dataset, experiment, add_pointmap)


def open_splits(dataset: Dataset, experiment: Experiment, step: Tensor) -> None:
    """Opens what is trained and validated on, so that a dataset that is generated is made once."""
    dataset.train(experiment.seed, step)
    if experiment.trainer.validate_every:
        try:
            dataset.evaluation(experiment.trainer.validate_scenes)
        except UserError as error:
            remedy = f"{error.remedy}; or do not validate: trainer.validate_every=0"
            raise UserError(error.got, error.wanted, remedy) from error


def learn_range(component: Component, dataset: Dataset, tell: Callable[[str], None]) -> Component:
    """The model with the near of the scenes that it learns from in its settings.

    Scenes that are scaled get the near that the settings have. Others keep theirs: the near of the
    data set, or None where each scene has its own. So does a far that a model searches to in
    every scene, where the data set has one. A model without such a setting is left as it is.
    """
    settings = registry.make_config("models", component.name, component.settings)
    traits = dataset_traits(dataset)
    if not traits.scale_near and "near" in [f.name for f in fields(settings)]:
        default = registry.make_config("models", component.name).near
        if settings.near not in (default, traits.near):
            tell(
                f"model.near={settings.near} is not used, since scenes keep their unit of length: "
                f"the model learns with near {traits.near or 'of each scene'}."
            )
        searches = traits.far is not None and getattr(settings, "far", None) is not None
        far = {"far": traits.far} if searches else {}
        settings = replace(settings, near=traits.near, **far)
    return replace(component, settings=settings)


def check_near(name: str, near: float | None, traits: DatasetTraits) -> None:
    """UserError where model and data disagree on who sets the unit of length."""
    if not traits.scale_near and near not in (None, traits.near):
        other = "scale_near=true" if traits.near is None else f"near={near}"
        raise UserError(
            f"model {name} with its own near {near}, for scenes that keep their unit",
            "a near that the run can set, since the model learns in the unit of the scenes",
            f"make `near` a field of its Config, or set dataset.{other}",
        )
    if traits.scale_near and near is None:
        raise UserError(
            f"model {name} without a near, for scenes that each have their own unit",
            "the nearest depth that every scene is scaled to",
            "set model.near=0.5, or dataset.scale_near=false to keep the units of the scenes",
        )


def check_draws(cfg: Trainer, name: str, traits: EncoderTraits) -> None:
    """UserError where the run draws numbers for a part that the model does not have."""
    if cfg.update_steps is not None and traits.steps is None:
        raise UserError(
            f"trainer.update_steps={cfg.update_steps} for a model {name} that predicts in a "
            "single pass",
            "a model with an update",
            "set trainer.update_steps=null, or choose another model",
        )
    if cfg.anchors is not None and not traits.anchors:
        raise UserError(
            f"trainer.anchors={cfg.anchors} for a model {name} in which each view speaks for "
            "itself",
            "a model that gathers views in anchors",
            "set model.anchors=6, or trainer.anchors=null",
        )


def open_base_of(
    component: Component, tell: Callable[[str], None]
) -> tuple[Component, nn.Module | None]:
    """The model with the settings of its base's weights, and the base, where it has one."""
    if not has_base(component.settings):
        return component, None
    settings, base = open_base(component.settings, tell)
    return replace(component, settings=settings), base


def fill(
    model: nn.Module,
    component: Component,
    base: nn.Module | None,
    initial: str | None,
    tell: Callable[[str], None],
) -> None:
    """Fills a new model from given weights, or from those of its base and of its parts.

    UserError for a base without weights, since it does not learn.
    """
    if initial:
        start_from(model, initial)
        return
    if has_base(component.settings):
        if base is None:
            raise UserError(
                "a base without weights, which does not learn",
                "an encoder that was trained",
                "set model.base_weights to a published model or a checkpoint",
            )
        model.get_submodule("base").load_state_dict(base.state_dict())
    if has_initial_weights(component.settings):
        initialize(model, component.settings.init_from, tell)


def start_from(model: nn.Module, name_or_path: str) -> None:
    """Copies the weights of a published model or a checkpoint; UserError where shapes differ."""
    weights = load(name_or_path).state_dict()
    check_same(weights, model.state_dict(), name_or_path, AS_WRITTEN)
    model.load_state_dict(weights)
