"""Levels of a prediction that has more Gaussians than depths: a recurrent update."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pmsplat import registry
from pmsplat.losses import Term, total
from pmsplat.types import Prediction, StepOutput
from tests.losses.test_photometric import a_step

SIZE = 12


def updated(generator: torch.Generator, steps: int, frozen: bool) -> StepOutput:
    """One depth, and Gaussians of it and after each step; `frozen`: only steps have gradients."""
    step = a_step(generator, levels=1 + steps, size=SIZE)
    depth = 1 + torch.rand(1, 2, SIZE, SIZE, generator=generator)
    renderings = step.renderings
    if frozen:
        first = replace(renderings[0], color=renderings[0].color.detach())
        renderings = (first, *renderings[1:])
    prediction = Prediction((depth.requires_grad_(not frozen),), step.prediction.gaussians)
    known = replace(step.batch.context, depth=torch.ones(1, 2, SIZE, SIZE))
    batch = replace(step.batch, context=known)
    return StepOutput(batch, prediction, renderings)


def terms(*names: str) -> dict[str, Term]:
    return {name: Term(registry.build("losses", name), weight=3.0) for name in names}


def error(step: StepOutput, level: int) -> float:
    """The mean absolute difference, in float64."""
    color, images = step.renderings[level].color, step.batch.target.images
    return (color.double() - images.double()).abs().mean().item()


def test_l1_is_the_mean_over_everything(generator: torch.Generator) -> None:
    step = a_step(generator)
    assert registry.build("losses", "l1")(step).item() == pytest.approx(error(step, 1))


def test_every_step_of_an_update_counts_and_a_frozen_start_does_not(
    generator: torch.Generator,
) -> None:
    step = updated(generator, steps=3, frozen=True)
    found = total(step, terms("l1"), global_step=0)
    wanted = 3 * (0.81 * error(step, 1) + 0.9 * error(step, 2) + error(step, 3))
    assert list(found.terms) == ["l1/1", "l1/2", "l1"]
    assert found.loss.item() == pytest.approx(wanted)
    found.loss.backward()
    assert all(rendering.color.grad is not None for rendering in step.renderings[1:])


def test_a_start_that_learns_counts_as_the_first_level(generator: torch.Generator) -> None:
    step = updated(generator, steps=2, frozen=False)
    found = total(step, terms("l1"), global_step=0)
    wanted = 3 * sum(0.9 ** (2 - level) * error(step, level) for level in range(3))
    assert list(found.terms) == ["l1/0", "l1/1", "l1"]
    assert found.loss.item() == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["depth", "log_depth", "smoothness"])
def test_losses_of_depth_act_where_a_level_has_its_own(
    name: str, generator: torch.Generator
) -> None:
    step = updated(generator, steps=2, frozen=False)
    found = total(step, terms("l1", name), global_step=0)
    assert list(found.terms) == ["l1/0", f"{name}/0", "l1/1", "l1"]
    alone = registry.build("losses", name)(step.up_to(0)).item()
    assert found.terms[f"{name}/0"].item() == pytest.approx(3 * 0.81 * alone)
    frozen = total(updated(generator, steps=2, frozen=True), terms("l1", name), global_step=0)
    assert list(frozen.terms) == ["l1/1", "l1"]


def test_a_prediction_without_any_gradient_still_has_a_loss(generator: torch.Generator) -> None:
    step = updated(generator, steps=1, frozen=True)
    still = tuple(replace(r, color=r.color.detach()) for r in step.renderings)
    found = total(replace(step, renderings=still), terms("l1"), global_step=0)
    assert list(found.terms) == ["l1/0", "l1"]
    assert found.loss.item() == pytest.approx(3 * (0.9 * error(step, 0) + error(step, 1)))


def test_what_is_cut_off_is_left_over(generator: torch.Generator) -> None:
    step = updated(generator, steps=3, frozen=True)
    lefts: list[tuple[int, int, Tensor | None]] = []

    def look(step: StepOutput) -> None:
        lefts.append((step.levels_left, step.prediction.levels, step.depth))

    total(step, {"look": Term(look)}, global_step=0)
    assert [(left, levels) for left, levels, _ in lefts] == [(2, 2), (1, 3), (0, 4)]
    assert all(depth is None for _, _, depth in lefts)
    assert step.up_to(0).depth is step.prediction.depths[0]
