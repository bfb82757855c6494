"""One training step as a function: no framework, no state."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..evaluate.metrics import psnr
from ..evaluate.protocol import Pipeline
from ..losses._schedule import Term, total
from ..types import Batch, StepOutput


@dataclass(frozen=True)
class Outcome:
    """The scalar to minimise, what each term adds to it, and the mean PSNR in dB of the answer."""

    loss: Tensor
    terms: dict[str, Tensor]
    psnr: Tensor
    step: StepOutput


def training_step(
    run: Pipeline, batch: Batch, terms: Mapping[str, Term], global_step: int
) -> Outcome:
    """Predicts, draws and compares one batch; gradients flow from the loss to the model of `run`.

    Losses are computed in float32, whatever precision the model runs in.
    """
    step = run(batch)
    with torch.autocast(batch.target.images.device.type, enabled=False):
        loss, values = total(step, terms, global_step)
        quality = psnr(step.renderings[-1].color, batch.target.images).mean()
    return Outcome(loss, values, quality, step)
