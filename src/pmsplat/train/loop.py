"""A whole training run, from settings to a checkpoint."""

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.strategies import Strategy
from torch import nn

from .. import registry
from ..contracts import LPIPS, Dataset, dataset_traits, encoder_traits
from ..device import float32_products, is_out_of_memory
from ..errors import UserError, count_of
from ..evaluate.protocol import find_lpips
from ..io.files import check_room, is_full, sole_writer, write_text
from ..losses import Term
from ..zoo.load import CONFIG, WEIGHTS, save
from . import optim
from .callbacks import Pictures, ProgressBar
from .checkpoints import (
    BEST,
    Checkpoints,
    WholeFiles,
    clear_scraps,
    kept_bytes,
    needed_bytes,
)
from .data_module import DataModule
from .devices import check_devices, choose_strategy, is_first, prepare_renderer
from .memory import MemoryWatch
from .module import TrainingModule
from .profile import Profile
from .resume import LAST, add_resume, check_resumed, find_checkpoint, is_finished, tell_changes
from .settings import Experiment, Trainer
from .sharding import gather_state
from .skipped import SkippedScenes
from .start import Data, check_draws, check_near, fill, learn_range, open_base_of

log = logging.getLogger(__name__)

PROFILE = "profile"

ADVICE = (  # of Lightning, on things that are decided here
    ".*does not have many workers.*",
    ".*`IterableDataset` has `__len__` defined.*",
    ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
    ".*FSDP2-wrapped module .* returned a view.*",  # nothing writes into a prediction
    ".*in eval mode at the start of training.*",  # the base of an update
    ".*Profiler won't be using warmup.*",  # which Profile says itself
    ".*recommended to use `self.log.*sync_dist=True.*",  # means are the same on all devices already
)


def run(data: Data, tell: Callable[[str], None] = log.info) -> Path:
    """Trains on opened data, and returns OUTPUT/model.safetensors, ready for `pmsplat.load`.

    A new run starts from `trainer.initial`, or from what its model names in `init_from`, or from
    nothing; `tell` receives one sentence per source of weights, and what became of the run. One
    that is resumed and has no step left writes nothing.
    Also in OUTPUT: last.ckpt (to resume), config.json, the logs, pictures/. With the same seed and
    settings on CPU the losses are the same in every run, and after a resumption. Raises UserError
    for wrong settings or data, KeyboardInterrupt after Ctrl-C, when last.ckpt has been written.
    """
    experiment = data.experiment
    cfg, output = experiment.trainer, Path(experiment.output)
    on_gpu = check_devices(cfg)
    if on_gpu:
        prepare_renderer(experiment.renderer.name)
    with ExitStack() as stack:
        if is_first():
            stack.enter_context(sole_writer(output))
            clear_scraps(output)
        resumed = find_checkpoint(output, cfg)
        stack.enter_context(_quiet_lightning())
        stack.enter_context(float32_products(tf32=on_gpu and cfg.precision != "float32"))
        experiment, model = _build_model(experiment, data.dataset, resumed, tell)
        if resumed and is_finished(resumed, cfg.steps, tell):
            return output / WEIGHTS
        if is_first():
            needed = needed_bytes(model, cfg.keep_checkpoints, bool(cfg.ema)) - kept_bytes(output)
            check_room(output, needed, "checkpoints and models take")
        _keep_settings(experiment, resumed, tell)

        # Put the run together; validation measures LPIPS where a loss wants it.
        lpips = find_lpips()[0] if experiment.losses_that_want(LPIPS) else None
        terms = {
            name: Term(
                registry.build("losses", term.name, term.settings), term.weight, term.start_step
            )
            for name, term in experiment.loss.items()
        }
        scale = dataset_traits(data.dataset).scale_near
        module = TrainingModule(experiment, model, terms, lpips, data.add_pointmap, scale)
        checkpoints = Checkpoints(
            output, cfg.checkpoint_every, _Export(module), cfg.keep_checkpoints
        )
        memory = MemoryWatch(lambda batch: module.compute(batch).loss)
        callbacks = [checkpoints, memory, SkippedScenes(output, tell, cfg.strict)]
        if cfg.profile:
            callbacks.append(Profile(output / PROFILE, cfg.profile, tell))
        strategy = choose_strategy(cfg, on_gpu, bool(encoder_traits(model).anchors), tell)
        trainer = _build_trainer(experiment, callbacks, strategy)
        _describe(trainer, model, cfg, tell)

        # Train. What cannot be finished says how to go on from what is kept.
        try:
            stream = DataModule(data.dataset, experiment)
            trainer.fit(module, datamodule=stream, ckpt_path=resumed, weights_only=True)
        except RuntimeError as error:
            if memory.problem is None or not is_out_of_memory(error):
                raise
            raise add_resume(memory.problem, output) from error
        except OSError as error:
            if not is_full(error):
                raise
            raise add_resume(_explain_full(error, trainer.global_step), output) from error
    if checkpoints.interrupted:
        raise KeyboardInterrupt
    tell(f"trained: {output / WEIGHTS}")
    return output / WEIGHTS


def _build_model(
    experiment: Experiment, dataset: Dataset, resumed: Path | None, tell: Callable[[str], None]
) -> tuple[Experiment, nn.Module]:
    """The experiment with the settings of its model that data and weights decide, and the model.

    Filled from given weights, or from nothing; not from the checkpoint of a run that goes on, which
    is checked.
    """
    traits = dataset_traits(dataset)
    component = learn_range(experiment.model, dataset, tell)
    component, base = open_base_of(component, tell)
    torch.manual_seed(experiment.seed)  # initial weights are the same in every run
    model = registry.build("models", component.name, component.settings)
    check_near(component.name, encoder_traits(model).near, traits)
    check_draws(experiment.trainer, component.name, encoder_traits(model))
    optim.freeze_others(model, experiment.optimizer.parts)
    if resumed:
        check_resumed(resumed, model, experiment.trainer.steps)
    else:
        fill(model, component, base, experiment.trainer.initial, tell)
    return replace(experiment, model=component), model


def _keep_settings(
    experiment: Experiment, resumed: Path | None, tell: Callable[[str], None]
) -> None:
    """Writes the settings beside the results; names those that a resumed run changes."""
    path = Path(experiment.output) / CONFIG
    if resumed and path.is_file():
        tell_changes(json.loads(path.read_text()), experiment, tell)
    write_text(path, json.dumps(asdict(experiment), indent=1) + "\n")


@dataclass(frozen=True)
class _Export:
    """Writes the model that is shown to a path; all processes call it, the first writes."""

    module: TrainingModule

    def __call__(self, path: Path) -> None:
        (model,), average = self.module.shown, self.module.average
        component = self.module.experiment.model
        if average is not None:
            average.refresh()
        state = gather_state(model)
        if self.module.trainer.is_global_zero:
            save(model, path, component.name, component.settings, state)


def _describe(
    trainer: pl.Trainer, model: nn.Module, cfg: Trainer, tell: Callable[[str], None]
) -> None:
    """Says once what trains and where, what a step takes, and which weights the files hold."""
    if not trainer.is_global_zero:
        return
    device = trainer.strategy.root_device
    on_gpu = device.type == "cuda"
    place = torch.cuda.get_device_name(device) if on_gpu else "the CPU"
    precision = "float32" if cfg.precision == "tf32" and not on_gpu else cfg.precision
    sizes = {weight: weight.numel() for weight in model.parameters()}
    trained = sum(size for weight, size in sizes.items() if weight.requires_grad)
    total = sum(sizes.values())
    part = "" if trained == total else f", {trained:,} of which train"
    tell(f"Trains on {place} in {precision}: {count_of(total, 'parameter')}{part}.")
    if trainer.world_size > 1:
        together = trainer.world_size * cfg.batch_size
        tell(
            f"A step takes {together} scenes: {cfg.batch_size} on each of {trainer.world_size} "
            "devices."
        )
    if cfg.ema:
        tell(
            f"{WEIGHTS}, {BEST} and validation have the running mean of the weights "
            f"(trainer.ema={cfg.ema}); {LAST} has both."
        )


def _explain_full(error: OSError, done: int) -> UserError:
    """The sentence for a run that ended after `done` steps because it could not write."""
    place = f" at {error.filename}" if error.filename else ""
    return UserError(
        f"cannot write{place} after {done} steps: {error.strerror}",
        "room and permission to write",
        "free some space",
    )


def _build_trainer(
    experiment: Experiment, callbacks: list[pl.Callback], strategy: str | Strategy = "auto"
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
        plugins=[WholeFiles()],
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
