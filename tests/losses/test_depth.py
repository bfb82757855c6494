"""The depth loss against a sum by hand, its gradient, and data without depth."""

import math
from dataclasses import replace

import pytest
import torch

from pmsplat import registry
from pmsplat.errors import UserError
from pmsplat.types import Prediction, StepOutput
from tests.losses.test_photometric import a_step


def with_depth(step: StepOutput, depth: torch.Tensor, known: torch.Tensor) -> StepOutput:
    batch = replace(step.batch, context=replace(step.batch.context, depth=known))
    return StepOutput(batch, Prediction((depth,), step.prediction.gaussians[:1]), step.renderings)


def test_depth_is_the_mean_relative_error_of_known_pixels(generator: torch.Generator) -> None:
    known = torch.zeros(1, 2, 40, 40)
    known[0, 0, 3, 4], known[0, 1, 5, 6] = 2.0, 4.0
    depth = torch.full((1, 2, 40, 40), 2.0)
    depth[0, 0, 3, 4] = 1.0
    depth.requires_grad_()
    loss = registry.build("losses", "depth")(with_depth(a_step(generator), depth, known))
    assert loss.item() == pytest.approx(math.log(2.0))
    loss.backward()
    assert depth.grad is not None
    assert depth.grad[0, 0, 3, 4].item() == pytest.approx(-0.5)
    assert depth.grad[0, 1, 5, 6].item() == pytest.approx(-0.25)
    assert depth.grad.count_nonzero() == 2


def test_no_known_pixel_costs_nothing(generator: torch.Generator) -> None:
    depth = torch.ones(1, 2, 40, 40, requires_grad=True)
    step = with_depth(a_step(generator), depth, torch.zeros(1, 2, 40, 40))
    loss = registry.build("losses", "depth")(step)
    loss.backward()
    assert loss.item() == 0.0
    assert depth.grad is not None and depth.grad.isfinite().all()


def test_data_without_depth_is_told(generator: torch.Generator) -> None:
    with pytest.raises(UserError, match=r"without depth.*~loss\.depth"):
        registry.build("losses", "depth")(a_step(generator))
