"""Training of a recurrent update on an initial model that stays as it is."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import pmsplat
from pmsplat import config, registry, train
from pmsplat.errors import UserError
from pmsplat.io.weights import Header, save_checkpoint
from pmsplat.losses import Term
from pmsplat.train import Experiment, Trainer
from pmsplat.train.callbacks import ProgressBar
from pmsplat.train.module import TrainingModule
from pmsplat.train.optim import freeze_others
from pmsplat.train.step import draw_steps
from pmsplat.types import Batch, Prediction, Views
from tests.models.tiny import SETTINGS, tiny, views
from tests.train.test_loop import interrupt_at, losses

STEPPED = SETTINGS["resplat"] | {"near": None, "far": None}


def a_batch(generator: torch.Generator) -> Batch:
    context, target = views(generator, 2, (32, 32)), views(generator, 2, (32, 32))
    return Batch(context, target, ["scene"])


def test_the_number_of_steps_is_uniform_and_depends_on_seed_device_and_step_alone() -> None:
    drawn = [draw_steps((1, 4), 7, 0, step) for step in range(4000)]
    assert drawn == [draw_steps((1, 4), 7, 0, step) for step in range(4000)]
    assert set(drawn) == {1, 2, 3, 4}
    assert all(count == pytest.approx(1000, abs=110) for count in Counter(drawn).values())
    for other in ((8, 0), (7, 1)):  # another seed, another device
        theirs = [draw_steps((1, 4), *other, step) for step in range(4000)]
        same = sum(a == b for a, b in zip(drawn, theirs, strict=True))
        assert same == pytest.approx(1000, abs=110)
    assert {draw_steps((2, 2), 0, 0, step) for step in range(9)} == {2}


def a_module(model: Any, *overrides: str) -> Any:
    experiment = config.compose(["+experiment=resplat_tiny_refine", *overrides])
    module = TrainingModule(experiment, model, {"l1": Term(registry.build("losses", "l1"))})
    module._trainer = SimpleNamespace(global_step=0, global_rank=3)  # pyright: ignore
    return module


def test_a_training_step_takes_the_steps_that_it_draws(generator: torch.Generator) -> None:
    model = tiny("resplat", **STEPPED).train()
    module, given = a_module(model), views(generator)
    seen = []
    for module._trainer.global_step in range(6):
        seen.append(module.predict(given).levels - 1)
    assert seen == [draw_steps((1, 4), module.experiment.seed, 3, step) for step in range(6)]
    assert len(set(seen)) > 1
    own = a_module(tiny("resplat", **STEPPED | {"steps": 2}).train(), "trainer.update_steps=null")
    assert own.predict(given).levels == 3


def test_only_the_update_learns_and_the_initial_model_keeps_no_graph(
    generator: torch.Generator,
) -> None:
    model = tiny("resplat", **STEPPED).train()
    torch.nn.init.normal_(model.update.head[-1].weight, std=1e-3)  # else it changes nothing
    freeze_others(model, ["update"])
    module = a_module(model, "trainer.update_steps=[2,2]")
    outcome = module.compute(a_batch(generator))
    first, *later = outcome.step.prediction.gaussians
    assert not first.means.requires_grad and all(level.means.requires_grad for level in later)
    assert not outcome.step.prediction.depths[0].requires_grad
    assert list(outcome.terms) == ["l1/1", "l1"]
    outcome.loss.backward()
    learned = {name for name, value in model.named_parameters() if value.grad is not None}
    resnet = {name for name, _ in model.named_parameters() if name.startswith("update.features.")}
    update = {name for name, _ in model.named_parameters() if name.startswith("update.")}
    assert learned == update - resnet


def start_of(folder: Path) -> str:
    """A checkpoint of an initial model."""
    model = tiny("resplat", **STEPPED | {"steps": None})
    path = folder / "start.safetensors"
    save_checkpoint(path, model.state_dict(), Header("resplat", STEPPED | {"steps": None}))
    return str(path)


@pytest.fixture
def stage(setting: Callable[..., Experiment], tmp_path: Path) -> Callable[..., Experiment]:
    """A run that trains the update of a small ReSplat on the initial model of a checkpoint."""
    start = start_of(tmp_path)

    def make(*overrides: str) -> Experiment:
        model = [f"model.{name}={value}" for name, value in STEPPED.items() if name != "steps"]
        model = [word.replace("None", "null") for word in model]
        return setting(
            "model=resplat", *model, "model.steps=2", f"model.init_from=[{start}]", "loss=l1",
            "~loss.log_depth", "optimizer.parts=[update]", "trainer.update_steps=[1,3]",
            "trainer.batch_size=1", *overrides,
        )  # fmt: skip

    return make


def test_a_run_changes_the_update_alone_and_leaves_a_model(
    stage: Callable[..., Experiment], tmp_path: Path
) -> None:
    told: list[str] = []
    path = train.run(stage("trainer.steps=4", "trainer.validate_every=4"), told.append)
    before, after = load_file(tmp_path / "start.safetensors"), load_file(path)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    added = after.keys() - before.keys()
    assert added and all(name.startswith("update.") for name in added)
    assert after["update.head.6.weight"].any()  # zero in the beginning
    assert any("parameters of points" in sentence for sentence in told)
    model = pmsplat.load(path)
    given = views(torch.Generator().manual_seed(2), 2, (32, 32))
    levels = model(given, steps=2, all_levels=True).gaussians  # pyright: ignore
    assert len(levels) == 3
    assert not torch.equal(levels[0].means, levels[2].means)


def test_a_resumed_run_draws_the_same_steps(
    stage: Callable[..., Experiment], tmp_path: Path
) -> None:
    straight, resumed = str(tmp_path / "a"), str(tmp_path / "b")
    train.run(stage("trainer.steps=5", f"output={straight}"))
    first = stage("trainer.steps=5", f"output={resumed}")
    interrupt_at(2, first)
    train.run(replace(first, trainer=replace(first.trainer, resume=True)))
    assert losses(resumed) == losses(straight) and len(losses(straight)) == 5


def test_steps_of_a_model_without_an_update_are_told(
    setting: Callable[..., Experiment], generator: torch.Generator
) -> None:
    with pytest.raises(UserError, match=r"update_steps=\[1, 4\] for a model tests\.lab\.encoder"):
        train.run(setting("trainer.update_steps=[1,4]"))
    with pytest.raises(UserError, match=r"parts with 'update'.*wanted some of net"):
        train.run(setting("optimizer.parts=[update]"))


@pytest.mark.parametrize("limits", [[1], [0, 3], [1, 2, 3], [4, 1]])
def test_wrong_limits_are_told(limits: list[int]) -> None:
    with pytest.raises(UserError, match=r"trainer\.update_steps=\["):
        Trainer(update_steps=limits)


def test_shown_terms_add_up_to_the_loss_though_levels_come_and_go(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, bar = a_module(tiny("resplat", **STEPPED).train()), ProgressBar(10, 1)
    module._trainer = SimpleNamespace(global_step=0, global_rank=0, optimizers=[])
    batch, levels = a_batch(generator), []
    for module._trainer.global_step in range(5):
        values = module.training_step(batch, 0)
        levels.append(draw_steps((1, 4), module.experiment.seed, 0, module._trainer.global_step))
        bar._update_means({name: value.detach() for name, value in values.items()})
        terms = [value for name, value in bar.means.items() if name.startswith("loss/")]
        assert float(sum(terms)) == pytest.approx(float(bar.means["loss"]), rel=1e-5)
        assert len(terms) == max(levels) + 1
    assert levels != sorted(levels) and len(set(levels)) > 1


def test_a_model_of_one_pass_is_called_with_views_alone(generator: torch.Generator) -> None:
    calls: list[Views] = []

    class Single(torch.nn.Linear):
        def forward(self, input: Any) -> Any:
            calls.append(input)
            return Prediction((), ())

    given = views(generator)
    a_module(Single(1, 1), "trainer.update_steps=null").predict(given)
    assert calls == [given]
