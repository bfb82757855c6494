"""A whole training run, from settings to a checkpoint."""

import importlib.util
import json
import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from torch import nn

from .. import registry
from ..contracts import (
    LPIPS,
    Dataset,
    DatasetTraits,
    EncoderTraits,
    dataset_traits,
    encoder_traits,
    has_base,
    has_initial_weights,
    require,
)
from ..device import cuda_obstacle, float32_products
from ..errors import UserError
from ..evaluate.protocol import find_lpips
from ..io.files import sole_writer, write_text
from ..io.weights import check_same
from ..losses import Term
from ..render import fast_backend, obstacle
from ..types import Batch
from ..zoo.init import initialize, open_base
from ..zoo.load import CONFIG, WEIGHTS, load, save
from . import optim, pointmaps
from .callbacks import LAST, Checkpoints, Pictures, ProgressBar
from .data_module import DataModule
from .memory import MemoryWatch
from .module import TrainingModule
from .settings import Component, Experiment, Trainer
from .skipped import SkippedScenes

log = logging.getLogger(__name__)

# Where every view is an anchor, a step leaves the weights for other views without a gradient
UNEVEN = "ddp_find_unused_parameters_true"
AS_WRITTEN = "give the settings that it was written with (config.json beside it)"
ADVICE = (  # of Lightning, on things that are decided here
    ".*does not have many workers.*",
    ".*`IterableDataset` has `__len__` defined.*",
    ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
    ".*in eval mode at the start of training.*",  # the base of an update
    ".*recommended to use `self.log.*sync_dist=True.*",  # means are the same on all devices already
)


def run(experiment: Experiment, tell: Callable[[str], None] = log.info) -> Path:
    """Trains, and returns the checkpoint OUTPUT/model.safetensors, ready for `pmsplat.load`.

    A new run starts from `trainer.initial`, or from what its model names in `init_from`, or from
    nothing; `tell` receives one sentence per source of weights.
    Also in OUTPUT: last.ckpt (to resume), config.json, the logs, pictures/. With the same seed and
    settings on CPU the losses are the same in every run, and after a resumption. Raises UserError
    for wrong settings or data, KeyboardInterrupt after Ctrl-C, when last.ckpt has been written.
    """
    cfg, output = experiment.trainer, Path(experiment.output)
    on_gpu = _check_devices(cfg)
    if on_gpu:
        _prepare_renderer(experiment.renderer.name)
    with ExitStack() as stack:
        if _writes():
            stack.enter_context(sole_writer(output))
        resumed = _find_checkpoint(output, cfg)
        stack.enter_context(_quiet_lightning())
        stack.enter_context(float32_products(tf32=on_gpu and cfg.precision != "float32"))
        # Open the data before anything slow, so that a wrong path is an error at once.
        data, add_pointmap = _open_data(experiment, tell)
        traits = dataset_traits(data.dataset)
        component = _learn_range(experiment.model, data.dataset, tell)
        component, base = _open_base(component, tell)
        experiment = replace(experiment, model=component)

        # Build the model and the losses; the seed makes initial weights the same in every run.
        torch.manual_seed(experiment.seed)
        model = registry.build("models", component.name, component.settings)
        _check_near(component.name, encoder_traits(model).near, traits)
        _check_draws(cfg, component.name, encoder_traits(model))
        optim.freeze_others(model, experiment.optimizer.parts)
        terms = {
            name: Term(
                registry.build("losses", term.name, term.settings), term.weight, term.start_step
            )
            for name, term in experiment.loss.items()
        }

        # Start from the checkpoint of an interrupted run, from given weights, or from nothing.
        if resumed:
            _check_resumed(resumed, model, cfg.steps)
        else:
            _start(model, component, base, cfg.initial, tell)
        del base

        # Keep the settings beside the results; name those that a resumed run changes.
        settings = output / CONFIG
        if resumed and settings.is_file():
            _tell_changes(json.loads(settings.read_text()), experiment, tell)
        write_text(settings, json.dumps(asdict(experiment), indent=1) + "\n")

        # Train; validation measures LPIPS where a loss wants it.
        lpips = find_lpips()[0] if experiment.losses_that_want(LPIPS) else None
        module = TrainingModule(experiment, model, terms, lpips, add_pointmap, traits.scale_near)
        checkpoints = Checkpoints(
            output,
            cfg.checkpoint_every,
            lambda path: save(model, path, component.name, component.settings),
            cfg.keep_checkpoints,
        )
        memory = MemoryWatch(lambda batch: module.compute(batch).loss)
        gathers = bool(encoder_traits(model).anchors)
        strategy = UNEVEN if gathers and _count_devices(cfg, on_gpu) > 1 else "auto"
        skipped = SkippedScenes(output, tell, cfg.strict)
        trainer = _build_trainer(experiment, [checkpoints, memory, skipped], strategy)
        if trainer.world_size > 1 and trainer.is_global_zero:
            together = trainer.world_size * cfg.batch_size
            tell(
                f"A step takes {together} scenes: {cfg.batch_size} on each of "
                f"{trainer.world_size} devices."
            )
        try:
            trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
        except torch.OutOfMemoryError as error:
            if memory.problem is None:
                raise
            raise _add_resume(memory.problem, output) from error
    if checkpoints.interrupted:
        raise KeyboardInterrupt
    return output / WEIGHTS


def _writes() -> bool:
    """Whether this process is the one that writes; the others follow it."""
    ranks = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def _find_checkpoint(output: Path, cfg: Trainer) -> Path | None:
    """The checkpoint to resume from, if any."""
    last = output / LAST
    if cfg.resume is True and not last.is_file():
        raise UserError(
            f"nothing to resume: there is no {last}",
            "an interrupted run",
            "leave trainer.resume out, or set it to auto",
        )
    if not cfg.resume and last.exists():
        raise UserError(
            f"{output} already holds a run",
            "a folder without one",
            "resume it (trainer.resume=true), or choose another folder (output=...)",
        )
    return last if last.is_file() else None


def _open_data(
    experiment: Experiment, tell: Callable[[str], None]
) -> tuple[DataModule, Callable[[Batch, int], Batch] | None]:
    """The data, opened once; and a function that adds the pointmaps which it lacks, if any does.

    UserError where the dataset has not all the parts that the run needs.
    """
    name, teacher = experiment.dataset.name, experiment.teacher
    dataset: Dataset = registry.build("data", name, experiment.dataset.settings)
    owner = f"the dataset {name!r}"
    require(dataset, "train", owner, "training")
    if experiment.trainer.validate_every:
        remedy = "add `evaluation` to it, or train without validation: trainer.validate_every=0"
        require(dataset, "evaluation", owner, "validation", remedy)
    dataset, add_pointmap = pointmaps.with_pointmaps(experiment, dataset, tell)
    data = DataModule(dataset, experiment)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the other processes start later
        data.prepare_data()
        if teacher is not None and teacher.cache is not None:
            pointmaps.require_cache(experiment, dataset).check_pointmaps()
    return data, add_pointmap


def _learn_range(component: Component, dataset: Dataset, tell: Callable[[str], None]) -> Component:
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


def _check_near(name: str, near: float | None, traits: DatasetTraits) -> None:
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


def _check_draws(cfg: Trainer, name: str, traits: EncoderTraits) -> None:
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


def _open_base(
    component: Component, tell: Callable[[str], None]
) -> tuple[Component, nn.Module | None]:
    """The model with the settings of its base's weights, and the base, where it has one."""
    if not has_base(component.settings):
        return component, None
    settings, base = open_base(component.settings, tell)
    return replace(component, settings=settings), base


def _start(
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


def _check_resumed(path: Path, model: nn.Module, steps: int) -> None:
    """UserError where the checkpoint is damaged, of another model, or of a run of another length,
    for which its learning rates were planned."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        saved, planned = content["state_dict"], content["lr_schedulers"][0]["total_steps"]
    except (RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} is not a readable checkpoint", "one that pmsplat wrote", "start a new run"
        ) from error
    if planned != optim.total_steps(steps):
        raise UserError(
            f"{path} of a run whose learning rate was planned for other than {steps} steps",
            f"trainer.steps as before ({planned - optim.total_steps(0)})",
            "start a new run from its weights: "
            f"trainer.initial={path.with_name(WEIGHTS)} output=...",
        )
    theirs = {name.removeprefix("model."): value for name, value in saved.items()}
    check_same(theirs, model.state_dict(), str(path), AS_WRITTEN)


def _tell_changes(before: Any, experiment: Experiment, tell: Callable[[str], None]) -> None:
    """Names the settings that a resumed run changes: the user means them, or forgot them."""
    old, new = (_flatten(_complete(run)) for run in (before, asdict(experiment)))
    for values in (old, new):
        values.pop("trainer.resume", None)
    changes = [
        f"{name}={new.get(name)} (was {old.get(name)})"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    if changes:
        tell(f"Goes on with other settings than before: {', '.join(changes)}")


def _complete(run: dict[str, Any]) -> Any:
    """An experiment as JSON has it, with every setting that its components have in this version.

    Older versions wrote others. Settings of which none can be made in this one stay as they are.
    """

    def complete(package: str, component: dict[str, Any]) -> dict[str, Any]:
        try:
            settings = registry.make_config(package, component["name"], component["settings"])
        except (UserError, TypeError):  # one too many, or one without a default is missing
            return component
        return component | {"settings": asdict(settings)}

    packages = {"model": "models", "dataset": "data"}
    parts = {part: complete(package, run[part]) for part, package in packages.items()}
    loss = {name: complete("losses", term) for name, term in run["loss"].items()}
    return json.loads(json.dumps(run | parts | {"loss": loss}))


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names, the components' own beside their common ones."""
    if not isinstance(value, dict):
        return {path: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flatten(inner, path if key == "settings" else f"{path}.{key}".lstrip("."))
    return found


def _check_devices(cfg: Trainer) -> bool:
    """Whether the run uses CUDA; UserError where its devices are not there, or cannot be used."""
    problem = None if cfg.accelerator == "cpu" else cuda_obstacle()
    if problem is not None:
        remedy = f"{problem.remedy}, or train on the CPU: trainer.accelerator=cpu"
        raise UserError(problem.got, problem.wanted, remedy)
    there = torch.cuda.device_count()
    if cfg.accelerator == "gpu" and not there:
        raise UserError(
            "trainer.accelerator=gpu without a CUDA device",
            "auto or cpu",
            "set trainer.accelerator=auto",
        )
    on_gpu = cfg.accelerator == "gpu" or (cfg.accelerator == "auto" and there > 0)
    if on_gpu and cfg.devices != "auto" and int(cfg.devices) > there:
        raise UserError(
            f"trainer.devices={cfg.devices} where there are {there}",
            f"at most {there}",
            "set trainer.devices=auto",
        )
    return on_gpu


def _count_devices(cfg: Trainer, on_gpu: bool) -> int:
    """How many devices of all nodes train together."""
    there = torch.cuda.device_count() if on_gpu else 1
    return cfg.nodes * (there if cfg.devices == "auto" else int(cfg.devices))


def _prepare_renderer(name: str) -> None:
    """Builds the renderer where it was never used; UserError where it cannot draw on CUDA.

    Every process comes here before its first step, and "auto" refuses to draw on the CPU.
    """
    device = torch.device("cuda")
    problem = obstacle(fast_backend(device) if name == "auto" else name, device)
    if problem is not None:
        raise problem


def _add_resume(problem: UserError, output: Path) -> UserError:
    """The problem with, in its remedy, how to go on from the checkpoint that is left, if any."""
    if not (output / LAST).is_file():
        return problem
    kept = f"{problem.remedy}, and go on from {output / LAST} by trainer.resume=true"
    return UserError(problem.got, problem.wanted, kept)


def _build_trainer(
    experiment: Experiment, callbacks: list[pl.Callback], strategy: str = "auto"
) -> pl.Trainer:
    cfg, output = experiment.trainer, Path(experiment.output)
    validate = cfg.validate_every > 0
    trainer = pl.Trainer(
        accelerator=cfg.accelerator,
        devices=cfg.devices if cfg.devices == "auto" else int(cfg.devices),
        num_nodes=cfg.nodes,
        strategy=strategy,
        precision="bf16-mixed" if cfg.precision == "bf16" else "32-true",
        max_steps=cfg.steps,
        val_check_interval=cfg.validate_every if validate else None,
        limit_val_batches=None if validate else 0,
        check_val_every_n_epoch=None,  # steps count, there are no epochs
        num_sanity_val_steps=0,
        log_every_n_steps=cfg.log_every,
        logger=_build_loggers(experiment),
        callbacks=[
            ProgressBar(cfg.steps, cfg.batch_size),
            Pictures(output / "pictures"),
            *callbacks,
        ],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # streams share themselves out
    )
    # Signals are handled by Checkpoints, so several devices need not ask each other at every step
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


def _build_loggers(experiment: Experiment) -> list[Logger]:
    output = experiment.output
    loggers: list[Logger] = []
    for name in experiment.trainer.loggers:
        if name == "tensorboard":
            loggers.append(TensorBoardLogger(output, name="tensorboard"))
        elif name == "csv":
            loggers.append(CSVLogger(output, name="csv"))
        elif importlib.util.find_spec("wandb") is None:
            raise UserError(
                "trainer.loggers has wandb, which is not installed",
                "the package wandb",
                "`pip install wandb`, or leave it out",
            )
        else:
            loggers.append(WandbLogger(name=experiment.name, project="pmsplat", save_dir=output))
    return loggers


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning without its banners and its advice on things decided here."""
    lightning = logging.getLogger("pytorch_lightning")
    before = lightning.level
    lightning.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for advice in ADVICE:
                warnings.filterwarnings("ignore", message=advice)
            yield
    finally:
        lightning.setLevel(before)


def start_from(model: nn.Module, name_or_path: str) -> None:
    """Copies the weights of a published model or a checkpoint; UserError where shapes differ."""
    weights = load(name_or_path).state_dict()
    check_same(weights, model.state_dict(), name_or_path, AS_WRITTEN)
    model.load_state_dict(weights)
