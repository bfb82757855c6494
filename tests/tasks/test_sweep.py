"""One quantity varied: results of every point, a curve, and an interrupted one that goes on."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pmsplat import config
from pmsplat.cli import main
from pmsplat.data import read_index, synthetic
from pmsplat.errors import UserError
from pmsplat.evaluate import protocol
from pmsplat.evaluate.compare import compare
from pmsplat.evaluate.runs import read_run
from pmsplat.tasks.evaluate import Options, evaluate
from pmsplat.tasks.sweep import Plan, over_pose_noise, over_views, sweep
from pmsplat.zoo.load import save
from tests.models.tiny import shaken, tiny


@pytest.fixture(autouse=True)
def without_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "find_lpips", lambda: (None, ("no weights of LPIPS",)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rooms and a model."""
    path = tmp_path_factory.mktemp("sweep")
    synthetic.make(config.compose(overrides(path)).dataset.settings)
    save(shaken(tiny("mvsplat")), path / "model.safetensors", "mvsplat")
    return path


def overrides(folder: Path) -> list[str]:
    counts = ["dataset.scenes=1", "dataset.test_scenes=2", "dataset.frames=9", "dataset.gap=[8,8]"]
    return ["+experiment=demo_tiny", "dataset.size=[32,48]", f"dataset.root={folder}", *counts]


def run(folder: Path, name: str, *words: str) -> Path:
    """`pmsplat sweep`; the folder of its output."""
    more = ["--model", str(folder / "model.safetensors"), "--output", str(folder / name)]
    given = overrides(folder)
    if "dataset=folder" in words:  # the same rooms, whose size is that of their pictures
        given = [*given[:1], "dataset=folder", *given[1:3]]
    assert main(["sweep", *given, *more, "--device", "cpu", *words]) == 0
    return folder / name


def points(output: Path) -> dict[str, dict]:
    content = json.loads((output / "sweep.json").read_text())
    return {point["value"]: point for point in content["points"]}


def test_another_sweep_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    """More points and the same again are no other sweep; other data, models or points are."""
    model, quick = folder / "model.safetensors", Options(device="cpu", limit=1)
    experiment = config.compose(overrides(folder))

    def noise(*degrees: float, options: Options = quick, seed: int = 0) -> Plan:
        return over_pose_noise(experiment, options, degrees, 0.0, seed)

    first = sweep(noise(5.0), [model], tmp_path)
    content = (tmp_path / "sweep.json").read_bytes()
    every = replace(quick, limit=None)
    for plan, models, told in (
        (noise(1.0), [model], "pose_noise-5"),
        (noise(5.0, options=every), [model], "another limit"),
        (noise(5.0, seed=1), [model], "another pose_noise"),
        (noise(5.0), [folder / "other.safetensors"], f"of {model}"),
        (over_views(experiment, quick, (2, 3), tmp_path), [model], "pose_noise-5"),
    ):
        with pytest.raises(UserError, match=rf"holds another sweep, .*{told}.*`output`"):
            sweep(plan, models, tmp_path)
    assert (tmp_path / "sweep.json").read_bytes() == content
    assert not (tmp_path / "indices").exists()
    more = sweep(noise(5.0, 1.0), [model], tmp_path)
    assert [point.value for point in more.points] == ["1", "5"]  # in order, as in the figure
    assert more.points[1].metrics == first.points[0].metrics
    for damaged in ('{"models": [', "[]", '{"models": [], "points": [1]}'):
        (tmp_path / "plan.json").write_text(damaged)
        with pytest.raises(UserError, match=r"plan.json is damaged.*remove it"):
            sweep(noise(5.0), [model], tmp_path)


def test_views_share_targets_and_every_point_is_an_evaluation(folder: Path, capsys) -> None:
    output = run(folder, "views", "--views", "4,2")
    shown = points(output)
    assert list(shown) == ["2", "4"] and shown["4"]["gaussians"] == 2 * shown["2"]["gaussians"]
    runs = [read_run(output / shown[value]["results"]) for value in ("2", "4")]
    assert [run.means["psnr"] for run in runs] == [shown[v]["metrics"]["psnr"] for v in ("2", "4")]
    index = read_index(output / "indices" / "views-4.json")
    alone = [*overrides(folder), f"dataset.index={output / 'indices' / 'views-4.json'}"]
    model, quick = folder / "model.safetensors", Options(device="cpu")
    found = evaluate(config.compose(alone), model, folder / "alone", quick)
    assert found.model.means == runs[1].means and len(index) == 2
    with pytest.raises(UserError, match="two indices"):
        compare(runs[1], runs[0])  # more views are another protocol
    with (output / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["context views"] for row in rows] == ["2", "4"]
    assert [float(row["psnr"]) for row in rows] == [run.means["psnr"] for run in runs]
    with Image.open(output / "sweep.png") as picture:
        assert picture.size[0] > 500
    assert "context views" in capsys.readouterr().out
    assert not list(output.rglob("*.jsonl"))


def test_an_interrupted_sweep_measures_nothing_twice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, options = folder / "model.safetensors", Options(device="cpu")
    experiment = config.compose(overrides(folder))
    plan = over_pose_noise(experiment, options, (0.0, 5.0), 0.01, seed=0)
    measure, seen = protocol.measure, []

    def watched(step, *rest):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(step.batch.scene[0])
        return measure(step, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(protocol, "measure", watched)
        with pytest.raises(KeyboardInterrupt):
            sweep(plan, [model], tmp_path)
    assert (tmp_path / "pose_noise-0" / "results.json").is_file()
    first = (tmp_path / "pose_noise-0" / "results.json").read_text()
    seen.clear()
    monkeypatch.setattr(protocol, "measure", watched)
    curve = sweep(plan, [model], tmp_path)
    assert len(seen) == 1  # the last scene of the second point
    assert (tmp_path / "pose_noise-0" / "results.json").read_text() == first
    given = evaluate(experiment, model, tmp_path / "given", options)
    assert curve.points[0].metrics["psnr"] == given.model.means["psnr"]
    assert curve.points[1].metrics["psnr"] != given.model.means["psnr"]
    noisy = json.loads((tmp_path / "pose_noise-5" / "results.json").read_text())
    assert noisy["protocol"] == "noise-5deg-5%" and noisy["means"]["rotation_deg"] > 1
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.slow
def test_gaussians_sizes_and_protocols(folder: Path) -> None:
    index = f"dataset.index={folder / 'evaluation_index.json'}"
    fewer = points(run(folder, "fewer", "--gaussians", "500,1000"))
    assert list(fewer) == ["500", "1,000", "3,072"]
    sizes = points(run(folder, "sizes", "dataset=folder", index, "--sizes", "32x48,64x64"))
    assert [sizes[value]["x"] for value in ("32x48", "64x64")] == [32 * 48, 64 * 64]
    name = "dl3dv-2v-n10"
    assert main(["data", "index", str(folder), "--protocol", name]) == 0
    words = ["dataset=folder", "--protocols", f"{name}={folder}"]
    named = points(run(folder, "named", *words, "dataset.size=[32,48]"))
    read = read_run(folder / "named" / named[name]["results"])
    assert (read.protocol.named, read.protocol.official) == (name, False)
    assert read.coverage is not None and read.coverage.complete


def test_wrong_sweeps_are_told(folder: Path, tmp_path: Path) -> None:
    experiment, options = config.compose(overrides(folder)), Options(device="cpu")
    with pytest.raises(UserError, match="1, 1"):
        sweep(over_pose_noise(experiment, options, (1, 1), 0.0, 0), [], tmp_path)
    with pytest.raises(UserError, match="2 or more context views"):
        over_views(experiment, options, (1, 2), tmp_path)
    with pytest.raises(UserError, match="99 context views, more than any of 2 scenes"):
        over_views(experiment, options, (99,), tmp_path)
