"""What a run keeps: checkpoints to resume from, and models to use."""

import errno
import math
import os
import shutil
import signal
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins import TorchCheckpointIO
from torch import nn

from ..device import is_out_of_memory
from ..io.files import atomic, clear_leftovers
from ..io.tensors import save_torch
from ..zoo.load import CONFIG, WEIGHTS
from .resume import KEPT, LAST

BEST = "best.safetensors"
AGREE_EVERY = 10  # steps: several devices wait for each other to learn of a Ctrl-C


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint where it is wanted; Lightning's own goes through memory and /tmp."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        save_torch(checkpoint, Path(path))


def clear_scraps(folder: Path) -> None:
    """Removes what a killed run had half written; for the only process that writes there."""
    for name in (WEIGHTS, BEST, CONFIG):
        clear_leftovers(folder / name)
    for path in (folder / KEPT).glob(".step_*.tmp"):
        path.unlink()
    _temporary(folder).unlink(missing_ok=True)


def needed_bytes(model: nn.Module, keep: int, has_average: bool) -> int:
    """What a run writes at most for a model: checkpoints and exports, one of each being replaced.

    A checkpoint has weights, two moments of those that train, and their mean where there is one.
    """
    weights = sum(value.nbytes for value in model.state_dict().values())
    moments = 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad)
    checkpoint = weights * (2 if has_average else 1) + moments
    return (keep + 1) * checkpoint + 3 * weights


def kept_bytes(folder: Path) -> int:
    """What a run has written of that already, and replaces."""
    paths = [*(folder / KEPT).glob("step_*.ckpt"), folder / WEIGHTS, folder / BEST]
    if len(paths) == 2:
        paths.append(folder / LAST)  # otherwise one of those
    return sum(path.stat().st_size for path in paths if path.is_file())


class Checkpoints(Callback):
    """Saves FOLDER/last.ckpt and the model every `every` steps, at the end and after Ctrl-C.

    `export` writes the model to a path, and is called on all devices: FOLDER/model.safetensors, and
    best.safetensors whenever a validation is the best so far, by PSNR, or by AbsRel of a model of
    depth alone. With `keep` above 1 the checkpoints of the last so many saves are in
    FOLDER/checkpoints too.

    Files are replaced as a whole, and checkpoints are read again before that. After Ctrl-C the
    current step finishes on all devices (where there are several, up to AGREE_EVERY steps), so that
    training can be resumed exactly, and only a validation that was due follows; a second Ctrl-C
    stops at once. SIGTERM, which schedulers send before SIGKILL, often more than once, has the
    effect of the first. Where memory is full, the last finished step is saved.
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
        agreed = False
        if trainer.world_size == 1 or trainer.global_step % AGREE_EVERY == 0:
            agreed = trainer.strategy.reduce_boolean_decision(self.interrupted, all=False)
            self.interrupted = agreed
        if agreed or trainer.global_step % self.every == 0:
            self._save(trainer)
        if agreed:
            # End as after a last step. `should_stop` would log old values, and validate out of turn
            trainer.fit_loop.epoch_loop.max_steps = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = trainer.callback_metrics
        name, sign = ("val/psnr", 1) if "val/psnr" in values else ("val/abs_rel", -1)
        value = sign * float(values.get(name, torch.nan))
        if value > (-math.inf if self.best is None else self.best):  # on all devices alike
            self.best = value
            self._saved_at = -1  # what is saved does not know it yet
            self.export(self.folder / BEST)

    def state_dict(self) -> dict[str, float | None]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, float | None]) -> None:
        self.best = state_dict["best"]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._saved_at < 0:  # no step was left: the run was killed before it wrote its model
            self.export(self.folder / WEIGHTS)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Out of memory: what the finished steps learned is kept. Several devices cannot agree."""
        if is_out_of_memory(exception) and trainer.world_size == 1 and trainer.global_step > 0:
            progress = trainer.fit_loop.epoch_loop.batch_progress
            for count in (progress.total, progress.current):  # as if the step had not begun
                count.ready = count.started = count.processed  # pyright: ignore
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step == self._saved_at:
            return
        self._saved_at = trainer.global_step
        temporary = _temporary(self.folder)
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
            with atomic(place) as copy:
                shutil.copyfile(saved, copy)
        for old in sorted(kept.glob("step_*.ckpt"))[: -self.keep]:
            old.unlink()

    def _on_ctrl_c(self, signum: int, frame: Any) -> None:
        if self.interrupted and signum == signal.SIGINT:  # SIGTERM may come from several sides
            raise KeyboardInterrupt
        self.interrupted = True


def _temporary(folder: Path) -> Path:
    """Where a checkpoint is written before it replaces another; the same in all processes."""
    return folder / f".{LAST}.tmp"


def _read_again(path: Path) -> None:
    """Raises OSError for a checkpoint that did not reach the disk as it was written."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise OSError(errno.EIO, f"{damaged} is not what was written", str(path))
