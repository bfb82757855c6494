"""`python benchmarks/run.py pointmap`: outliers, variants of PM-Loss, and what a step costs."""

import json
from pathlib import Path

import pytest
from benchmarks.run import main
from PIL import Image

from benchmarks import pointmap


def test_outliers_move_the_published_loss_and_hardly_the_robust_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, png = tmp_path / "figures.json", tmp_path / "outliers.png"
    words = ["pointmap", "--size", "48", "64", "--json", str(out), "--plot", str(png)]
    assert main([*words, "--models"]) == 0
    found = json.loads(out.read_text())["figures"]["outliers"]
    assert [point["share"] for point in found["published"]] == list(pointmap.SHARES)
    assert all(points[0]["loss"] < 1e-3 for points in found.values())  # a perfect teacher
    for published, robust in zip(
        found["published"][1:5], found["robust, trimmed"][1:5], strict=True
    ):
        assert published["loss"] > 10 and published["alignment"] > 20  # % of the scene
        assert robust["loss"] < 1e-2 and robust["alignment"] < 1e-2
    with Image.open(png) as image:
        assert image.format == "PNG" and min(image.size) > 300
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(pointmap.VARIANTS)


def test_wrong_pixels_are_as_many_as_said() -> None:
    truth = pointmap.surface(48, 64)
    _, right = pointmap.spoiled(truth, 0.25)
    assert right.shape == (1, 2, 48, 64)
    assert 1 - right.float().mean().item() == pytest.approx(0.25, abs=0.01)


@pytest.mark.slow
def test_the_share_of_a_step_is_that_of_the_times(capsys: pytest.CaptureFixture[str]) -> None:
    found = pointmap.measure((64, 80), pointmap.TINY, repeats=1)
    alone, step = found["published"]["median_ms"], found["step"]["median_ms"]
    assert 0 < found["share"] == pytest.approx(alone / (alone + step), abs=1e-4)
    assert found["robust"]["median_ms"] > 0
