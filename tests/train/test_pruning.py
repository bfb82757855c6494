"""Training on a share of the Gaussians: what is drawn, what learns, and that a run repeats."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pmsplat import config, registry, train
from pmsplat.evaluate import protocol
from pmsplat.losses import Term
from pmsplat.train import Experiment
from pmsplat.train.module import TrainingModule
from pmsplat.train.step import step_generator
from pmsplat.types import Batch, Gaussians
from pmsplat.zoo.load import load
from tests.models.tiny import tiny, views
from tests.train.test_loop import losses


def a_batch(generator: torch.Generator) -> Batch:
    context, target = views(generator, 2, (32, 32)), views(generator, 2, (32, 32))
    return Batch(context, target, ["scene"])


def a_module(*overrides: str) -> Any:
    experiment = config.compose(["+experiment=demo_tiny", "loss=mse", *overrides])
    terms = {"mse": Term(registry.build("losses", "mse"))}
    module = TrainingModule(experiment, tiny(near=None, far=None), terms)
    module._trainer = SimpleNamespace(global_step=0, global_rank=0)  # pyright: ignore
    return module


def test_the_draw_depends_on_seed_device_and_step_alone() -> None:
    def draw(*given: int) -> list[float]:
        return torch.rand(4, generator=step_generator(torch.device("cpu"), *given)).tolist()

    assert draw(7, 0, 3) == draw(7, 0, 3)
    assert len({tuple(draw(*given)) for given in ((7, 0, 3), (8, 0, 3), (7, 1, 3), (7, 0, 4))}) == 4


def test_a_share_is_drawn_and_a_tenth_of_it_are_others(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, batch = a_module("renderer.keep=0.25"), a_batch(generator)
    drawn: list[Gaussians] = []
    rasterize = protocol.rasterize
    monkeypatch.setattr(
        protocol, "rasterize", lambda given, *rest: drawn.append(given) or rasterize(given, *rest)
    )
    outcome = module.compute(batch)
    (whole,) = outcome.step.prediction.gaussians
    total = whole.means.shape[1]
    assert total == 2 * 32 * 32 and drawn[-1].means.shape[1] == total // 4
    # The others are below the most opaque nine tenths, and get gradients as these do.
    limit = whole.opacities[0].sort(descending=True).values[round(total / 4 * 0.9) - 1]
    assert (drawn[-1].opacities < limit).sum() == round(total / 4 * 0.1)
    (gradient,) = torch.autograd.grad(outcome.loss, whole.opacities, retain_graph=True)
    learning = gradient[0] != 0
    assert (learning & (whole.opacities[0] < limit)).any() and learning.sum() <= total // 4
    # Validation draws the most opaque alone, and so does every evaluation.
    module.model.eval()
    module.validation(batch)
    ranked = whole.opacities[0].sort(descending=True).values[: total // 4]
    shown = drawn[-1].opacities[0].sort(descending=True).values
    torch.testing.assert_close(shown, ranked, rtol=1e-5, atol=1e-6)


def test_all_that_is_drawn_by_default_is_the_prediction_itself(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, drawn = a_module(), []
    rasterize = protocol.rasterize
    monkeypatch.setattr(
        protocol, "rasterize", lambda given, *rest: drawn.append(given) or rasterize(given, *rest)
    )
    outcome = module.compute(a_batch(generator))
    assert drawn[-1] is outcome.step.prediction.gaussians[-1]


def test_a_run_repeats_to_the_bit(setting: Callable[..., Experiment], tmp_path) -> None:
    shares = ["renderer.keep=0.4", "trainer.steps=4"]
    for name in ("one", "two"):
        train.run(setting(*shares, f"output={tmp_path / name}"))
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert len(losses(tmp_path / "one")) == 4
    first, second = (load(tmp_path / name).state_dict() for name in ("one", "two"))
    assert all(torch.equal(first[name], second[name]) for name in first)
