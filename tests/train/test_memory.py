"""Out of memory: one sentence that says what would fit, and a checkpoint of the finished steps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

import pmsplat
from pmsplat import train
from pmsplat.errors import UserError
from pmsplat.train import Experiment, loop, memory
from pmsplat.train.checkpoints import Checkpoints
from pmsplat.types import Batch
from tests.models.tiny import views
from tests.train.test_loop import losses

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
OF_TRITON = RuntimeError("Triton Error [CUDA]: out of memory")


def fail_at(step: int, experiment: Experiment, error: RuntimeError = FULL) -> UserError:
    """Runs with memory that is full in the middle of a step."""
    calls = 0
    original = loop.TrainingModule.compute

    def compute(self: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            raise error
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as caught:
        patch.setattr(loop.TrainingModule, "compute", compute)
        train.run(experiment)
    return caught.value


def test_a_full_memory_leaves_a_checkpoint_that_goes_on_as_if_nothing_had_been(
    setting: Callable[..., Experiment], tmp_path: Path
) -> None:
    straight, full = str(tmp_path / "a"), str(tmp_path / "b")
    train.run(setting("trainer.steps=6", f"output={straight}"))
    experiment = setting("trainer.steps=6", f"output={full}")
    problem = fail_at(5, experiment)
    assert "after 4 steps, with batches of 2 scenes of 2 + 2 views of 32x32" in problem.got
    assert "trainer.batch_size=1, or fewer or smaller views" in problem.remedy
    assert (
        f"go on from {full}/last.ckpt, which is of step 4, by trainer.resume=true" in problem.remedy
    )
    assert torch.load(Path(full) / "last.ckpt", weights_only=True)["global_step"] == 4
    assert pmsplat.load(Path(full) / "model.safetensors") is not None
    train.run(replace(experiment, trainer=replace(experiment.trainer, resume=True)))
    assert losses(full) == losses(straight)
    one, other = (torch.load(Path(p) / "last.ckpt", weights_only=True) for p in (straight, full))
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name])


def test_in_the_first_step_there_is_nothing_to_keep(setting: Callable[..., Experiment]) -> None:
    experiment = setting("trainer.steps=6")
    problem = fail_at(1, experiment, OF_TRITON)
    assert "after 0 steps" in problem.got and "resume" not in problem.remedy
    assert not (Path(experiment.output) / "last.ckpt").exists()


def two(trainer: Trainer) -> Any:
    """What a callback asks of a trainer that is one of two."""
    return SimpleNamespace(world_size=2, global_step=trainer.global_step)


def test_where_several_devices_train_the_last_checkpoint_is_named(
    setting: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cannot agree to save another; nor does one measure what fits, while others wait."""
    for callback in (Checkpoints, memory.MemoryWatch):
        failed = callback.on_exception
        monkeypatch.setattr(
            callback,
            "on_exception",
            lambda self, trainer, *rest, failed=failed: failed(self, two(trainer), *rest),
        )
    experiment = setting("trainer.steps=6", "trainer.checkpoint_every=3")
    problem = fail_at(5, experiment, OF_TRITON)
    last = Path(experiment.output) / "last.ckpt"
    assert "after 4 steps" in problem.got and problem.wanted == "a batch that fits"
    assert f"go on from {last}, which is of step 3, by trainer.resume=true" in problem.remedy
    assert torch.load(last, weights_only=True)["global_step"] == 3


@pytest.mark.parametrize(
    ("fit", "wanted", "remedy"),
    [
        (3, "batches of at most 3 scenes", "use trainer.batch_size=3, or fewer or smaller views"),
        (0, "scenes that fit one at a time", "use fewer or smaller views"),
        (None, "a batch that fits", "use trainer.batch_size=4, or fewer"),
    ],
)
def test_the_sentence_says_what_would_fit(
    fit: int | None, wanted: str, remedy: str, generator: torch.Generator
) -> None:
    batch = Batch(
        views(generator, batch=8), views(generator, 4, batch=8), [str(i) for i in "abcdefgh"]
    )
    problem = memory.explain(batch, fit, torch.device("cuda", 0), 7)
    assert problem.wanted == wanted and problem.remedy.startswith(remedy)
    assert "dataset.target_views" in problem.remedy and "trainer.precision=bf16" in problem.remedy
    assert "8 scenes of 2 + 4 views of 32x48" in problem.got


@pytest.mark.cuda
def test_what_is_said_to_fit_fits(generator: torch.Generator) -> None:
    """A loss with 64 MiB of activations a scene, in a memory of 512 MiB."""
    model = nn.Conv2d(3, 1024, 1, bias=False).cuda()
    batch = Batch(views(generator, size=(64, 64), batch=32), views(generator, batch=32), ["s"] * 32)
    batch = batch.to("cuda")

    def loss(batch: Batch) -> Tensor:
        return model(batch.context.images.flatten(0, 1)).square().mean()

    total = torch.cuda.mem_get_info()[1]
    try:
        torch.cuda.set_per_process_memory_fraction(512 * 2**20 / total)
        with pytest.raises(torch.OutOfMemoryError):
            loss(batch)
        fit = memory.count_fitting(loss, batch, model, has_moments=False)
        assert fit is not None and 1 <= fit < 16
        fewer = replace(batch.map(lambda tensor: tensor[:fit]), scene=batch.scene[:fit])
        loss(fewer).backward()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.mark.cuda
def test_a_run_that_fills_the_gpu_says_what_fits(setting: Callable[..., Experiment]) -> None:
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction(256 * 2**20 / total)
        with pytest.raises(UserError, match=r"out of memory on cuda:0 after 0 steps.*use "):
            train.run(
                setting(
                    "trainer.accelerator=gpu",
                    "trainer.devices=1",
                    "trainer.batch_size=256",
                    "model.width=256",
                )
            )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
