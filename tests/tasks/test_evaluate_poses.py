"""`pmsplat evaluate --poses`: what it writes, prints and refuses."""

import csv
import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from pmsplat import config, registry
from pmsplat.cli import main
from pmsplat.data import synthetic
from pmsplat.errors import UserError
from pmsplat.evaluate import protocol
from pmsplat.tasks.evaluate import Options, evaluate
from pmsplat.train.settings import Experiment
from pmsplat.zoo.load import save
from tests.evaluate.standins import StandIn, Sweep
from tests.models.tiny import tiny

ROOMS = ["+experiment=demo_tiny", "dataset.size=[32,48]"]


@pytest.fixture(autouse=True)
def without_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "find_lpips", lambda: (None, ("no weights of LPIPS",)))


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two rooms to measure on."""
    root = tmp_path_factory.mktemp("rooms")
    counts = ["dataset.scenes=1", "dataset.test_scenes=2", "dataset.frames=6"]
    overrides = [*ROOMS, f"dataset.root={root}", *counts, "dataset.gap=[4,4]"]
    synthetic.make(config.compose(overrides).dataset.settings)
    return overrides


@pytest.fixture
def experiment(overrides: list[str]) -> Experiment:
    return config.compose(overrides)


@pytest.fixture
def teacher(experiment: Experiment) -> StandIn:
    dataset = registry.build("data", experiment.dataset.name, experiment.dataset.settings)
    return StandIn(list(dataset.evaluation()), turn=0.5, shift=0.01)


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_each_protocol_is_named_in_its_results(
    experiment: Experiment, teacher: StandIn, tmp_path: Path
) -> None:
    def results(name: str, **chosen: Any) -> dict[str, Any]:
        options = Options(device="cpu", **chosen)
        found = evaluate(experiment, Sweep(), tmp_path / name, options)
        assert found.model.protocol == name
        return read(tmp_path / name)

    given = results("given")
    fitted = results("fitted", poses=teacher, baselines=True)
    optimized = results("optimized-30", poses=teacher, optimize_poses=30)
    # What is written of given cameras has no word of it, and no column
    assert given.keys().isdisjoint({"protocol", "poses", "optimize_poses"})
    assert given.keys() == fitted.keys() - {"protocol", "poses", "optimize_poses"}
    assert (fitted["protocol"], fitted["poses"]) == ("fitted", "stand_in 7")
    assert (optimized["protocol"], optimized["optimize_poses"]) == ("optimized-30", 30)
    assert json.loads((tmp_path / "fitted/nearest_view.json").read_text())["protocol"] == "fitted"
    # The numbers are in the order of what each protocol forgives
    assert fitted["means"]["psnr"] < optimized["means"]["psnr"] < given["means"]["psnr"] + 1
    assert 0 < fitted["means"]["rotation_deg"] < 1.2
    assert fitted["means"]["rmse"] < 2 * given["means"]["rmse"]  # in the unit of the data
    lines = (tmp_path / "fitted/scenes.csv").read_text().splitlines()
    turns = [float(row["rotation_deg"]) for row in csv.DictReader(lines)]
    assert fitted["means"]["rotation_deg"] == pytest.approx(mean(turns)) and len(turns) == 2
    assert "auc_10" not in (tmp_path / "given/scenes.csv").read_text()


def test_the_command_shows_protocol_and_errors(
    overrides: list[str],
    teacher: StandIn,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pmsplat.evaluate.fitted.pick_teacher", lambda *_: teacher)
    save(tiny("mvsplat"), tmp_path / "model.safetensors", "mvsplat")
    words = ["evaluate", *overrides, "--model", str(tmp_path / "model.safetensors")]
    words += ["--poses", "vggt", "--optimize-poses", "2", "--device", "cpu", "--limit", "1"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "demo_tiny, optimized-2 poses" in printed
    assert "errors of the poses" in printed and "AUC@20" in printed
    assert read(tmp_path / "out")["optimize_poses"] == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimize-poses", "9"], "--optimize-poses 9 with the cameras of the data"),
        (["--poses", "da3", "--optimize-poses", "-1"], "--optimize-poses -1; wanted a whole"),
        (["--poses", "da4"], "--poses da4; wanted one of da3"),
        (["--poses", "colmap"], "--poses colmap, where pycolmap would find"),
        (["--poses", "da3", "--optimize-poses", "9", "--baselines"], "--baselines with"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    flags: list[str], message: str, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *overrides, *flags]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_a_network_that_is_no_pose_teacher_is_refused(experiment: Experiment) -> None:
    with pytest.raises(UserError, match=r"an? object without `name` as `poses`"):
        evaluate(experiment, Sweep(), options=Options(poses=object()))  # pyright: ignore
