"""One training step as a function: no framework, no state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from ..evaluate.metrics import psnr
from ..evaluate.protocol import Pipeline
from ..losses import Term, total
from ..types import Batch, StepOutput

ALL_ANCHORS = 0.15  # share of the steps in which every view is an anchor


@dataclass(frozen=True)
class Outcome:
    """The scalar to minimize, what each term adds to it, and how good the answer is.

    `skipped` has, for terms that skip samples, how many they skipped.
    `quality` has the mean "psnr" in dB where something was rendered, and "abs_rel" of the context
    depth where the data brings depth (NaN where none of its pixels is known).
    """

    loss: Tensor
    terms: dict[str, Tensor]
    skipped: dict[str, Tensor]
    quality: dict[str, Tensor]
    step: StepOutput


def draw_steps(limits: Sequence[int], seed: int, rank: int, global_step: int) -> int:
    """A number of update steps between the two limits, both included.

    It depends on nothing else, so a resumed run draws the same; devices draw different ones.
    """
    return Random(f"{seed}/{rank}/{global_step}").randint(*limits)


def draw_anchors(limits: Sequence[int], views: int, seed: int, rank: int, global_step: int) -> int:
    """A number of anchors between the two limits, both included, and at most that of the views.

    In ALL_ANCHORS of the steps it is that of the views, so that the encoder also learns from views
    that speak for themselves. It depends on nothing else, as `draw_steps`.
    """
    random = Random(f"anchors/{seed}/{rank}/{global_step}")
    if random.random() < ALL_ANCHORS:
        return views
    fewest, most = limits
    return random.randint(min(fewest, views), min(most, views))


def step_generator(device: torch.device, seed: int, rank: int, global_step: int) -> torch.Generator:
    """A generator of which the same holds: a resumed run draws the same, devices draw others."""
    number = Random(f"{seed}/{rank}/{global_step}").getrandbits(63)
    return torch.Generator(device).manual_seed(number)


def training_step(
    run: Pipeline, batch: Batch, terms: Mapping[str, Term], global_step: int
) -> Outcome:
    """Predicts, draws and compares one batch; gradients flow from the loss to the model of `run`.

    Losses are computed in float32, whatever precision the model runs in.
    """
    step = run(batch)
    with torch.autocast(batch.target.images.device.type, enabled=False):
        found = total(step, terms, global_step)
        return Outcome(found.loss, found.terms, found.skipped, _quality(step), step)


def _quality(step: StepOutput) -> dict[str, Tensor]:
    """Left on the device: a training step does not wait for its numbers."""
    values: dict[str, Tensor] = {}
    for rendering in step.renderings[-1:]:
        values["psnr"] = psnr(rendering.color, step.batch.target.images).mean()
    known = step.context.depth
    if known is not None:
        counts = known > 0
        for depth in step.prediction.depths[-1:]:
            error = (depth.detach() - known).abs() / torch.where(counts, known, 1)
            values["abs_rel"] = torch.where(counts, error, 0).sum() / counts.sum()
    return values
