"""The losses on rendered colour and their schedule, against sums done by hand."""

from pathlib import Path

import pytest
import torch

from pmsplat import registry
from pmsplat.losses import Term, Total, total
from pmsplat.types import Batch, Prediction, Rendering, StepOutput, Views
from tests.scenes import random_cameras, random_gaussians


def a_step(generator: torch.Generator, levels: int = 2, size: int = 40) -> StepOutput:
    """A step of random data: one scene, two context views, three targets."""

    def views(count: int) -> Views:
        images = torch.rand(1, count, 3, size, size, generator=generator)
        return Views(images, random_cameras(count, generator))

    def rendering() -> Rendering:
        color = torch.rand(1, 3, 3, size, size, generator=generator, requires_grad=True)
        return Rendering(color, torch.ones(1, 3, size, size), torch.ones(1, 3, size, size))

    prediction = Prediction(
        depths=tuple(torch.ones(1, 2, size, size) for _ in range(levels)),
        gaussians=tuple(random_gaussians(4, generator) for _ in range(levels)),
    )
    batch = Batch(views(2), views(3), ["scene"])
    return StepOutput(batch, prediction, tuple(rendering() for _ in range(levels)))


def by_hand(step: StepOutput, level: int) -> float:
    difference = step.renderings[level].color.double() - step.batch.target.images.double()
    return (difference**2).mean().item()


def test_mse_is_the_mean_over_everything(generator: torch.Generator) -> None:
    step = a_step(generator)
    assert registry.build("losses", "mse")(step).item() == pytest.approx(by_hand(step, 1))


def test_lpips_pulls_on_the_rendering(generator: torch.Generator, shared: Path) -> None:
    weights = str(shared / "weights" / "lpips_alexnet.npz")
    loss = registry.build("losses", "lpips", {"net": "alexnet", "weights": weights})
    step = a_step(generator)
    value = loss(step)
    value.backward()
    assert value.item() > 0.05
    assert step.renderings[0].color.grad is None
    gradient = step.renderings[1].color.grad
    assert gradient is not None and gradient.abs().max() > 0


def test_earlier_levels_count_nine_tenths_each(generator: torch.Generator) -> None:
    step = a_step(generator, levels=3)
    terms = {"mse": Term(registry.build("losses", "mse"), weight=2.0)}
    found = total(step, terms, global_step=0)
    loss, values = found.loss, found.terms
    coarse, middle, answer = (2 * by_hand(step, level) for level in range(3))
    assert list(values) == ["mse/0", "mse/1", "mse"]
    assert values["mse/0"].item() == pytest.approx(0.81 * coarse)
    assert values["mse/1"].item() == pytest.approx(0.9 * middle)
    assert loss.item() == pytest.approx(0.81 * coarse + 0.9 * middle + answer)
    loss.backward()
    assert all(rendering.color.grad is not None for rendering in step.renderings)


def test_a_term_starts_at_its_step_and_weight_zero_is_not_computed(
    generator: torch.Generator,
) -> None:
    step, calls = a_step(generator, levels=1), []

    def counted(step: StepOutput) -> torch.Tensor:
        calls.append(step)
        return step.renderings[-1].color.mean()

    late = {"late": Term(counted, start_step=10), "off": Term(counted, weight=0.0)}
    assert total(step, late, 9) == Total(torch.zeros(()), {}, {})
    assert not calls
    assert list(total(step, late, 10).terms) == ["late"]
    assert len(calls) == 1


def test_every_loss_that_needs_no_weights_builds_from_its_defaults() -> None:
    for name in registry.names("losses"):
        if name not in ("lpips", "perceptual"):
            assert callable(registry.build("losses", name))
