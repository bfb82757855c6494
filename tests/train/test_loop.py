"""Whole runs on the CPU: deterministic, resumable, learning, interruptible, clear when wrong."""

import csv
import errno
import json
import os
import signal
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

import pmsplat
from pmsplat import config, registry, train
from pmsplat.data import collate
from pmsplat.errors import UserError
from pmsplat.evaluate import protocol
from pmsplat.models import mvsplat
from pmsplat.train import Experiment, loop, resume
from pmsplat.train.checkpoints import Checkpoints
from pmsplat.train.failure import read_failure
from pmsplat.train.settings import Component
from tests.zoo.test_init import unimatch


def losses(output: str | Path) -> list[float]:
    """Every logged training loss of a folder, in the order of the runs."""
    values = []
    for path in sorted((Path(output) / "csv").glob("version_*/metrics.csv")):
        with path.open() as file:
            values += [
                float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]
            ]
    return values


def steps(output: str | Path) -> list[int]:
    """The numbers of their rows."""
    values = []
    for path in sorted((Path(output) / "csv").glob("version_*/metrics.csv")):
        with path.open() as file:
            values += [int(row["step"]) for row in csv.DictReader(file)]
    return values


def test_twenty_seeded_steps_are_equal_and_so_is_a_resumed_run(
    setting: Callable[..., Experiment], tmp_path: Path
) -> None:
    straight, again, resumed = (str(tmp_path / name) for name in ("a", "b", "c"))
    train.run(setting("trainer.steps=20", f"output={straight}"))
    train.run(setting("trainer.steps=20", f"output={again}"))
    assert len(losses(straight)) == 20
    assert steps(straight) == steps(again) == list(range(1, 21))
    assert losses(straight) == losses(again)

    first = setting("trainer.steps=20", f"output={resumed}")
    interrupt_at(10, first)
    assert len(losses(resumed)) == 10
    train.run(replace(first, trainer=replace(first.trainer, resume=True)))
    assert losses(resumed) == losses(straight) and steps(resumed) == steps(straight)
    one, other = (torch.load(Path(p) / "last.ckpt", weights_only=True) for p in (straight, resumed))
    assert one["lr_schedulers"] == other["lr_schedulers"]
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name])


def test_a_resumed_run_names_the_settings_that_it_changes(
    setting: Callable[..., Experiment],
) -> None:
    first = setting("trainer.steps=6")
    interrupt_at(2, first)
    told: list[str] = []
    train.run(replace(first, trainer=replace(first.trainer, resume=True, steps=6)), told.append)
    assert not any("other settings" in line for line in told)
    interrupted = setting("trainer.steps=6", f"output={first.output}2")
    interrupt_at(2, interrupted)
    changes = ("+loss.ssim.weight=0.5", "dataset.target_views=1", "trainer.resume=true")
    train.run(setting("trainer.steps=6", f"output={first.output}2", *changes), told.append)
    (line,) = [line for line in told if "other settings" in line]
    assert "dataset.target_views=1 (was 2)" in line and "loss.ssim.weight=0.5 (was None)" in line
    assert "resume" not in line and "steps" not in line


def test_a_resumed_run_takes_another_learning_rate_and_decay(
    setting: Callable[..., Experiment],
) -> None:
    words = ("trainer.steps=6", "trainer.workers=0")
    interrupt_at(2, setting(*words))
    changed = ("optimizer.lr=1e-3", "optimizer.weight_decay=0.2", "trainer.resume=true")
    train.run(setting(*words, *changed))
    last = torch.load(Path(setting().output) / "last.ckpt", weights_only=True)
    for group in last["optimizer_states"][0]["param_groups"]:
        assert (group["max_lr"], group["weight_decay"]) == (1e-3, 0.2)
    assert last["lr_schedulers"][0]["base_lrs"] == [1e-3 / 25]
    assert last["lr_schedulers"][0]["last_epoch"] == 6


@pytest.mark.parametrize(
    "change", ["optimizer.parts=[network]", "trainer.initial=other.safetensors"]
)
def test_a_resumed_run_refuses_what_only_a_new_one_takes(
    change: str, setting: Callable[..., Experiment]
) -> None:
    experiment = setting()
    before = json.loads(json.dumps(asdict(experiment)))
    name = change.partition("=")[0]
    with pytest.raises(UserError, match=rf"{name}=.* that began with .*set {name}=(null|\[\])"):
        resume.tell_changes(before, setting(change), lambda said: None)


def test_what_an_older_version_wrote_otherwise_is_no_change(
    setting: Callable[..., Experiment],
) -> None:
    experiment = replace(setting("loss=photometric"), model=Component("mvsplat", mvsplat.Config()))
    old = json.loads(json.dumps(asdict(experiment)))
    del old["model"]["settings"]["deviations"], old["dataset"]["settings"]["flip"]
    old["model"]["settings"]["published"] = False
    (perceptual,) = [term for term in old["loss"].values() if term["name"] == "lpips"]
    perceptual["settings"].popitem()
    told: list[str] = []
    resume.tell_changes(deepcopy(old), experiment, told.append)
    assert not told
    old["model"]["settings"] |= {"published": True, "planes": 7}
    old["dataset"]["settings"]["gone"] = 1  # is listed, not refused
    resume.tell_changes(old, experiment, told.append)
    assert "model.planes=128 (was 7)" in told[0] and "dataset.gone=None (was 1)" in told[0]
    assert "model.deviations.along_ray=False (was True)" in told[0]


def interrupt_at(step: int, experiment: Experiment, by: signal.Signals = signal.SIGINT) -> None:
    """Runs and presses Ctrl-C in the middle of a step, or sends another signal."""
    before = signal.getsignal(by)
    calls = 0
    original = loop.TrainingModule.training_step

    def pressed(self: Any, batch: Any, batch_idx: int) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            signal.raise_signal(by)
        return original(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.TrainingModule, "training_step", pressed)
        train.run(experiment)
    assert signal.getsignal(by) is before


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_checkpoint_that_loads_and_no_scraps(
    setting: Callable[..., Experiment], by: signal.Signals
) -> None:
    experiment = setting("trainer.steps=50")
    interrupt_at(3, experiment, by)
    output = Path(experiment.output)
    assert torch.load(output / "last.ckpt", weights_only=True)["global_step"] == 3
    assert pmsplat.load(output / "model.safetensors") is not None
    assert not [path for path in output.rglob("*") if path.suffix == ".tmp"]


@pytest.mark.parametrize(("at", "logged"), [(3, [2]), (4, [2, 4, 4])])
def test_an_interrupt_logs_nothing_old_and_validates_in_turn_alone(
    at: int, logged: list[int], setting: Callable[..., Experiment]
) -> None:
    """A validation is due after step 4, as a row of its own; the checkpoint knows its result."""
    words = ("trainer.log_every=2", "trainer.validate_every=4", "trainer.validate_scenes=1")
    experiment = setting("trainer.steps=50", "trainer.workers=0", *words)
    interrupt_at(at, experiment)
    output = Path(experiment.output)
    saved = torch.load(output / "last.ckpt", weights_only=True)
    assert saved["global_step"] == at
    best = saved["callbacks"]["Checkpoints"]["best"]
    assert (best is not None) is (output / "best.safetensors").exists() is (at == 4)
    assert (output / "pictures").exists() is (at == 4)
    assert steps(output) == logged


def test_a_full_disk_leaves_no_scraps_and_is_told(
    setting: Callable[..., Experiment],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from pmsplat.cli import main

    def full(*arguments: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    experiment = setting("trainer.steps=2")
    monkeypatch.setattr("pmsplat.zoo.load.files.save_checkpoint", full)
    monkeypatch.setattr(config, "compose", lambda overrides: experiment)
    assert main(["train"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list(Path(experiment.output).rglob("*.tmp"))


def test_devices_that_are_not_there_are_told(setting: Callable[..., Experiment]) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"accelerator=gpu without a CUDA device"):
            train.run(setting("trainer.accelerator=gpu"))
    with pytest.raises(UserError, match=r"trainer\.accelerator='tpu'"):
        setting("trainer.accelerator=tpu")


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every=1, export=lambda path: None)
    for by in (signal.SIGTERM, signal.SIGTERM):
        checkpoints._on_ctrl_c(by, None)
    assert checkpoints.interrupted
    with pytest.raises(KeyboardInterrupt):
        checkpoints._on_ctrl_c(signal.SIGINT, None)


def test_the_command_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pmsplat.cli import main

    def interrupted(experiment: Experiment, tell: Callable[[str], None]) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run", interrupted)
    monkeypatch.chdir(tmp_path)
    command = ["train", "+experiment=demo_tiny", "output=x y"]
    assert main(command) == 130
    told = capsys.readouterr().err
    again = "pmsplat train +experiment=demo_tiny 'output=x y'"
    assert f"nothing was saved yet; start again with: {again}\n" in told
    (tmp_path / "x y").mkdir()
    (tmp_path / "x y" / train.LAST).touch()
    assert main(command) == 130
    assert f"go on with: {again} trainer.resume=true\n" in capsys.readouterr().err


def test_overfits_a_scene_then_the_checkpoint_gives_the_same_metrics(
    setting: Callable[..., Experiment], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = setting(
        "dataset.scenes=1", "dataset.flip=0", "dataset.gap=[4,4]", "trainer.steps=60",
        "trainer.batch_size=1", f"dataset.root={tmp_path / 'one'}", "trainer.validate_every=30",
        "trainer.loggers=[csv,tensorboard]", "optimizer.lr=2e-2",
    )  # fmt: skip
    told: list[str] = []
    checkpoint = train.run(experiment, told.append)
    shown = capsys.readouterr().err
    values = losses(experiment.output)
    assert sum(values[-5:]) < 0.5 * sum(values[:5])

    dataset = registry.build("data", "synthetic", experiment.dataset.settings)
    model = pmsplat.load(checkpoint)
    result = protocol.evaluate(protocol.pipeline(model), dataset.evaluation())
    with next(Path(experiment.output, "csv").glob("*/metrics.csv")).open() as file:
        logged = [row for row in csv.DictReader(file) if row["val/psnr"]]
    assert [int(row["step"]) for row in logged] == [30, 60]
    assert float(logged[-1]["val/psnr"]) == pytest.approx(result.means["psnr"], abs=1e-4)
    assert float(logged[-1]["val/abs_rel"]) == pytest.approx(result.means["abs_rel"], abs=1e-4)
    psnr, abs_rel = result.means["psnr"], result.means["abs_rel"]
    assert f"step 60/60, validation: PSNR {psnr:.2f} dB, AbsRel {abs_rel:.3f}\n" in shown
    assert shown.count("validation: ") == 2
    count = sum(value.numel() for value in model.parameters())
    assert f"Trains on the CPU in float32: {count:,} parameters." in told

    with Image.open(Path(experiment.output) / "pictures" / "step_0000060.png") as picture:
        assert picture.width > 5 * 32 and picture.height > 2 * 32
    assert json.loads((Path(experiment.output) / "config.json").read_text())["name"] == "demo_tiny"
    assert list(Path(experiment.output, "tensorboard").rglob("events*"))


def test_the_tiny_experiment_itself_takes_a_step(
    setting: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = setting("model=depthsplat_tiny", "trainer.steps=2", "trainer.batch_size=1")
    assert pmsplat.load(train.run(experiment)) is not None
    assert len(losses(experiment.output)) == 2


def test_spawned_workers_give_a_whole_run(setting: Callable[..., Experiment]) -> None:
    experiment = setting("trainer.steps=3", "trainer.workers=1")
    train.run(experiment)
    assert len(losses(experiment.output)) == 3


def test_steps_without_finite_gradients_are_passed_over_and_counted(
    setting: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmsplat.train.module.BAD_STEPS", 4)
    experiment = setting("trainer.steps=30", "model.bad_from=4", "trainer.checkpoint_every=3")
    with pytest.raises(UserError, match=r"gradients of 4 steps in a row.*not finite.*lower") as it:
        train.run(experiment)
    saved = torch.load(Path(experiment.output) / "last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in saved["state_dict"].values())
    # The batch is kept: that of the last step, as the stream gives it
    kept = read_failure(Path(experiment.output) / "not_finite.pt")
    assert ", ".join(kept.batch.scene) in it.value.got
    for name, value in kept.weights.items():
        assert torch.equal(value, saved["state_dict"][f"model.{name}"])
    data = registry.build("data", experiment.dataset.name, experiment.dataset.settings)
    cfg = experiment.trainer
    stream = data.train(experiment.seed, torch.tensor(0), batch_size=cfg.batch_size)
    batches = iter(DataLoader(stream, cfg.batch_size, collate_fn=collate))
    last = [next(batches) for _ in range(kept.step)][-1]
    assert last.scene == kept.batch.scene
    assert torch.equal(last.context.images, kept.batch.context.images)
    assert torch.equal(last.target.cameras.c2w, kept.batch.target.cameras.c2w)
    with pytest.raises(UserError, match="is not a batch that training kept"):
        read_failure(Path(experiment.output) / "last.ckpt")


def test_weights_to_start_from_are_taken_and_checked(
    setting: Callable[..., Experiment], tmp_path: Path
) -> None:
    first = train.run(setting("trainer.steps=2", f"output={tmp_path / 'first'}"))
    second = setting("trainer.steps=1", f"trainer.initial={first}", "optimizer.lr=1e-12")
    old, new = (pmsplat.load(path).state_dict() for path in (first, train.run(second)))
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old)
    other = setting(f"trainer.initial={first}", "model.width=4", f"output={tmp_path / 'third'}")
    with pytest.raises(UserError, match=r"has \[8, 3, 3, 3\] at.*wanted \[4, 3, 3, 3\]"):
        train.run(other)


SMALL = (
    "model=depthsplat", "model.vit=none", "model.planes=16", "model.width=32",
    "model.transformer_layers=1", "model.head_width=16", "trainer.batch_size=1",
    "optimizer.lr=1e-12",
)  # fmt: skip


def test_a_new_run_starts_from_the_weights_that_its_model_names(
    setting: Callable[..., Experiment], tmp_path: Path
) -> None:
    flow, told = unimatch(width=32, layers=1), []
    path = tmp_path / "flow.pth"
    torch.save({"model": flow}, path)
    first = setting(*SMALL, f"model.init_from=[{path}]", "trainer.steps=4")
    interrupt_at(2, first)
    path.unlink()  # is not looked for when a run goes on, nor when its result is loaded
    resumed = replace(first, trainer=replace(first.trainer, resume=True))
    checkpoint = train.run(resumed, told.append)
    found = pmsplat.load(checkpoint).state_dict()
    for ours, theirs in (("cnn.stem", "backbone.conv1"), ("cnn.out", "backbone.conv2")):
        wanted = flow[f"{theirs}.weight"]
        assert torch.allclose(found[f"depth.{ours}.weight"], wanted, atol=1e-6)
    parts = [flow[f"transformer.layers.0.self_attn.{x}_proj.weight"] for x in "qkv"]
    joined = found["depth.transformer.layers.0.self_qkv.weight"]
    assert torch.allclose(joined, torch.cat(parts), atol=1e-6)

    other = setting(
        *SMALL, f"model.init_from=[{path}]", f"trainer.initial={checkpoint}",
        "trainer.steps=1", f"output={tmp_path / 'other'}",
    )  # fmt: skip
    train.run(other, told.append)
    assert all(line.startswith(("Trains on ", "trained: ")) for line in told)
    with pytest.raises(
        UserError, match=r"flow\.pth' in model\.init_from.*neither a name nor a file"
    ):
        train.run(replace(first, output=str(tmp_path / "third")))


def test_dinov2_that_cannot_be_had_is_told(
    setting: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    few = ("model=depthsplat", "model.planes=16", "model.init_from=[dinov2]")
    with pytest.raises(UserError, match=r"DINOv2's weights.*model\.init_from"):
        train.run(setting(*few))


def test_mistakes_before_the_first_step_are_told(
    setting: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="nothing to resume"):
        train.run(setting("trainer.resume=true"))
    done = setting("trainer.steps=1")
    train.run(done)
    with pytest.raises(UserError, match=r"already holds a run.*trainer\.resume=true"):
        train.run(done)
    with pytest.raises(UserError, match=r"last\.ckpt has \[8, 3, 3, 3\] at 'net\."):
        train.run(setting("trainer.resume=true", "trainer.steps=1", "model.width=4"))
    with pytest.raises(UserError, match=r"wanted trainer\.steps as before \(1\); start a new run"):
        train.run(setting("trainer.resume=true", "trainer.steps=2"))
    (Path(done.output) / "last.ckpt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(UserError, match=r"not a readable checkpoint"):
        train.run(setting("trainer.resume=true"))
    missing = config.compose(
        ["dataset=re10k", f"dataset.root={tmp_path / 'nowhere'}", "model=tests.lab.encoder",
         "loss=mse", f"output={tmp_path / 'm'}", "trainer.workers=0"]
    )  # fmt: skip
    with pytest.raises(UserError, match="nowhere"):
        train.run(missing)
    with pytest.raises(UserError, match="wandb, which is not installed"):
        train.run(setting("trainer.loggers=[wandb]", f"output={tmp_path / 'w'}"))
    monkeypatch.setattr("pmsplat.foundation.lpips._torchvision", no_weights)
    monkeypatch.setattr("pmsplat.foundation.lpips.pretrained_folder", lambda: tmp_path)
    with pytest.raises(UserError, match=r"LPIPS.*train without LPIPS"):
        train.run(setting("loss=photometric", f"output={tmp_path / 'l'}"))


class Recorded(CSVLogger):
    """Stands for that of wandb: the steps and the losses that it was given."""

    def __init__(self, name: str, project: str, save_dir: str) -> None:
        super().__init__(save_dir, name=project)
        self.seen: dict[int | None, float] = {}

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.seen |= {step: metrics["train/loss"]} if "train/loss" in metrics else {}


def test_every_logger_has_the_last_step_of_a_run(
    setting: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Recorded] = []

    def make(**settings: str) -> Recorded:
        made.append(Recorded(**settings))
        return made[-1]

    monkeypatch.setattr(loop, "WandbLogger", make)
    monkeypatch.setattr(loop.importlib.util, "find_spec", lambda name: name)
    loggers = "trainer.loggers=[csv,tensorboard,wandb]"
    for steps, logged in ((2, [2]), (5, [4, 5])):
        words = (f"trainer.steps={steps}", "trainer.log_every=4", "trainer.workers=0")
        experiment = setting(*words, loggers, f"output={setting().output}{steps}")
        train.run(experiment)
        rows = made[-1].seen
        assert list(rows) == logged and list(rows.values()) == losses(experiment.output)
        events = EventAccumulator(f"{experiment.output}/tensorboard/version_0").Reload()
        assert [event.step for event in events.Scalars("train/loss")] == logged


class Difference(torch.nn.Module):
    """Stands for LPIPS: the mean difference of each pair of images."""

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (images - targets).abs().mean(dim=(1, 2, 3))


@pytest.mark.parametrize(("loss", "measured"), [("lpips", True), ("ssim", False)])
def test_validation_measures_lpips_where_a_loss_wants_it(
    setting: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch, loss: str, measured: bool
) -> None:
    """Whatever the loss is called in the run."""
    monkeypatch.setattr("pmsplat.losses.lpips.load", lambda net, weights: Difference())
    monkeypatch.setattr(loop, "find_lpips", lambda: (Difference(), ()))
    own = f"+loss.perceptual={{name: {loss}, weight: 0.05}}"
    experiment = setting(own, "trainer.steps=2", "trainer.validate_every=2")
    train.run(experiment)
    header = next(Path(experiment.output).glob("csv/*/metrics.csv")).read_text().splitlines()[0]
    assert "val/psnr" in header and ("val/lpips" in header) == measured


def no_weights(net: str, local: Path) -> None:
    from pmsplat.foundation.lpips import Unavailable

    raise Unavailable("LPIPS has no weights here", "them", "train without LPIPS")
