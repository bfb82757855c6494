"""A model with steps and a world of its own, through every verb; scenes of strange units."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pmsplat import config, load_gaussians
from pmsplat.cli import main
from pmsplat.data import synthetic
from pmsplat.errors import UserError
from pmsplat.evaluate import protocol
from pmsplat.io.cameras import export
from pmsplat.io.chunks import write_chunk
from pmsplat.scene import open_scene
from pmsplat.tasks.depth import Options as DepthOptions
from pmsplat.tasks.depth import depth
from pmsplat.tasks.evaluate import Options, evaluate
from pmsplat.tasks.predict import Options as PredictOptions
from pmsplat.tasks.predict import predict
from pmsplat.tasks.refine import Options as RefineOptions
from pmsplat.tasks.refine import refine
from pmsplat.zoo.load import save
from tests.models.stepped import STEP, Stepped, stepped
from tests.models.tiny import tiny
from tests.tasks.test_any_cameras import SHOTS, cloud, photos

QUICK = PredictOptions(views=2, held_out=1, fps=1, seconds=0.1, device="cpu")
ROOMS = ["+experiment=demo_tiny", "dataset.size=[32,48]", "dataset=folder", "dataset.gap=[4,6]"]


@pytest.fixture
def model(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> Stepped:
    monkeypatch.setattr("pmsplat.zoo.memory.check", lambda *_, **__: None)  # runs the model, too
    return stepped(generator)


def kitchen(folder: Path, unit: np.ndarray, place: np.ndarray) -> Path:
    """A scene whose coordinates are in these units, counted from a place."""
    shots = []
    for shot in SHOTS:
        c2w = shot.c2w.copy()
        left, _, right = np.linalg.svd(c2w[:3, :3])
        c2w[:3, :3] = left @ right
        c2w[:3, 3] = c2w[:3, 3] * unit + place
        shots.append(replace(shot, c2w=c2w))
    photos(folder / "images")
    points = cloud()
    export.write_colmap(
        folder / "sparse" / "0", shots, replace(points, xyz=points.xyz * unit + place)
    )
    return folder


@pytest.mark.parametrize(
    ("unit", "place"),
    [(1000.0, (0.0, 0.0, 0.0)), (9e-6, (11.5, 48.1, 0.004))],
    ids=["millimetres", "degrees"],
)
def test_a_scene_in_any_unit(
    unit: float, place: tuple[float, ...], model: Stepped, tmp_path: Path
) -> None:
    said: list[str] = []
    plain = kitchen(tmp_path / "plain", np.ones(3), np.zeros(3))
    strange = kitchen(tmp_path / "strange", np.full(3, unit), np.array(place))
    first = predict(plain, model, tmp_path / "a", QUICK)
    second = predict(strange, model, tmp_path / "b", QUICK, tell=said.append)
    assert second.scale == pytest.approx(first.scale / unit, rel=1e-4)
    assert first.context == second.context and first.held_out.keys() == second.held_out.keys()
    for name, values in first.held_out.items():
        assert second.held_out[name] == pytest.approx(values, abs=0.05)
    for name in (Path(photo).stem for photo in first.context):
        depths = [np.load(tmp_path / side / "depth" / f"{name}.npy") for side in "ab"]
        np.testing.assert_allclose(depths[1], unit * depths[0], rtol=1e-4)
    before, after = (load_gaussians(tmp_path / side / "gaussians.ply") for side in "ab")
    shift = torch.tensor(after.origin, dtype=torch.float64) - torch.tensor(
        place, dtype=torch.float64
    )
    moved = (after.means.double() + shift) / unit
    torch.testing.assert_close(moved, before.means.double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(after.scales / unit, before.scales, rtol=1e-4, atol=0)
    torch.testing.assert_close(after.sh, before.sh, rtol=0, atol=1e-4)

    # The report says by what it was scaled.
    middle, seen = second.report.middle_depth or (0.0, 0.0)
    assert middle * second.scale == pytest.approx(seen) == pytest.approx(5)
    (line,) = [line for line in said if "The middle of the depth is" in line]
    assert f"{middle:.3g}, by near and far that come from sparse points" in line
    assert f"{second.scale:.3g} times as large, so that it is 5" in line
    assert second.report.near == pytest.approx(0.01 / second.scale)
    assert second.report.far == pytest.approx(200 / second.scale)


def test_degrees_beside_metres_are_named(
    model: Stepped, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unit, place = np.array([1 / 74600, 1 / 111320, 1.0]), np.array([11.5, 48.1, 500])
    open_scene(kitchen(tmp_path / "drone", unit, place))
    assert "degrees" in caplog.text and "convert" in caplog.text
    caplog.clear()
    open_scene(kitchen(tmp_path / "map", np.ones(3), np.array([11500.0, 48100, 500])))
    open_scene(kitchen(tmp_path / "small", np.full(3, 9e-6), np.array([11.5, 48.1, 0])))
    assert "degrees" not in caplog.text


def test_predict_takes_the_steps_that_are_wanted(model: Stepped, tmp_path: Path) -> None:
    source = kitchen(tmp_path / "kitchen", np.ones(3), np.zeros(3))
    answers = []
    for steps in (None, 0, 2):
        predict(source, model, tmp_path / str(steps), replace(QUICK, steps=steps))
        answers.append(load_gaussians(tmp_path / str(steps) / "gaussians.ply").means)
        written = json.loads((tmp_path / str(steps) / "metrics.json").read_text())
        assert (written["model"], written["steps"]) == (
            "Stepped",
            model.steps if steps is None else steps,
        )
    assert torch.equal(answers[0], answers[2])
    moved = (answers[2] - answers[1]).norm(dim=-1)
    scale = json.loads((tmp_path / "0" / "metrics.json").read_text())["scale"]
    torch.testing.assert_close(moved, torch.full_like(moved, 2 * STEP / scale))
    with pytest.raises(UserError, match="`steps=-3`"):
        predict(source, model, tmp_path / "bad", replace(QUICK, steps=-3))
    assert not (tmp_path / "bad").exists()


def test_a_chunk_without_range_is_in_the_unit_of_the_model(model: Stepped, tmp_path: Path) -> None:
    chunk = tmp_path / "000000.torch"
    write_chunk(chunk, [replace(synthetic.scene("a", 4, (32, 48)), near=None, far=None)])
    summary = predict(chunk, model, tmp_path / "out", QUICK)
    assert summary.scale == 1 and summary.report.middle_depth is None
    assert summary.report.range_source == "the model"
    depth(chunk, model, tmp_path / "depth", DepthOptions(views=2, device="cpu"))
    refine(chunk, tmp_path / "refined", RefineOptions(model=model, steps=1, device="cpu"))
    assert len(model.seen) > 3
    for views in model.seen:
        assert (views.cameras.near == 0.01).all() and (views.cameras.far == 200).all()
        lengths = torch.linalg.det(views.cameras.c2w[..., :3, :3])
        torch.testing.assert_close(lengths, torch.ones_like(lengths))
        middle = views.cameras.c2w[0, views.images.shape[1] // 2]
        torch.testing.assert_close(middle, torch.eye(4))


def test_depth_has_one_unit_and_takes_no_step(
    model: Stepped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    forward = Stepped.forward

    def watched(self: Stepped, views, steps=None, all_levels=False):
        taken.append(steps)
        return forward(self, views, steps, all_levels)

    monkeypatch.setattr(Stepped, "forward", watched)
    source = kitchen(tmp_path / "kitchen", np.ones(3), np.zeros(3))
    summary = depth(source, model, tmp_path / "out", DepthOptions(views=2, device="cpu"))
    assert len(taken) > 1 and set(taken) == {0}
    assert summary.report.middle_depth is not None
    # The distance of two cameras in the unit of the model is that of the scene times its scale.
    scale = json.loads((tmp_path / "out" / "cameras.json").read_text())["scale"]
    places = open_scene(source).cameras.c2w[0, :, :3, 3]
    gaps = (scale * torch.pdist(places)).sort().values
    for views in model.seen:
        gap = views.cameras.c2w[0, :, :3, 3].diff(dim=0).norm()
        assert (gaps - gap).abs().min() < 1e-5


@pytest.fixture
def rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides for an experiment with two rooms to learn from and one to measure on."""
    monkeypatch.setattr(protocol, "find_lpips", lambda: (None, ()))
    few = ["dataset.scenes=2", "dataset.test_scenes=1", "dataset.frames=8"]
    root = f"dataset.root={tmp_path / 'rooms'}"
    made = config.compose(["+experiment=demo_tiny", "dataset.size=[32,48]", root, *few])
    synthetic.make(made.dataset.settings)
    return [*ROOMS, root]


def test_evaluate_measures_every_step(
    model: Stepped, rooms: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(config.compose(rooms), model, tmp_path / "a", Options(device="cpu"))
    means = found.model.means
    assert means["psnr_step2"] == means["psnr"] and "psnr_step3" not in means
    fewer = evaluate(config.compose(rooms), model, tmp_path / "b", Options(steps=1, device="cpu"))
    assert fewer.model.means["psnr"] == pytest.approx(means["psnr_step1"])
    written = json.loads((tmp_path / "a/results.json").read_text())
    assert written["steps"] == 2 and written["means"] == pytest.approx(means)
    header, row = (tmp_path / "a/scenes.csv").read_text().splitlines()
    values = dict(zip(header.split(","), row.split(","), strict=True))
    assert float(values["psnr_step0"]) == pytest.approx(means["psnr_step0"])


def test_steps_of_a_model_without_them_are_refused(
    rooms: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.safetensors"
    save(tiny(), path, "depthsplat")
    ways = (
        ["evaluate", *rooms, "--model", str(path), "--output", str(tmp_path / "out")],
        ["predict", f"{tmp_path}/rooms/test", "--model", str(path), "--output", f"{tmp_path}/out"],
    )
    for words in ways:
        assert main([*words, "--device", "cpu", "--steps", "2"]) == 2
        said = capsys.readouterr().err.replace("\n", " ")
        assert "--steps 2 for a model that predicts in a single pass" in said
        assert "leave --steps out" in said
    assert not (tmp_path / "out").exists()
