"""`python benchmarks/run.py neighbors`: a row for each method, and none that errs goes unseen."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from benchmarks.run import main

from benchmarks import neighbors
from pmsplat.kernels import neighbors as kernel

WORDS = "neighbors --size 12 20 --views 3 --repeats 2 --json"


def test_a_row_for_each_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    assert main([*WORDS.split(), str(out)]) == 0
    figures = json.loads(out.read_text())["figures"]
    names = ["ours, grid", "ours", "scipy"]
    names += ["pytorch3d"] if importlib.util.find_spec("pytorch3d") else []
    assert figures["points"] == 720 and [*figures][3:] == names
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(names)
    for name in names:
        assert figures[name]["search"]["median_ms"] > 0 and figures[name]["search"]["calls"] == 2
        assert 0 <= figures[name]["error"] < 1e-6


def test_a_search_that_errs_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel, "nearest", lambda p, r, grid=None: torch.arange(len(p)))
    out = tmp_path / "figures.json"
    assert main([*WORDS.split(), str(out)]) == 0
    figures = json.loads(out.read_text())["figures"]
    assert figures["ours"]["error"] > 0.1 and figures["scipy"]["error"] == 0


def test_the_maps_differ_as_asked() -> None:
    points, reference = neighbors.maps(2, 8, 10, 0.0)
    moved = 1.02 * reference + torch.tensor([0.05, -0.03, 0.04])
    torch.testing.assert_close(points, moved)
    points, _ = neighbors.maps(2, 80, 100, 0.03)
    moved = 1.02 * neighbors.maps(2, 80, 100, 0.0)[1] + torch.tensor([0.05, -0.03, 0.04])
    depth = neighbors.maps(2, 80, 100, 0.0)[1][:, 2:]
    assert ((points - moved) / (1.02 * depth)).std() == pytest.approx(0.03, rel=0.05)


def test_no_points_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["neighbors", "--size", "0", "8"]) == 2
    assert "--size 0 8 --views 2" in capsys.readouterr().err
