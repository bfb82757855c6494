"""Out of memory on a GPU: what would have fitted, measured by a step of one scene."""

import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ..device import is_out_of_memory
from ..errors import UserError
from ..types import Batch
from ..zoo.memory import SPARE, free_bytes

SMALLER = "fewer or smaller views (dataset.target_views, dataset.size), or trainer.precision=bf16"


class MemoryWatch(Callback):
    """Explains, as `problem`, why a run ended with a full memory of the GPU.

    `loss` is that of a batch, whose gradients are wanted.
    """

    def __init__(self, loss: Callable[[Batch], Tensor]) -> None:
        self.loss = loss
        self.problem: UserError | None = None
        self._batch: Batch | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._batch = batch

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batch = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if not is_out_of_memory(exception):
            return
        traceback.clear_frames(exception.__traceback__)  # they hold what the step computed
        fit, batch = None, self._batch
        if batch is not None and trainer.world_size == 1:  # others would wait for our gradients
            with trainer.precision_plugin.train_step_context():
                fit = count_fitting(self.loss, batch, pl_module, bool(trainer.optimizers[0].state))
        self.problem = explain(batch, fit, pl_module.device, trainer.global_step)


def count_fitting(
    loss: Callable[[Batch], Tensor], batch: Batch, module: torch.nn.Module, has_moments: bool
) -> int | None:
    """How many scenes fit where all of `batch` did not; None where that cannot be measured.

    `has_moments`: memory already holds those of the optimizer, two numbers for each weight.
    """
    device = batch.target.images.device
    if device.type != "cuda":
        return None
    module.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    room, before = free_bytes(device), torch.cuda.memory_allocated(device)
    try:
        loss(_first_scene(batch)).backward()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 0
    finally:
        module.zero_grad(set_to_none=True)
    assert room is not None
    weights = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    scene = torch.cuda.max_memory_allocated(device) - before - weights
    room = SPARE * room - weights * (1 if has_moments else 3)
    return max(0, min(int(room / max(scene, 1)), len(batch.scene) - 1))


def explain(batch: Batch | None, fit: int | None, device: torch.device, done: int) -> UserError:
    """The sentence for a run that ended after `done` steps because memory was full."""
    got = f"out of memory on {device} after {done} steps"
    if batch is None:
        return UserError(got, "a run that fits into memory", f"use {SMALLER}")
    scenes, context = batch.context.images.shape[:2]
    height, width = batch.target.size
    views = f"{context} + {batch.target.images.shape[1]} views of {height}x{width}"
    got += f", with batches of {scenes} scenes of {views}"
    if fit is None:
        fit = scenes // 2
        wanted = "a batch that fits"
    else:
        wanted = f"batches of at most {fit} scenes" if fit else "scenes that fit one at a time"
    options = [f"trainer.batch_size={fit}", SMALLER] if fit else [SMALLER]
    return UserError(got, wanted, f"use {', or '.join(options)}")


def _first_scene(batch: Batch) -> Batch:
    return replace(batch.map(lambda tensor: tensor[:1]), scene=batch.scene[:1])
