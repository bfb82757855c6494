"""`python benchmarks/run.py points`: every search and pass has a time, and errors are seen."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks.run import main

from benchmarks import points
from pmsplat.kernels import neighbors

WORDS = "points --size 4 6 5 8 --views 3 --near 2 5 --channels 16 --repeats 2 --pairs 1e4 --json"


def test_times_of_searches_and_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    assert main([*WORDS.split(), str(out)]) == 0
    figures = json.loads(out.read_text())["figures"]
    names = [f"{count} points, k = {k}" for count in (72, 120) for k in (2, 5)]
    assert [*figures] == ["views", "channels", *names]
    for name in names:
        # 120 · 120 pairs are too many
        searches = ["scipy", "ours", "pairs"] if name.startswith("72") else ["scipy", "ours"]
        assert [*figures[name]["search"]] == searches
        assert all(abs(found["error"]) < 1e-6 for found in figures[name]["search"].values())
        for what in ("search", "forward", "backward"):
            assert all(found["median_ms"] > 0 for found in figures[name][what].values())
        assert [*figures[name]["backward"]] == [*figures[name]["peak_mib"]] == ["ours", "torch"]
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2 * (3 + 4) + 2 * (2 + 4)


def test_a_search_that_errs_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        neighbors, "k_nearest", lambda p, r, k: torch.arange(len(p))[:, None].expand(-1, k).flip(0)
    )
    out = tmp_path / "figures.json"
    assert main([*WORDS.split(), str(out)]) == 0
    found = json.loads(out.read_text())["figures"]["72 points, k = 2"]["search"]
    assert found["ours"]["error"] > 0.1 and abs(found["pairs"]["error"]) < 1e-6


def test_comparing_all_is_what_it_says(generator: torch.Generator) -> None:
    some = torch.rand(200, 3, generator=generator)
    assert (points.compare_all(some, 6) == neighbors.k_nearest(some, some, 6)).all()


@pytest.mark.parametrize("words", ["--size 4", "--size 4 0", "--size 4 6 --views 0"])
def test_no_points_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["points", *words.split()]) == 2
    assert "wanted heights and widths by turns" in capsys.readouterr().err
