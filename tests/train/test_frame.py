"""Training in the world that a model wants: the same loss and gradients as by hand."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pmsplat import config
from pmsplat.losses import Term, mse
from pmsplat.render import rasterize
from pmsplat.train import start
from pmsplat.train.module import TrainingModule
from pmsplat.train.settings import Component
from tests.evaluate.test_series import SIZE, a_batch, align
from tests.models.stepped import Stepped, stepped


def trained(model: Stepped, scale_near: bool) -> TrainingModule:
    experiment = config.compose(["+experiment=demo_tiny", "renderer.name=reference"])
    terms = {"mse": Term(mse.build(mse.Config()))}
    return TrainingModule(experiment, model.train(), terms, scale_near=scale_near)


@pytest.mark.parametrize("near", [None, 0.01])
def test_a_step_in_the_frame_of_the_middle_view(
    near: float | None, generator: torch.Generator
) -> None:
    """Every scene of the batch in its own, and with `near` in the unit of its depth."""
    model, batch = stepped(generator, near=near, steps=0), a_batch(generator, 2)
    outcome = trained(model, near is not None).compute(batch)
    outcome.loss.backward()
    found, gradient = outcome.loss.item(), model.weight.grad
    assert gradient is not None and gradient != 0

    seen = align(batch)
    if near is not None:
        seen = seen.scaled(5 / (0.5 * 200**0.5)).with_range(0.01, 200.0)
    model.weight.grad = None
    gaussians = model(seen.context).gaussians[-1]
    drawn = rasterize(gaussians, seen.target.cameras, SIZE, "reference")
    loss = (drawn.color - batch.target.images).square().mean()
    loss.backward()
    assert found == pytest.approx(loss.item(), rel=1e-4)
    torch.testing.assert_close(gradient, model.weight.grad, rtol=1e-3, atol=1e-6)
    ours, wanted = (views.cameras for views in (model.seen[0], seen.context))
    torch.testing.assert_close(ours.c2w, wanted.c2w, rtol=0, atol=1e-5)
    assert torch.equal(ours.near, wanted.near) and torch.equal(ours.far, wanted.far)


def test_validation_measures_in_the_same_world(generator: torch.Generator) -> None:
    model, batch = stepped(generator), a_batch(generator)
    module = trained(model, scale_near=True)
    model.eval()
    step = module.validation_step(batch, 0)
    assert step.batch is batch and len(step.renderings) == 1
    assert torch.equal(model.seen[-1].cameras.far, torch.full((1, 4), 200.0))
    torch.testing.assert_close(model.seen[-1].cameras.c2w[:, 2], torch.eye(4)[None])


@dataclass
class Settings:
    near: float | None = 0.01
    far: float | None = 200.0


def test_a_model_learns_the_range_of_data_in_one_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pmsplat.registry.make_config", lambda *_: Settings())

    def learn(**traits: object) -> Settings:
        dataset: Any = SimpleNamespace(**traits)
        found: Any = start.learn_range(Component("some", None), dataset, lambda _: None)
        return found.settings

    assert learn(near=0.5, far=20.0, scale_near=False) == Settings(0.5, 20.0)
    assert learn() == Settings(None, 200.0)  # each scene has its own, and far does not count
    assert learn(near=0.5, far=20.0, scale_near=True) == Settings()
    # A model that searches the range of each scene goes on doing so
    monkeypatch.setattr("pmsplat.registry.make_config", lambda *_: Settings(0.5, None))
    assert learn(near=1.0, far=20.0, scale_near=False) == Settings(1.0, None)
