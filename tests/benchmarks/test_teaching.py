"""`python benchmarks/run.py teaching`: the same runs with and without PM-Loss, and their table."""

import json
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
from benchmarks.run import main
from PIL import Image

from benchmarks import teaching

WORDS = ["teaching", "--models", "depthsplat", "--seeds", "1", "--steps", "2"]


@pytest.mark.slow
def test_runs_are_measured_once_and_stand_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = tmp_path / "figures.json"
    words = [
        *WORDS,
        "--size",
        "32",
        "32",
        "--output",
        str(tmp_path / "out"),
        "--json",
        str(figures),
    ]
    monkeypatch.setattr(teaching, "ROOMS", (4, 2))
    assert main(words) == 0
    found = json.loads(figures.read_text())["figures"]
    assert list(found) == [f"depthsplat/{name}" for name in teaching.VARIANTS]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("depthsplat")]
    for line, (key, runs) in zip(lines, found.items(), strict=True):
        assert line.startswith(key) and f"{runs[0]['psnr_inside']:.2f} ±nan" in line
        assert set(runs[0]) >= set(teaching.COLUMNS)
    assert found["depthsplat/colour"] != found["depthsplat/term"]
    with Image.open(tmp_path / "out" / "boundary.png") as image:
        assert np.asarray(image).std() > 20
    monkeypatch.setattr("pmsplat.train.run", None)  # a second call trains nothing
    assert main(words) == 0
    assert json.loads(figures.read_text())["figures"] == found


def test_gains_are_differences_of_the_same_seeds() -> None:
    without = [{name: value for name in teaching.COLUMNS} for value in (1.0, 5.0, 9.0)]
    term = [{name: value + 0.5 for name in teaching.COLUMNS} for value in (1.0, 5.0, 9.0)]
    lines = teaching.table({"mvsplat/colour": without, "mvsplat/term": term}).splitlines()
    assert f"{mean((1.0, 5.0, 9.0)):.2f} ±4.00" in lines[1]
    assert lines[3].split()[:3] == ["gain", "+0.50", "±0.00"]
