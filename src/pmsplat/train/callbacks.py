"""Callbacks of the trainer: progress, checkpoints and Ctrl-C, pictures."""

import errno
import math
import os
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ..types import Batch, StepOutput
from ..view.figures import color_range, colorize_depth, contact_sheet
from ..zoo.load import WEIGHTS

LAST = "last.ckpt"
BEST = "best.safetensors"
KEPT = "checkpoints"
SHARE = 0.9  # share of the old value in a running mean
TERM = "loss/"  # prefix of the names of single loss terms
SHOWN = {"loss": "loss {:.4g}", "psnr": "PSNR {:.2f} dB", "abs_rel": "AbsRel {:.3f}"}
PLAIN_LINES = 20  # lines of progress in total, where the output is not a terminal
AGREE_EVERY = 10  # steps: several devices wait for each other to learn of a Ctrl-C
PICTURES = 4  # scenes drawn per validation


class ProgressBar(Callback):
    """Shows remaining time, running means and samples per second: a bar, or plain lines in a file.

    The means are those of the outputs of a training step: the loss, the share of each loss term,
    and the quality of the prediction.
    """

    def __init__(self, steps: int, batch_size: int) -> None:
        self.steps, self.batch_size = steps, batch_size
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
        )
        self.task = self.bar.add_task("", total=steps, text="")
        self.means: dict[str, Tensor] = {}
        self.start = (0, 0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = (trainer.global_step, time.perf_counter())
        self.bar.update(self.task, completed=trainer.global_step)
        if trainer.is_global_zero and self.console.is_terminal:
            self.bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Update the means. A term that starts later starts at 0, so that terms add up to the loss.
        self._update_means(outputs)
        every = 10 if self.console.is_terminal else max(1, self.steps // PLAIN_LINES)
        if trainer.global_step % every and trainer.global_step != self.steps:
            return
        # Log and show the progress.
        first_step, start_time = self.start
        done = (trainer.global_step - first_step) * self.batch_size * trainer.world_size
        rate = done / (time.perf_counter() - start_time)
        pl_module.log("train/samples_per_second", rate, batch_size=1)
        text = f"{shown(self.means)}, {rate:.3g} samples/s"
        self.bar.update(self.task, completed=trainer.global_step, text=text)
        if trainer.is_global_zero and not self.console.is_terminal:
            left = self.bar.tasks[0].time_remaining
            ending = f", {left:.0f} s left" if left is not None else ""
            line = f"step {trainer.global_step}/{self.steps}: {text}{ending}"
            self.console.print(line, soft_wrap=True)

    def _update_means(self, values: Mapping[str, Tensor]) -> None:
        """All at once, since there are steps on which a GPU waits for such small launches."""
        if not values:
            return
        fresh = {
            name: torch.zeros_like(value) if self.means and name.startswith(TERM) else value
            for name, value in values.items()
            if name not in self.means
        }
        before = torch.stack([(self.means | fresh)[name] for name in values])
        after = _running(before, torch.stack(list(values.values())))
        self.means |= dict(zip(values, after.unbind(), strict=True))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.bar.stop()


def shown(means: Mapping[str, Tensor]) -> str:
    """Formats the means, as in "loss 0.021 (mse 0.018, pointmap 0.003), PSNR 27.51 dB".

    The levels of a term are summed.
    """
    values = dict(
        zip(means, torch.stack(list(means.values())).tolist() if means else [], strict=True)
    )
    words = {name: text.format(values[name]) for name, text in SHOWN.items() if name in values}
    terms: dict[str, float] = {}
    for name in values.keys() - SHOWN.keys():
        term = name.removeprefix(TERM).partition("/")[0]
        terms[term] = terms.get(term, 0.0) + values[name]
    if len(terms) > 1:
        shares = ", ".join(f"{term} {terms[term]:.3g}" for term in sorted(terms))
        words["loss"] += f" ({shares})"
    return ", ".join(words.values())


def _running(mean: Tensor, value: Tensor) -> Tensor:
    """Returns the mean after one more `value`; ignores either argument where it is NaN."""
    updated = SHARE * mean + (1 - SHARE) * value
    return torch.where(updated.isnan(), torch.where(value.isnan(), mean, value), updated)


class Checkpoints(Callback):
    """Saves FOLDER/last.ckpt and the model every `every` steps, at the end and after Ctrl-C.

    `export` writes the model to a path: FOLDER/model.safetensors, and best.safetensors whenever a
    validation is the best so far, by PSNR, or by AbsRel of a model of depth alone. With `keep`
    above 1 the checkpoints of the last so many saves are in FOLDER/checkpoints too.

    Files are replaced as a whole, and checkpoints are read again before that. After Ctrl-C the
    current step finishes on all devices (where there are several, up to AGREE_EVERY steps), so that
    training can be resumed exactly; a second Ctrl-C stops at once. SIGTERM, which schedulers send
    before SIGKILL, often more than once, has the effect of the first. Where memory is full, the
    last finished step is saved.
    """

    def __init__(
        self, folder: Path, every: int, export: Callable[[Path], None], keep: int = 1
    ) -> None:
        self.folder, self.every, self.export, self.keep = folder, every, export, keep
        self.best: float | None = None  # the highest value
        self.interrupted = False
        self._saved_at = -1
        self._before: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if threading.current_thread() is threading.main_thread():  # others cannot handle signals
            self._before = signal.signal(signal.SIGINT, self._on_ctrl_c)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Replace Lightning's handler, which stops without saving; Lightning restores the old one.
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._on_ctrl_c)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.world_size == 1 or trainer.global_step % AGREE_EVERY == 0:
            self.interrupted = trainer.strategy.reduce_boolean_decision(self.interrupted, all=False)
            trainer.should_stop |= self.interrupted
        if not trainer.should_stop and trainer.global_step % self.every == 0:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = trainer.callback_metrics
        name, sign = ("val/psnr", 1) if "val/psnr" in values else ("val/abs_rel", -1)
        value = sign * float(values.get(name, torch.nan))
        if trainer.is_global_zero and value > (-math.inf if self.best is None else self.best):
            self.best = value
            self.export(self.folder / BEST)

    def state_dict(self) -> dict[str, float | None]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, float | None]) -> None:
        self.best = state_dict["best"]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Out of memory: what the finished steps learned is kept. Several devices cannot agree."""
        memory_is_full = isinstance(exception, torch.OutOfMemoryError)
        if memory_is_full and trainer.world_size == 1 and trainer.global_step > 0:
            progress = trainer.fit_loop.epoch_loop.batch_progress
            for count in (progress.total, progress.current):  # as if the step had not begun
                count.ready = count.started = count.processed  # pyright: ignore
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step == self._saved_at:
            return
        self._saved_at = trainer.global_step
        temporary = self.folder / f".{LAST}.tmp"
        try:
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                _read_again(temporary)
                self._keep(temporary, trainer.global_step)
                os.replace(temporary, self.folder / LAST)
                self.export(self.folder / WEIGHTS)
        finally:
            if trainer.is_global_zero:
                temporary.unlink(missing_ok=True)

    def _keep(self, saved: Path, step: int) -> None:
        """Keeps a checkpoint under the name of its step, and as many of those before."""
        if self.keep == 1:
            return
        kept = self.folder / KEPT
        kept.mkdir(exist_ok=True)
        place = kept / f"step_{step:07d}.ckpt"
        place.unlink(missing_ok=True)
        try:
            place.hardlink_to(saved)
        except OSError:  # a file system without links
            shutil.copyfile(saved, place)
        for old in sorted(kept.glob("step_*.ckpt"))[: -self.keep]:
            old.unlink()

    def _on_ctrl_c(self, signum: int, frame: Any) -> None:
        if self.interrupted and signum == signal.SIGINT:  # SIGTERM may come from several sides
            raise KeyboardInterrupt
        self.interrupted = True


def _read_again(path: Path) -> None:
    """Raises OSError for a checkpoint that did not reach the disk as it was written."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise OSError(errno.EIO, f"{damaged} is not what was written", str(path))


class Pictures(Callback):
    """Writes FOLDER/step_NNNNNNN.png at every validation: inputs and outputs of the first scenes.

    There is one row per scene. The rows are logged to TensorBoard too, if that is a logger.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[tuple[str, list[Tensor]]] = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.is_global_zero and len(self.rows) < PICTURES:
            self.rows.append(row_of(outputs))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows, self.rows = self.rows, []
        if not rows:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        contact_sheet(rows, self.folder / f"step_{trainer.global_step:07d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for i, (_, images) in enumerate(rows):
                    picture = torch.cat(images, dim=-1)
                    logger.experiment.add_image(f"val/scene_{i}", picture, trainer.global_step)


def row_of(step: StepOutput) -> tuple[str, list[Tensor]]:
    """Returns a scene's label and pictures.

    These are all context views, the first target with its rendering, and depth maps in colour: the
    known and the predicted depth of the first view that is predicted, the rendered depth of the
    first target. Those that do not exist are left out. All depth maps have the colour range of the
    first.
    """
    context, target = step.batch.context, step.batch.target
    names, images, depths = ["context"], [*context.images[0]], {}
    known = step.context.depth
    if known is not None:
        depths["known depth"] = known
    for depth in step.prediction.depths[-1:]:
        depths["predicted depth"] = depth
    for rendering in step.renderings[-1:]:
        names += ["target", "render"]
        images += [target.images[0, 0], rendering.color[0, 0].clamp(0, 1)]
        depths["rendered depth"] = rendering.depth
    maps = [depth[0, 0].detach() for depth in depths.values()]
    if maps:
        near, far = color_range(maps[0])
        images += [colorize_depth(depth, near, far) for depth in maps]
    label = f"{step.batch.scene[0]}: {', '.join([*names, *depths])}"
    return label, [image.detach().float().cpu() for image in images]
