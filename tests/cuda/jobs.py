"""Whole jobs on the fake device, files in and files out: training runs, and the verbs of `tasks`.

The photos are a procedural room, the encoder a small one with random weights. Numbers that come
back from the device are made up, so only the road is tried, not what comes out.
"""

import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pmsplat import config, registry, train
from pmsplat.data import synthetic
from pmsplat.foundation.teachers import depth_anything_3, query_teacher, vggt
from pmsplat.io.gaussians import save_gaussians
from pmsplat.tasks import depth, evaluate, predict, refine, render, teacher
from pmsplat.tasks.refine._fit import Fit
from pmsplat.train import Experiment, loop
from pmsplat.types import Batch, Views
from pmsplat.zoo.load import save
from tests.scenes import random_cameras, random_gaussians

from .device import FakeDevice, move
from .scenarios import Scenario, lpips_weights

SMALL = {
    "vit": "none",
    "width": 16,
    "planes": 8,
    "transformer_layers": 1,
    "head_width": 16,
    "sh_degree": 1,
}
STEPS = 60  # planned, so that progress is told every third step; the run is stopped before
REFINED, QUIET = 21, 9  # steps of `refine`; Gaussians are changed after the 10th
STEADY, LAST = 3, 4  # the step that stands for all, and the one after which the run stops


def jobs() -> dict[str, Scenario]:
    """All of them, by name."""
    runs = {
        "tf32": ["trainer.precision=tf32"],
        "bf16": ["trainer.precision=bf16"],
        "teacher": [
            "teacher=given", "+loss.pointmap.weight=0.005", "+loss.pointmap.robust=2",
            "trainer.precision=bf16",
        ],
        "scaled": ["trainer.precision=float32", "+loss.ssim={}", "trainer.validate_every=5"],
    }  # fmt: skip
    found: dict[str, Callable[[FakeDevice, Path], Any]] = {
        **{f"run {name}": partial(run, overrides=more) for name, more in runs.items()},
        "job predict": predict_job,
        "job predict refined": partial(predict_job, refine_poses=2),
        "job depth": depth_job,
        "job graphs": graphs_job,
        "job evaluate": evaluate_job,
        "job render": render_job,
        "job refine": partial(refine_job, strategy="default"),
        "job refine mcmc": partial(refine_job, strategy="mcmc"),
        "job refine gsplat-default": partial(refine_job, strategy="gsplat-default"),
        "job refine gsplat-mcmc": partial(refine_job, strategy="gsplat-mcmc"),
        "job refine antialiased prediction": partial(refine_job, start="prediction"),
        "job teacher": teacher_job,
        "job vggt": vggt_job,
        "job depth_anything_3": depth_anything_3_job,
    }
    return {name: partial(_in_folder, job=job) for name, job in found.items()}


def _in_folder(device: FakeDevice, job: Callable[[FakeDevice, Path], Any]) -> None:
    os.environ["PMSPLAT_LPIPS"] = lpips_weights()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with device.ledger.stage("job"):
            job(device, Path(folder))


@cache
def rooms() -> Path:
    """Procedural scenes of 10 photos of 64x64, with depth."""
    root = Path(tempfile.mkdtemp())
    for split, scenes in (("train", 4), ("test", 1)):
        synthetic.write(root, scenes=scenes, frames=10, size=(64, 64), seed=0, split=split)
    return root


@cache
def checkpoint() -> Path:
    """A small encoder."""
    path = Path(tempfile.mkdtemp()) / "model.safetensors"
    model = registry.build("models", "depthsplat", SMALL)
    save(model.eval(), path, "depthsplat")
    return path


def experiment(folder: Path, *overrides: str) -> Experiment:
    """A few steps of the small encoder on the rooms, on the device."""
    model = [f"model.{name}={value}" for name, value in SMALL.items()]
    return config.compose(
        [
            "+experiment=demo_tiny", *model, f"dataset.root={folder / 'rooms'}",
            "dataset.scenes=4", "dataset.test_scenes=1", "dataset.frames=10",
            f"trainer.steps={STEPS}", "trainer.validate_every=0", "trainer.accelerator=gpu",
            f"output={folder / 'out'}", *overrides,
        ]
    )  # fmt: skip


def run(device: FakeDevice, folder: Path, overrides: list[str]) -> None:
    """`pmsplat train`, with a stage for one step among others."""

    class Watched(loop.TrainingModule):
        def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
            super().on_train_batch_start(batch, batch_idx)
            self.trainer.should_stop = batch_idx == LAST
            device.ledger.turn_to("step" if batch_idx == STEADY else "other steps")

        def on_train_end(self) -> None:
            device.ledger.turn_to("end")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "TrainingModule", Watched)
        train.run(experiment(folder, *overrides), tell=lambda line: None)


def predict_job(device: FakeDevice, folder: Path, refine_poses: int | None = None) -> None:
    options = predict.Options(views=2, held_out=1, fps=2, device="cuda", refine_poses=refine_poses)
    predict.predict(rooms() / "test", checkpoint(), folder / "out", options)


def depth_job(device: FakeDevice, folder: Path) -> None:
    options = depth.Options(views=3, device="cuda")
    depth.depth(rooms() / "test", checkpoint(), folder / "out", options)


def evaluate_job(device: FakeDevice, folder: Path) -> None:
    options = evaluate.Options(baselines=True, geometry=True, device="cuda")
    evaluate.evaluate(experiment(folder), checkpoint(), folder / "measured", options)


def graphs_job(device: FakeDevice, folder: Path) -> None:
    """`depth` of three photos and `evaluate`, in bf16 and as graphs."""
    options = depth.Options(context=(0, 4, 9), device="cuda", graph=True, precision="bf16")
    depth.depth(rooms() / "test", checkpoint(), folder / "out", options)
    measured = evaluate.Options(device="cuda", graph=True, precision="bf16")
    evaluate.evaluate(experiment(folder), checkpoint(), folder / "measured", measured)


def render_job(device: FakeDevice, folder: Path) -> None:
    save_gaussians(random_gaussians(200, torch.Generator().manual_seed(0)), folder / "some.ply")
    options = render.Options(orbit=2, size=(48, 64), median=True, device="cuda")
    render.render(folder / "some.ply", None, folder / "out", options)


def refine_job(
    device: FakeDevice, folder: Path, strategy: str = "default", start: str = "random"
) -> None:
    """`pmsplat refine`, with a stage for a step at which no Gaussian is added or removed; from a
    prediction it is antialiased."""
    advance, ledger = Fit.advance, device.ledger

    def watched(self: Fit, photos: Views) -> None:
        with ledger.stage("step" if self.step == QUIET - 1 else "other steps"):
            advance(self, photos)

    options = refine.Options(strategy=strategy, steps=REFINED, most=400, device="cuda")
    if start == "prediction":
        options = replace(options, start=start, model=checkpoint(), antialiased=True)
    else:
        options = replace(options, start=start, random_points=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fit, "advance", watched)
        refine.refine(rooms() / "test", folder / "out", options)


def teacher_job(device: FakeDevice, folder: Path) -> None:
    wanted = experiment(
        folder, "teacher=given", "teacher.windows.every=2", "+loss.pointmap.weight=0.005",
        f"teacher.cache={folder / 'cache'}",
    )  # fmt: skip
    teacher.cache(wanted, device="cuda", tell=lambda line: None)


class Network(nn.Module):
    """Stands for a teacher's network, which others wrote: answers of the right shapes."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        super().__init__()
        self.weight, self.answer = nn.Parameter(torch.zeros(3)), answer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.answer(*args, **kwargs)


def query(device: FakeDevice, teacher: Any, network: nn.Module) -> None:
    """Two views of 70x70 pixels, none of whose sides the network takes."""
    teacher.network = network
    views = Views(torch.zeros(1, 2, 3, 72, 72), random_cameras(2, torch.Generator()))
    seen = move(views, device)
    for _ in range(2):
        device.ledger.forget()
        with device.ledger.stage("query"):
            query_teacher(teacher, seen)


def vggt_job(device: FakeDevice, folder: Path) -> None:
    def shape(images: Tensor) -> tuple[int, ...]:
        return (*images.shape[:2], *images.shape[-2:])

    network = nn.Module()
    network.aggregator = Network(lambda images: ([images], 5))
    network.point_head = Network(
        lambda tokens, images, patch_start_idx: (
            images.new_empty(*shape(images), 3),
            images.new_empty(shape(images)),
        )
    )
    query(device, vggt.build(vggt.Config()), network)


def depth_anything_3_job(device: FakeDevice, folder: Path) -> None:
    def answer(images: Tensor, *known: Tensor) -> dict[str, Tensor]:
        batch, views, _, height, width = images.shape
        return {
            "depth": images.new_empty(batch, views, height, width),
            "depth_conf": images.new_empty(batch, views, height, width),
            "extrinsics": images.new_empty(batch, views, 3, 4),
            "intrinsics": images.new_empty(batch, views, 3, 3),
        }

    for posed in (True, False):
        teacher = depth_anything_3.build(depth_anything_3.Config(posed=posed))
        query(device, teacher, Network(answer))
