"""One training step of a model with and without Gaussians, and what is shown of it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pmsplat import config, registry
from pmsplat.evaluate.depth import depth_metrics
from pmsplat.losses import Term
from pmsplat.train.callbacks import SHARE, SHOWN, _running, row_of, shown
from pmsplat.train.module import TrainingModule
from pmsplat.train.step import Outcome, training_step
from pmsplat.types import Batch, Pointmap, StepOutput
from tests.losses.test_depth import depth_only, random_depths
from tests.losses.test_photometric import a_step


def with_known_depth(step: StepOutput, known: torch.Tensor) -> StepOutput:
    context = replace(step.batch.context, depth=known)
    return replace(step, batch=replace(step.batch, context=context))


def answered(step: StepOutput, loss: str) -> Outcome:
    """The outcome of a training step whose model and renderer leave `step`."""

    def run(batch: Batch) -> StepOutput:
        return step

    return training_step(run, step.batch, {loss: Term(registry.build("losses", loss))}, 0)


def test_a_step_without_gaussians_learns_and_tells_of_depth(generator: torch.Generator) -> None:
    depth, known = random_depths(generator, dtype=torch.float32)
    outcome = answered(depth_only(depth, known), "depth")
    outcome.loss.backward()
    assert depth.grad is not None and depth.grad.any()
    assert set(outcome.quality) == {"abs_rel"} and not outcome.quality["abs_rel"].requires_grad
    want = depth_metrics(depth, known).abs_rel
    assert outcome.quality["abs_rel"].item() == pytest.approx(want, rel=1e-5)


def test_a_step_with_gaussians_tells_of_colour_and_of_depth_if_known(
    generator: torch.Generator,
) -> None:
    step = a_step(generator)
    assert set(answered(step, "mse").quality) == {"psnr"}
    known = torch.full_like(step.prediction.depths[-1], 0.8)
    quality = answered(with_known_depth(step, known), "mse").quality
    assert set(quality) == {"psnr", "abs_rel"}
    assert quality["abs_rel"].item() == pytest.approx(0.25)
    nowhere = answered(with_known_depth(step, torch.zeros_like(known)), "mse").quality
    assert nowhere["abs_rel"].isnan()


def test_samples_that_a_loss_passes_over_reach_the_log_and_add_up(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth, _ = random_depths(generator, dtype=torch.float32)
    step = depth_only(depth, None)
    pointmap = Pointmap(torch.ones(*depth.shape, 3), torch.ones(depth.shape))
    flat = replace(step.batch.context, pointmap=pointmap)
    step = replace(step, batch=replace(step.batch, context=flat))
    terms = {"pointmap": Term(registry.build("losses", "pointmap"))}
    experiment = config.compose(["+experiment=depth_tiny", "trainer.log_every=1"])
    module = TrainingModule(experiment, torch.nn.Identity(), terms)
    logged: list[dict[str, torch.Tensor]] = []
    optimizers = [SimpleNamespace(param_groups=[])]
    module._trainer = SimpleNamespace(global_step=0, optimizers=optimizers)  # pyright: ignore
    monkeypatch.setattr(module, "log_dict", lambda values, batch_size: logged.append(values))
    monkeypatch.setattr(module, "pipeline", lambda batch: step)
    for _ in range(3):
        module.training_step(step.batch, 0)
    assert [values["train/skipped/pointmap"].item() for values in logged] == [1, 2, 3]
    assert [values["train/loss/pointmap"].item() for values in logged] == [0, 0, 0]


def test_running_means_pass_over_what_is_not_known() -> None:
    nan, two, four = torch.tensor([float("nan"), 2.0, 4.0])
    assert _running(two, four).item() == pytest.approx(SHARE * 2 + (1 - SHARE) * 4)
    assert _running(nan, two) == _running(two, nan) == two
    assert _running(nan, nan).isnan()


def test_the_bar_can_show_all_that_a_step_returns(generator: torch.Generator) -> None:
    step = a_step(generator)
    outcome = answered(with_known_depth(step, torch.ones_like(step.prediction.depths[-1])), "mse")
    assert set(SHOWN) == {"loss", *outcome.quality}


def test_the_progress_line_has_what_each_of_several_losses_adds() -> None:
    means = {"loss": 0.5, "loss/mse": 0.4, "psnr": 20.0}
    values = {name: torch.tensor(value) for name, value in means.items()}
    assert shown(values) == "loss 0.5, PSNR 20.00 dB"
    values |= {"loss/pointmap": torch.tensor(0.07), "loss/pointmap/0": torch.tensor(0.03)}
    assert shown(values) == "loss 0.5 (mse 0.4, pointmap 0.1), PSNR 20.00 dB"


def test_pictures_show_what_there_is(generator: torch.Generator) -> None:
    depth, known = random_depths(generator, dtype=torch.float32)
    label, images = row_of(depth_only(depth, known))
    assert label == "scene: context, known depth, predicted depth"
    assert len(images) == 2 + 2 and all(image.shape == (3, 7, 7) for image in images)
    assert not images[2][:, known[0, 0] == 0].any()  # black where nothing is known
    unknown, few = row_of(depth_only(depth, None))
    assert unknown == "scene: context, predicted depth" and len(few) == 3
    drawn, all_of_it = row_of(a_step(generator))
    assert drawn == "scene: context, target, render, predicted depth, rendered depth"
    assert len(all_of_it) == 2 + 2 + 2
