"""A model that predicts depth alone: trained, validated and measured like every other."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

import pmsplat
from pmsplat import config, registry, train
from pmsplat.cli import main
from pmsplat.evaluate import protocol
from pmsplat.train import Experiment

ALIGNED = {f"{name}_{how}" for name in ("abs_rel", "delta1") for how in ("median", "affine")}
MEASURES = {"abs_rel", "rmse", "delta1"} | ALIGNED


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The tiny experiment, cut to seconds."""
    folder = tmp_path_factory.mktemp("depth")
    return [
        "+experiment=depth_tiny", f"dataset.root={folder / 'rooms'}", "dataset.scenes=3",
        "dataset.test_scenes=2", "dataset.frames=8", "dataset.size=[32,48]", "dataset.gap=[4,6]",
        "model.width=16", "model.planes=16", "trainer.steps=40", "trainer.validate_every=40",
        "trainer.log_every=1", "trainer.loggers=[csv,tensorboard]", f"output={folder / 'out'}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(overrides: list[str]) -> Experiment:
    """The experiment of a finished run."""
    experiment = config.compose(overrides)
    train.run(experiment)
    return experiment


def logged(experiment: Experiment) -> list[dict[str, str]]:
    with next(Path(experiment.output, "csv").glob("*/metrics.csv")).open() as file:
        return list(csv.DictReader(file))


def test_the_loss_and_the_error_fall(trained: Experiment) -> None:
    rows = [row for row in logged(trained) if row["train/loss"]]
    assert len(rows) == 40
    for name in ("train/loss", "train/loss/depth", "train/loss/depth/0", "train/abs_rel"):
        values = [float(row[name]) for row in rows]
        assert sum(values[-5:]) < 0.7 * sum(values[:5]), name
    assert not any(name.endswith("psnr") for name in rows[0])


def test_validation_measures_depth_as_evaluation_does(trained: Experiment) -> None:
    model = pmsplat.load(Path(trained.output) / "model.safetensors")
    dataset = registry.build("data", "synthetic", trained.dataset.settings)
    batches = list(dataset.evaluation())
    assert model(batches[0].context).gaussians == ()
    result = protocol.evaluate(protocol.pipeline(model), batches)
    (validated,) = [row for row in logged(trained) if row["val/abs_rel"]]
    for name in ("abs_rel", "rmse", "delta1"):
        assert float(validated[f"val/{name}"]) == pytest.approx(result.means[name], rel=1e-3)
    assert set(result.means) == MEASURES


def test_pictures_are_drawn(trained: Experiment) -> None:
    with Image.open(Path(trained.output) / "pictures" / "step_0000040.png") as picture:
        assert picture.width >= 4 * 48 and picture.height >= 2 * 32  # two photos, two depths
    assert list(Path(trained.output, "tensorboard").rglob("events*"))


def test_the_command_prints_depth_alone(
    trained: Experiment,
    overrides: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(protocol, "find_lpips", lambda: (None, ()))
    assert main(["evaluate", *overrides, "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "AbsRel" in shown and "PSNR" not in shown
    folder = Path(trained.output) / "evaluation"
    results = json.loads((folder / "results.json").read_text())
    assert set(results["means"]) == MEASURES
    with (folder / "scenes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert results["means"]["abs_rel"] == pytest.approx(sum(float(r["abs_rel"]) for r in rows) / 2)
    assert all("psnr" not in row for row in rows)


def test_a_loss_on_colour_is_told_at_the_first_step(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *overrides[:-1], "loss=mse", f"output={tmp_path / 'colour'}"]) == 2
    told = capsys.readouterr().err
    assert "predicts depth alone" in told and "loss=depth" in told and "Traceback" not in told


def test_photographs_with_sensor_depth_are_taken_a_few_at_a_time(tmp_path: Path) -> None:
    """The published experiment, with a tiny encoder and small photographs."""
    make = ["data", "synthetic", str(tmp_path / "rooms"), "--size", "32x64", "--frames", "12"]
    assert main([*make, "--scenes", "2", "--test-scenes", "1"]) == 0
    experiment = config.compose(
        [
            "+experiment=depth_small", "model=depthsplat_tiny", "model.width=16", "model.planes=16",
            f"dataset.root={tmp_path / 'rooms'}", "dataset.size=[32,64]", "trainer.steps=4",
            "trainer.log_every=1", "trainer.workers=0", "trainer.accelerator=cpu",
            "trainer.validate_every=4", "trainer.loggers=[csv]", f"output={tmp_path / 'out'}",
        ]
    )  # fmt: skip
    assert experiment.dataset.name == "folder" and experiment.model.settings.lowest == 8
    train.run(experiment)
    (validated,) = [row for row in logged(experiment) if row["val/abs_rel"]]
    assert 0 < float(validated["val/abs_rel"]) < 2
