"""`pmsplat train` and `pmsplat evaluate` as a user calls them, mistakes included."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pmsplat.cli import main
from pmsplat.evaluate import protocol


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The overrides of a finished run of two steps."""
    folder = tmp_path_factory.mktemp("trained")
    overrides = [
        "+experiment=demo_tiny", "model=tests.lab.encoder", f"dataset.root={folder / 'rooms'}",
        "dataset.scenes=2", "dataset.test_scenes=3", "dataset.frames=10", "dataset.size=[32,32]",
        "trainer.steps=2", "trainer.batch_size=1", "trainer.validate_every=0",
        f"output={folder / 'out'}",
    ]  # fmt: skip
    assert main(["train", *overrides]) == 0
    return overrides


@pytest.fixture(autouse=True)
def without_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(path: object = None) -> tuple[None, tuple[str, ...]]:
        return None, ("The LPIPS column is left out: no weights here.",)

    monkeypatch.setattr(protocol, "find_lpips", nothing)


def test_evaluate_writes_a_table_json_and_a_row_per_scene(
    trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *trained, "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    assert "PSNR" in shown.out and "LPIPS column is left out" in shown.err
    folder = Path(trained[-1].removeprefix("output=")) / "evaluation"
    results = json.loads((folder / "results.json").read_text())
    with (folder / "scenes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert results["scenes"] == len(rows) == 3
    assert results["notes"] and "lpips" not in results["means"]
    assert results["means"]["psnr"] == pytest.approx(sum(float(r["psnr"]) for r in rows) / 3)
    assert set(results["seconds"]) == {"encode", "render"}
    assert results["experiment"]["dataset"]["settings"]["size"] == [32, 32]


def test_evaluate_takes_a_limit_a_folder_and_a_model(trained: list[str], tmp_path: Path) -> None:
    model = Path(trained[-1].removeprefix("output=")) / "model.safetensors"
    command = ["evaluate", *trained[:-1], "--model", str(model), "--limit", "1", "--device", "cpu"]
    assert main([*command, "--output", str(tmp_path / "here")]) == 0
    assert json.loads((tmp_path / "here" / "results.json").read_text())["scenes"] == 1


def test_evaluate_measures_geometry_where_there_is_depth(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", *trained, "--geometry", "--baselines", "--device", "cpu"]
    assert main([*command, "--output", str(tmp_path / "here")]) == 0
    assert "geometry, in scene units" in capsys.readouterr().out
    sweep = json.loads((tmp_path / "here" / "plane_sweep.json").read_text())
    assert sweep["means"]["chamfer"] > 0 and 0 <= sweep["means"]["flying"] <= 1
    with (tmp_path / "here" / "scenes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(float(row[name]) > 0 for row in rows for name in ("accuracy", "normals", "points"))


def test_evaluate_tells_inside_and_outside_apart(trained: list[str], tmp_path: Path) -> None:
    """Frames 0 to 9 of three rooms; an index of ours with targets of both kinds."""
    root, index = trained[2].removeprefix("dataset.root="), tmp_path / "both.json"
    options = ["--gap", "4", "--outside", "2", "--targets", "2", "--between", "1"]
    assert main(["data", "index", root, str(index), *options]) == 0
    command = [
        "evaluate", *trained[:2], "dataset=folder", f"dataset.root={root}", "loss=mse",
        f"dataset.index={index}", "dataset.size=[32,32]", trained[-1], "--device", "cpu",
    ]  # fmt: skip
    assert main([*command, "--output", str(tmp_path / "here")]) == 0
    means = json.loads((tmp_path / "here" / "results.json").read_text())["means"]
    assert means["psnr"] == pytest.approx((means["psnr_inside"] + 2 * means["psnr_outside"]) / 3)


def index_of(folder: Path, content: object) -> str:
    (folder / "index.json").write_text(json.dumps(content))
    return str(folder / "index.json")


def no_root(trained: list[str], folder: Path) -> list[str]:
    return [*trained[:2], "dataset=re10k", "loss=mse", f"dataset.root={folder / 'none'}"]


def no_model(trained: list[str], folder: Path) -> list[str]:
    return [*trained[:2], f"dataset.root={folder / 'none'}", f"output={folder / 'untrained'}"]


def foreign_model(trained: list[str], folder: Path) -> list[str]:
    (folder / "other.pth").write_bytes(b"not a checkpoint")
    return [*trained, "--model", str(folder / "other.pth")]


def missing_scene(trained: list[str], folder: Path) -> list[str]:
    root = trained[2].removeprefix("dataset.root=")
    index = index_of(folder, {"no-such-scene": {"context": [0, 8], "target": [4]}})
    return [
        *trained[:2], "dataset=re10k", f"dataset.root={root}", f"dataset.index={index}",
        "dataset.size=[32,32]", "loss=mse", trained[-1],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "arguments", "told"),
    [
        ("train", lambda t, f: ["+experiment=demo_tinny"], "did you mean 'demo_tiny'"),
        ("train", lambda t, f: t, "already holds a run"),
        ("train", lambda t, f: no_root([*t, f"output={f}"], f), "none"),
        ("evaluate", lambda t, f: [*no_root(t, f), t[-1]], "none"),
        ("evaluate", no_model, "was not trained here yet; wanted"),
        ("evaluate", no_model, "run `pmsplat train +experiment=demo_tiny output="),
        ("evaluate", foreign_model, "another kind of file; wanted a checkpoint"),
        ("evaluate", missing_scene, "no-such-scene"),
    ],
)
def test_each_mistake_is_one_sentence_and_exit_code_2(
    verb: str,
    arguments: Callable[[list[str], Path], list[str]],
    told: str,
    trained: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([verb, *arguments(trained, tmp_path)]) == 2
    error = capsys.readouterr().err
    assert told in error.replace("\n", " ")
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("results.json"))
    assert not (tmp_path / "none").exists()


def test_print_shows_the_settings_and_trains_nothing(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *trained[:-1], f"output={tmp_path / 'new'}", "--print"]) == 0
    assert "name: tests.lab.encoder" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_overrides_may_follow_options(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["train", "+experiment=demo_tiny"]
    assert main([*asked, "trainer.steps=7", "--print"]) == 0
    expected = capsys.readouterr().out
    assert main([*asked, "--print", "trainer.steps=7"]) == 0
    assert capsys.readouterr().out == expected and "steps: 7" in expected
    with pytest.raises(SystemExit):
        main([*asked, "--print", "trainer.steps=7", "--colour"])
    assert "unrecognized arguments: --colour\n" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # a verb without overrides takes no more words than it names
        main(["models", "list", "trainer.steps=7"])


def as_folder(trained: list[str], *more: str) -> list[str]:
    """The same rooms as a folder of one's own, with the index that they brought."""
    root = trained[2].removeprefix("dataset.root=")
    return [
        *trained[:2], "dataset=folder", f"dataset.root={root}", "loss=mse", "dataset.size=[32,32]",
        trained[-1], *more, "--device", "cpu",
    ]  # fmt: skip


def test_lengths_are_in_the_unit_of_the_scene_whatever_the_model_learned_with(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder that works in every unit predicts the same in its own, but for rounding."""
    means = []
    for name, near in (("own", None), ("scaled", 7.5)):
        monkeypatch.setattr("tests.lab.encoder.Encoder.near", near, raising=False)
        options = ["--geometry", "--baselines", "--output", str(tmp_path / name)]
        assert main(["evaluate", *as_folder(trained), *options]) == 0
        files = [tmp_path / name / file for file in ("results.json", "plane_sweep.json")]
        means.append([json.loads(file.read_text())["means"] for file in files])
    assert means[0] != means[1]
    for own, scaled in zip(*means, strict=True):
        for length in ("rmse", "accuracy", "completeness", "chamfer", "chamfer_median"):
            assert scaled[length] == pytest.approx(own[length], rel=0.01), length
        assert scaled["psnr"] == pytest.approx(own["psnr"], abs=0.05)


def test_evaluate_tells_that_few_scenes_are_timed_with_the_warm_up(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "here"
    assert main(["evaluate", *trained, "--device", "cpu", "--output", str(folder)]) == 0
    assert " ms (warm-up included); written to" in capsys.readouterr().out.replace("\n", "")
    assert json.loads((folder / "results.json").read_text())["seconds_with_warm_up"] is True


def test_tables_are_whole_where_no_terminal_cuts_them(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, index = trained[2].removeprefix("dataset.root="), tmp_path / "both.json"
    options = ["--gap", "4", "--outside", "2", "--targets", "2", "--between", "1"]
    assert main(["data", "index", root, str(index), *options]) == 0
    copy = tmp_path / "a model with a name as long as that of a published one.safetensors"
    copy.write_bytes((Path(trained[-1].removeprefix("output=")) / "model.safetensors").read_bytes())
    asked = as_folder(trained, f"dataset.index={index}", "--model", str(copy))
    assert main(["evaluate", *asked, "--output", str(tmp_path / "here")]) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert all(f" {word} " in shown for word in ("inside ↑", "outside ↑", "AbsRel ↓", copy.name))
