"""Paired differences against closed forms and scipy; results that do not compare are refused."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pmsplat.errors import UserError
from pmsplat.evaluate import report
from pmsplat.evaluate.compare import (
    Measured,
    bootstrap_mean,
    check_comparable,
    compare,
    difference_table,
    read_measured,
    write_differences,
)
from pmsplat.evaluate.protocol import Result, Row
from pmsplat.evaluate.views import ViewRow


def measured(name: str, **psnr: float) -> Measured:
    rows = [
        Row(scene, 1, {"psnr": value}, (ViewRow("0", {"psnr": value}, name, f"photo {scene}"),))
        for scene, value in psnr.items()
    ]
    return Measured(name, rows, "12ab" * 16)


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
    assert found.sure
    (back,) = compare(theirs, ours)
    assert (back.difference, back.low, back.high) == pytest.approx((-0.1, -0.1, -0.1))


def test_a_metric_that_some_scenes_lack_is_compared_over_the_others() -> None:
    theirs, ours = measured("A", a=1.0, b=2.0), measured("B", a=2.0, b=2.0)
    more = [replace(row, values=row.values | {"lpips": 0.5}) for row in theirs.rows]
    some = [replace(ours.rows[0], values={"psnr": 2.0, "lpips": 0.25}), ours.rows[1]]
    psnr, lpips = compare(replace(ours, rows=some), replace(theirs, rows=more))
    assert (psnr.scenes, lpips.scenes) == (2, 1)
    assert lpips.difference == -0.25 and lpips.low != lpips.low and not lpips.sure


def test_results_that_do_not_compare_are_refused() -> None:
    one, other = measured("A", a=1.0), measured("B", a=2.0)
    check_comparable(one, other)
    for changed, sentence in (
        (replace(other, index="34cd" * 16), "indices of the SHA-256 12ab12ab12ab and 34cd34cd34cd"),
        (replace(other, protocol="fitted"), "protocols given and fitted"),
        (measured("B", b=2.0), "no scene in common"),
    ):
        with pytest.raises(UserError, match=sentence):
            compare(one, changed)
    for views in (
        (ViewRow("0", {}, None, "another photo"),),
        (ViewRow("1", {}, None, "photo a"),),
    ):
        changed = replace(other, rows=[replace(other.rows[0], views=views)])
        with pytest.raises(UserError, match="different photographs of scene 'a'"):
            compare(one, changed)
    unknown = replace(other, index=None, rows=[replace(other.rows[0], views=())])
    assert compare(one, unknown)[0].difference == -1


def test_files_hold_what_memory_holds(tmp_path: Path) -> None:
    ours, theirs = measured("B", a=2.0, b=3.5), measured("A", a=1.0, b=4.0)
    for one in (ours, theirs):
        about = {"model": one.name, "identity": {"index": one.index}}
        report.write_json(tmp_path / f"{one.name}.json", Result(list(one.rows)), about)
        assert read_measured(tmp_path / f"{one.name}.json") == one
    found = compare(ours, theirs)
    write_differences(tmp_path / "comparison.json", found)
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["confidence"] == 0.95
    assert written["differences"][0]["difference"] == found[0].difference == 0.25
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(difference_table(found))
    text = console.export_text()
    assert "B minus A" in text and "+0.250" in text and "-0.500 … +1.000" in text
