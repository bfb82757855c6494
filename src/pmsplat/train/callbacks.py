"""Callbacks of the trainer: progress, checkpoints and Ctrl-C, pictures."""

import time
from collections.abc import Mapping
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

SHARE = 0.9  # share of the old value in a running mean
TERM = "loss/"  # prefix of the names of single loss terms
SHOWN = {"loss": "loss {:.4g}", "psnr": "PSNR {:.2f} dB", "abs_rel": "AbsRel {:.3f}"}
VALIDATED = "val/"  # prefix of the names of what a validation measures
PLAIN_LINES = 20  # lines of progress in total, where the output is not a terminal
PICTURES = 4  # scenes drawn per validation


class ProgressBar(Callback):
    """Shows remaining time, running means and samples per second: a bar, or plain lines in a file.

    The means are those of the outputs of a training step: the loss, the share of each loss term,
    and the quality of the prediction. Each validation is a line.
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

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = trainer.callback_metrics
        words = [
            text.format(float(found[f"{VALIDATED}{name}"]))
            for name, text in SHOWN.items()
            if f"{VALIDATED}{name}" in found
        ]
        if trainer.is_global_zero and words:
            line = f"step {trainer.global_step}/{self.steps}, validation: {', '.join(words)}"
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
