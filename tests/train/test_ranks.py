"""Several processes, several workers, several tries: the same training."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor

import pmsplat
from pmsplat import train
from pmsplat.errors import UserError
from pmsplat.train import Experiment
from pmsplat.train.devices import choose_strategy
from tests.train.test_loop import interrupt_at, losses

Setting = Callable[..., Experiment]


def weights(output: str | Path) -> dict[str, Tensor]:
    saved = torch.load(Path(output) / "last.ckpt", weights_only=True)
    return {name: x for name, x in saved["state_dict"].items() if x.is_floating_point()}


def run_two(rooms: Path, output: Path, *overrides: str) -> None:
    """The command in two processes that torchrun starts, on the CPU."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-endpoint", "localhost:0", "-m", "pmsplat", "train", "+experiment=demo_tiny"]
    words = ["model=tests.lab.encoder", f"dataset.root={rooms}", "dataset.scenes=6"]
    words += ["dataset.test_scenes=2", "dataset.frames=10", "dataset.size=[32,32]"]
    words += ["trainer.log_every=1", "trainer.validate_every=0", "trainer.loggers=[csv]"]
    words += ["optimizer.lr=5e-3", "trainer.accelerator=cpu", "trainer.workers=0", *overrides]
    words += ["trainer.devices=2", f"output={output}"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    once = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *launch, *words], env=os.environ | once, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("A step takes 4 scenes: 2 on each of 2 devices.") == 1


def test_two_processes_learn_what_one_with_the_joint_batch_does(
    setting: Setting, rooms: Path, tmp_path: Path
) -> None:
    """They go on where one was interrupted, with the next examples."""
    words = ("trainer.workers=0", "trainer.batch_size=4", "trainer.steps=6")
    whole = setting(*words, f"output={tmp_path / 'whole'}")
    train.run(whole)
    interrupt_at(3, setting(*words, f"output={tmp_path / 'both'}"))
    more = ("trainer.batch_size=2", "trainer.steps=6", "trainer.resume=true")
    run_two(rooms, tmp_path / "both", *more)
    for name, value in weights(tmp_path / "both").items():
        torch.testing.assert_close(value, weights(whole.output)[name], atol=1e-6, rtol=0)


def test_devices_that_share_a_model_learn_what_one_does(
    setting: Setting, rooms: Path, tmp_path: Path
) -> None:
    """From a checkpoint of one process, and back; three scenes are validated on two devices."""
    more = ("trainer.steps=6", "trainer.ema=0.9", "trainer.checkpoint_every=2")
    more += ("trainer.keep_checkpoints=3", "trainer.validate_every=2", "trainer.validate_scenes=3")
    words = ("trainer.workers=0", "trainer.batch_size=4", "dataset.test_scenes=3", *more)
    root = f"dataset.root={tmp_path / 'rooms'}"
    whole = setting(*words, root, f"output={tmp_path / 'whole'}")
    train.run(whole)
    both = tmp_path / "both"
    interrupt_at(2, setting(*words, root, f"output={both}"))
    two = ("trainer.batch_size=2", "trainer.strategy=fsdp", "trainer.resume=true")
    run_two(tmp_path / "rooms", both, *more, *two, "dataset.test_scenes=3")

    def compare() -> None:
        ours, theirs = (
            torch.load(folder / "last.ckpt", weights_only=True)
            for folder in (both, Path(whole.output))
        )
        for name, value in theirs["state_dict"].items():
            torch.testing.assert_close(ours["state_dict"][name], value, atol=1e-6, rtol=0)
            mean = theirs["ema"]["state_dict"][name]
            torch.testing.assert_close(ours["ema"]["state_dict"][name], mean, atol=1e-6, rtol=0)
        moments, known = (x["optimizer_states"][0]["state"] for x in (ours, theirs))
        for number, state in known.items():
            for part in ("step", "exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(moments[number][part], state[part], atol=1e-6, rtol=0)
        best = (pmsplat.load(folder / "best.safetensors") for folder in (both, Path(whole.output)))
        for one, other in zip(*(model.parameters() for model in best), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
        values = (
            ours["callbacks"]["Checkpoints"]["best"],
            theirs["callbacks"]["Checkpoints"]["best"],
        )
        assert values[0] == pytest.approx(values[1], abs=1e-4)

    compare()
    (both / "last.ckpt").write_bytes((both / "checkpoints" / "step_0000004.ckpt").read_bytes())
    train.run(setting(*words, root, "trainer.resume=true", f"output={both}"))
    compare()


@pytest.mark.parametrize(("devices", "gathers"), [(1, False), (1, True), (2, False), (2, True)])
def test_what_cannot_be_shared_is_said(setting: Setting, devices: int, gathers: bool) -> None:
    cfg, told = setting("trainer.strategy=fsdp", f"trainer.devices='{devices}'").trainer, []
    if devices == 1:
        assert choose_strategy(cfg, False, gathers, told.append) == "auto" and len(told) == 1
    elif gathers:
        with pytest.raises(UserError, match=r"fsdp for a model with anchors.*strategy=ddp"):
            choose_strategy(cfg, False, gathers, told.append)
    else:
        assert isinstance(choose_strategy(cfg, False, gathers, told.append), ModelParallelStrategy)


def test_another_batch_goes_on_with_the_next_examples(setting: Setting) -> None:
    """4 steps of 2 scenes, then 2 of 3: 14 examples, where the step alone would say 18."""
    words = ("trainer.workers=0", "trainer.steps=6")
    interrupt_at(4, setting(*words))
    again = setting(*words, "trainer.batch_size=3", "trainer.resume=true")
    train.run(again)
    saved = torch.load(Path(again.output) / "last.ckpt", weights_only=True)
    assert saved["DataModule"] == {"step": 6, "examples": 14}


def test_workers_do_not_change_what_is_learned(setting: Setting, tmp_path: Path) -> None:
    found = []
    for workers in (0, 2):
        words = f"trainer.workers={workers}", f"output={tmp_path / str(workers)}"
        experiment = setting("trainer.steps=8", *words)
        train.run(experiment)
        found.append(losses(experiment.output))
    assert found[0] == found[1] and len(found[0]) == 8


def test_resuming_automatically(setting: Setting, tmp_path: Path) -> None:
    """It begins where there is nothing, goes on from where it stopped, and ends at the end."""
    words = ("trainer.steps=8", "trainer.resume=auto")
    straight = setting(*words, f"output={tmp_path / 'straight'}")
    train.run(straight)
    broken = setting(*words, f"output={tmp_path / 'broken'}")
    interrupt_at(5, broken)
    for _ in range(2):
        train.run(broken)
        assert losses(broken.output) == losses(straight.output)
    assert len(losses(broken.output)) == 8


def test_two_runs_into_one_folder_are_refused(setting: Setting) -> None:
    experiment = setting("trainer.steps=2")
    folder = Path(experiment.output)
    folder.mkdir(parents=True)
    other = os.open(folder, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UserError, match=r"another process is writing into .*; wanted one"):
        train.run(experiment)
    assert not list(folder.iterdir())
    os.close(other)
    train.run(experiment)
    assert len(losses(folder)) == 2
