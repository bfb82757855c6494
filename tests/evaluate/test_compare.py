"""Paired differences against closed forms and scipy; results that do not compare are refused."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pmsplat.errors import UserError
from pmsplat.evaluate.compare import (
    bootstrap_mean,
    compare,
    difference_table,
    write_differences,
)
from pmsplat.evaluate.protocol import Row
from pmsplat.evaluate.runs import Protocol, Run


def measured(name: str, poses: str = "given", **psnr: float) -> Run:
    rows = tuple(Row(scene, 1, {"psnr": value}) for scene, value in psnr.items())
    return Run(name, Path(), Protocol(poses=poses), rows)


def test_the_interval_is_that_of_the_normal_distribution(generator: torch.Generator) -> None:
    """By the central limit theorem: mean ± 1.96 standard errors, where there are many scenes."""
    values = 0.3 + 2 * torch.randn(2000, generator=generator, dtype=torch.float64)
    found = bootstrap_mean(values, torch.Generator().manual_seed(1))
    error, middle = values.std(unbiased=False).item() / 2000**0.5, values.mean().item()
    assert found.low == pytest.approx(middle - 1.95996 * error, abs=0.04 * error)
    assert found.high == pytest.approx(middle + 1.95996 * error, abs=0.04 * error)


def test_the_interval_of_two_scenes_is_that_of_all_draws() -> None:
    """Of the draws of 0 and 1 a quarter has the mean 0, a half 0.5, a quarter 1."""
    values = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for confidence, interval in ((0.4, (0.5, 0.5)), (0.6, (0.0, 1.0))):
        found = bootstrap_mean(values, torch.Generator().manual_seed(0), confidence=confidence)
        assert (found.low, found.high) == interval


def test_the_interval_is_that_of_scipy(generator: torch.Generator) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = torch.randn(60, generator=generator, dtype=torch.float64).exp()  # skewed
    found = bootstrap_mean(values, torch.Generator().manual_seed(0), resamples=40_000)
    theirs = stats.bootstrap(
        (values.numpy(),), lambda x, axis: x.mean(axis=axis), n_resamples=40_000,
        method="percentile", rng=0,
    ).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert found.low == pytest.approx(theirs.low, abs=0.02 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.02 * width)


def test_draws_in_pieces_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(50, dtype=torch.float64)
    first, again, other = (
        bootstrap_mean(values, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert first == again != other
    monkeypatch.setattr("pmsplat.evaluate.compare.AT_ONCE", 3000)
    pieces = bootstrap_mean(values, torch.Generator().manual_seed(0))
    assert pieces == first
    assert bootstrap_mean(values[:1], torch.Generator()).low != first.low


def test_scenes_are_compared_with_themselves() -> None:
    """Scenes 20 dB apart, methods a tenth: the interval knows of the methods alone."""
    theirs = measured("A", a=15.0, b=25.0, c=35.0, only=50.0)
    ours = measured("B", c=35.1, a=15.1, b=25.1, other=0.0)
    (found,) = compare(ours, theirs)
    assert (found.method, found.against, found.metric, found.scenes) == ("B", "A", "psnr", 3)
    assert (found.mean, found.against_mean) == pytest.approx((25.1, 25.0))
    assert (found.difference, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert not found.sure  # of three scenes
    (back,) = compare(theirs, ours)
    assert (back.difference, back.low, back.high) == pytest.approx((-0.1, -0.1, -0.1))


def test_six_scenes_can_be_sure() -> None:
    for scenes, sure in (("abcde", False), ("abcdef", True)):
        theirs = measured("A", "given", **{name: 20.0 + ord(name) for name in scenes})
        ours = measured("B", "given", **{name: 20.1 + ord(name) for name in scenes})
        (found,) = compare(ours, theirs)
        assert found.low > 0 and found.sure == sure


def test_a_metric_that_some_scenes_lack_is_compared_over_the_others() -> None:
    theirs, ours = measured("A", a=1.0, b=2.0), measured("B", a=2.0, b=2.0)
    more = [replace(row, values=row.values | {"lpips": 0.5}) for row in theirs.rows]
    some = (replace(ours.rows[0], values={"psnr": 2.0, "lpips": 0.25}), ours.rows[1])
    psnr, lpips = compare(replace(ours, rows=some), replace(theirs, rows=tuple(more)))
    assert (psnr.scenes, lpips.scenes) == (2, 1)
    assert lpips.difference == -0.25 and lpips.low != lpips.low and not lpips.sure


def test_results_that_do_not_compare_are_refused() -> None:
    with pytest.raises(UserError, match="protocols fitted and given"):
        compare(measured("B", "fitted", a=1.0), measured("A", a=1.0))


def test_differences_are_written_and_shown(tmp_path: Path) -> None:
    found = compare(measured("B", a=2.0, b=3.5), measured("A", a=1.0, b=4.0))
    write_differences(tmp_path / "comparison.json", found)
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["confidence"] == 0.95
    assert written["differences"][0]["difference"] == found[0].difference == 0.25
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(difference_table(found))
    text = console.export_text()
    assert "B minus A" in text and "+0.250" in text and "-0.500 … +1.000" in text
