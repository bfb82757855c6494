"""Training with random numbers of views, gathered in random numbers of anchors."""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

import pmsplat
from pmsplat import config, registry, train
from pmsplat.errors import UserError
from pmsplat.losses import Term
from pmsplat.train import Experiment, devices
from pmsplat.train.callbacks import row_of
from pmsplat.train.module import TrainingModule
from pmsplat.train.step import ALL_ANCHORS, draw_anchors, training_step
from pmsplat.types import Batch, Prediction, StepOutput, Views
from tests.models.picking import Picking
from tests.models.tiny import tiny, views
from tests.scenes import random_cameras
from tests.train.test_loop import interrupt_at, losses

SMALL = ["model=depthsplat_tiny", "model.width=16", "model.planes=8", "model.head_width=16"]
SMALL += ["dataset.views=[3,6]", "dataset.gap=[5,8]"]
TINY = [*SMALL, "model.anchors=4", "trainer.anchors=[2,4]"]


def test_anchors_are_uniform_between_the_limits_and_now_and_then_all_views() -> None:
    drawn = Counter(draw_anchors((3, 8), 12, 7, 0, step) for step in range(20_000))
    assert set(drawn) == {3, 4, 5, 6, 7, 8, 12}
    assert drawn.pop(12) / 20_000 == pytest.approx(ALL_ANCHORS, abs=0.01)
    assert all(count / 17_000 == pytest.approx(1 / 6, abs=0.015) for count in drawn.values())


def test_anchors_are_never_more_than_the_views() -> None:
    few = Counter(draw_anchors((3, 8), 4, 7, 0, step) for step in range(4000))
    assert set(few) == {3, 4}
    assert {draw_anchors((3, 8), 2, 7, 0, step) for step in range(100)} == {2}


def test_anchors_depend_on_seed_device_and_step_alone() -> None:
    drawn = [draw_anchors((3, 8), 16, 7, 0, step) for step in range(1000)]
    assert drawn == [draw_anchors((3, 8), 16, 7, 0, step) for step in range(1000)]
    for other in ((8, 0), (7, 1)):  # another seed, another device
        theirs = [draw_anchors((3, 8), 16, *other, step) for step in range(1000)]
        same = sum(a == b for a, b in zip(drawn, theirs, strict=True))
        assert same == pytest.approx(1000 * (6 * (0.85 / 6) ** 2 + ALL_ANCHORS**2), abs=60)


def a_module(model: Any, *overrides: str) -> Any:
    experiment = config.compose(["+experiment=zpressor_tiny", *overrides])
    module = TrainingModule(experiment, model, {"mse": Term(registry.build("losses", "mse"))})
    module._trainer = SimpleNamespace(global_step=0, global_rank=3)  # pyright: ignore
    return module


def test_a_training_step_gathers_in_the_anchors_that_it_draws(generator: torch.Generator) -> None:
    given = views(generator, 7, (16, 16))
    module = a_module(tiny(anchors=2))
    seen = []
    for module._trainer.global_step in range(12):
        seen.append(module.predict(given).depths[-1].shape[1])
    seed = module.experiment.seed
    assert seen == [draw_anchors((3, 8), 7, seed, 3, step) for step in range(12)]
    assert len(set(seen)) > 2
    assert a_module(tiny(anchors=2), "trainer.anchors=null").predict(given).depths[-1].shape[1] == 2


def test_steps_and_anchors_are_drawn_together(generator: torch.Generator) -> None:
    shown: list[dict[str, int]] = []

    class Both(torch.nn.Module):
        steps, anchors = 2, 4

        def forward(self, views: Views, **drawn: int) -> Prediction:
            shown.append(drawn)
            return Prediction((), ())

    module = a_module(Both(), "trainer.update_steps=[1,4]")
    module.predict(views(generator, 7, (16, 16)))
    assert [set(drawn) for drawn in shown] == [{"steps", "anchors"}]


@pytest.mark.parametrize("limits", ["[1,4]", "[5,3]", "[3]"])
def test_impossible_limits_are_told(limits: str) -> None:
    with pytest.raises(UserError, match=r"trainer\.anchors"):
        config.compose(["+experiment=zpressor_tiny", f"trainer.anchors={limits}"])


def test_anchors_of_a_model_without_are_told(setting: Callable[..., Experiment]) -> None:
    with pytest.raises(UserError, match=r"trainer\.anchors=\[3, 8\].*set model\.anchors=6"):
        train.run(setting("trainer.anchors=[3,8]"))


def test_a_run_learns_from_any_number_of_views_and_is_resumed_exactly(
    setting: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[tuple[int, int]] = []
    original = TrainingModule.predict

    def predict(self: TrainingModule, views: Views) -> Prediction:
        prediction = original(self, views)
        numbers.append((views.images.shape[1], prediction.depths[-1].shape[1]))
        return prediction

    monkeypatch.setattr(TrainingModule, "predict", predict)
    steps = "trainer.steps=10"
    straight = setting(steps, *TINY)
    checkpoint = train.run(straight)
    whole, numbers[:] = list(numbers), []
    assert len({views for views, _ in whole}) > 1 and len({anchors for _, anchors in whole}) > 1
    assert all(anchors <= views for views, anchors in whole)
    broken = setting(steps, *TINY, f"output={straight.output}2")
    interrupt_at(4, broken)
    train.run(setting(steps, *TINY, f"output={broken.output}", "trainer.resume=true"))
    assert numbers == whole
    assert losses(broken.output) == losses(straight.output)
    model = pmsplat.load(checkpoint)
    assert model(views(torch.Generator().manual_seed(0), 6)).depths[-1].shape[1] == 4


def test_it_starts_from_a_trained_encoder_as_that_encoder_on_the_anchors(
    setting: Callable[..., Experiment], generator: torch.Generator
) -> None:
    before = train.run(setting("trainer.steps=2", *SMALL))
    told: list[str] = []
    experiment = setting(
        "trainer.steps=1", "optimizer.lr=0", "optimizer.weight_decay=0", *TINY,
        f"model.init_from=[{before}]", f"output={before.parent}2",
    )  # fmt: skip
    after = train.run(experiment, told.append)
    assert any("parameters of head" in line for line in told)
    encoder, gathering = pmsplat.load(before).eval(), pmsplat.load(after).eval()
    given = views(generator, 6, (32, 32))
    with torch.no_grad():
        found = gathering(given)
        assert found.views is not None
        alone = encoder(found.select(given))
    torch.testing.assert_close(found.depths[-1], alone.depths[-1])
    torch.testing.assert_close(found.gaussians[-1].opacities, alone.gaussians[-1].opacities)


@pytest.mark.parametrize(("anchors", "count"), [(0, "1"), (0, "2"), (4, "1"), (4, "2")])
def test_devices_may_leave_out_the_weights_of_supports(
    anchors: int, count: str, setting: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all views are anchors on one of them; found out only where that can be."""
    strategies = []

    class Stop(Exception):
        pass

    def note(*args: Any, strategy: str, **kwargs: Any) -> None:
        strategies.append(strategy)
        raise Stop

    monkeypatch.setattr(pl, "Trainer", note)
    with pytest.raises(Stop):
        train.run(setting(*(TINY if anchors else SMALL), f"trainer.devices='{count}'"))
    assert strategies == [devices.UNEVEN if anchors and count == "2" else "auto"]


def test_what_is_shown_of_a_step_is_of_the_views_spoken_of() -> None:
    """The error of depth, and the first pair of pictures: the truth beside what was predicted."""
    generator = torch.Generator().manual_seed(0)
    depth = 1 + torch.rand(1, 4, 16, 20, generator=generator)
    images = torch.rand(1, 4, 3, 16, 20, generator=generator)
    context = Views(images, random_cameras(4, generator), depth=depth)

    class Right(torch.nn.Module):
        def forward(self, views: Views) -> Prediction:
            at = [
                int((images[0] - image).abs().flatten(1).sum(1).argmin())
                for image in views.images[0]
            ]
            return Prediction((depth[:, at],), ())

    def run(batch: Batch) -> StepOutput:
        return StepOutput(batch, Picking(Right(), anchors=2)(batch.context), ())

    batch = Batch(context, context, ["a"])
    term = {"depth": Term(registry.build("losses", "depth"))}
    outcome = training_step(run, batch, term, 0)
    assert outcome.quality["abs_rel"] == 0 and outcome.loss == 0
    label, pictures = row_of(outcome.step)
    assert label == "a: context, known depth, predicted depth"
    assert torch.equal(pictures[-2], pictures[-1]) and len(pictures) == 6
