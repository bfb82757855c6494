"""What stops a training."""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from pmsplat import config, registry
from pmsplat.errors import UserError
from pmsplat.evaluate.protocol import Row
from pmsplat.losses import mse
from pmsplat.train import pointmaps
from pmsplat.train.module import TrainingModule
from pmsplat.train.step import Outcome
from pmsplat.types import Pointmap, Views
from tests.losses.test_depth import depth_only, random_depths


def test_a_loss_that_passes_over_every_sample_for_long_stops_the_run(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth, _ = random_depths(generator, dtype=torch.float32)
    step = depth_only(depth, None)
    batch = replace(step.batch, scene=["one", "two"])
    experiment = config.compose(["+experiment=depth_tiny", "trainer.log_every=5"])
    module = TrainingModule(experiment, torch.nn.Identity(), {})
    trainer = SimpleNamespace(global_step=0, optimizers=[SimpleNamespace(param_groups=[])])
    module._trainer = trainer  # pyright: ignore
    monkeypatch.setattr(module, "log_dict", lambda values, batch_size: None)
    zero = torch.zeros(())

    def steps(first: int, last: int, skipped: int) -> None:
        told = Outcome(zero, {}, {"pointmap": torch.tensor(skipped)}, {}, step)
        monkeypatch.setattr("pmsplat.train.module.training_step", lambda *_: told)
        for trainer.global_step in range(first, last):
            module.training_step(batch, 0)

    steps(0, 18, skipped=2)
    steps(18, 19, skipped=1)  # one sample counted: the count starts again
    steps(19, 38, skipped=2)
    steps(38, 39, skipped=2)  # 20 in a row, told where the log is written
    with pytest.raises(UserError, match=r"loss\.pointmap skipped every .* 21 steps.*~loss\.po"):
        steps(39, 40, skipped=2)


def test_validation_means_are_over_all_devices_though_metrics_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One device has scenes with targets outside the baseline, the other has none."""
    experiment = config.compose(["+experiment=depth_tiny"])
    module = TrainingModule(experiment, torch.nn.Identity(), {})
    module._trainer = SimpleNamespace(world_size=2, global_step=7)  # pyright: ignore
    ours = [Row("a", 2, {"psnr": 20.0}), Row("b", 2, {"psnr": 22.0, "psnr_outside": 18.0})]
    theirs = [Row("c", 2, {"psnr": 27.0})]

    def gathered(rows: list[list[Row]], mine: list[Row]) -> None:
        rows[:] = [mine, theirs]

    logged = {}
    monkeypatch.setattr("torch.distributed.all_gather_object", gathered)
    monkeypatch.setattr(module, "log_dict", logged.update)
    module.rows = ours
    module.on_validation_epoch_end()
    assert logged == {"val/psnr": 23.0, "val/psnr_outside": 18.0, "step": 7}


def test_the_teacher_does_not_run_before_its_loss_begins(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    queried = []

    def query_teacher(teacher: object, views: Views) -> Pointmap:
        queried.append(views)
        points = torch.zeros(*views.images.shape[:2], *views.size, 3)
        return Pointmap(points, torch.ones_like(points[..., 0]))

    monkeypatch.setattr(pointmaps, "query_teacher", query_teacher)
    overrides = ["+experiment=demo_tiny", "teacher=given", "teacher.cache=null"]
    experiment = config.compose([*overrides, "+loss.pointmap={start_step: 3}"])
    dataset = registry.build("data", "synthetic", experiment.dataset.settings)
    _, add_pointmap = pointmaps.with_pointmaps(experiment, dataset, print)
    assert add_pointmap is not None
    depth, _ = random_depths(generator, dtype=torch.float32)
    batch = depth_only(depth, None).batch
    assert add_pointmap(batch, 2).context.pointmap is None and not queried
    assert add_pointmap(batch, 3).context.pointmap is not None and len(queried) == 1


def foreign_loss(monkeypatch: pytest.MonkeyPatch, **names: Any) -> None:
    """Somebody's module `somebodys.loss` with these names in it."""
    module = ModuleType("somebodys.loss")
    for name, value in {"Config": mse.Config, "build": mse.build, **names}.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "somebodys", ModuleType("somebodys"))
    monkeypatch.setitem(sys.modules, "somebodys.loss", module)


def test_a_foreign_loss_gets_the_teacher_that_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["+experiment=demo_tiny", "+loss.own={name: somebodys.loss, weight: 2}"]
    with_teacher = [*settings, "teacher=given", "teacher.cache=null"]
    foreign_loss(monkeypatch, WANTS={"pointmap"})
    experiment = config.compose(with_teacher)
    dataset = registry.build("data", "synthetic", experiment.dataset.settings)
    assert pointmaps.with_pointmaps(experiment, dataset, print)[1] is not None
    with pytest.raises(UserError, match=r"loss\.own without a teacher"):
        pointmaps.with_pointmaps(config.compose(settings), dataset, print)

    foreign_loss(monkeypatch)
    assert pointmaps.with_pointmaps(config.compose(settings), dataset, print)[1] is None
    with pytest.raises(UserError, match=r"'given' is set, but no loss uses it.*WANTS"):
        pointmaps.with_pointmaps(config.compose(with_teacher), dataset, print)
    for wrong in ({"pointmaps"}, "pointmap", True):
        foreign_loss(monkeypatch, WANTS=wrong)
        with pytest.raises(UserError, match=r"WANTS = .* in the loss somebodys\.loss"):
            pointmaps.with_pointmaps(config.compose(with_teacher), dataset, print)
