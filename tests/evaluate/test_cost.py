"""What scenes cost: counted by hand, and by the file that is written."""

import time
from pathlib import Path

import pytest
import torch

from pmsplat.evaluate.cost import WARM_UP, Cost, Meter, summarize
from pmsplat.evaluate.timing import Stopwatch
from pmsplat.io.gaussians import save_gaussians
from pmsplat.types import Batch, Prediction, StepOutput
from tests.evaluate.test_protocol import off_by, scene
from tests.scenes import random_gaussians


def test_gaussians_are_those_that_are_drawn_in_bytes_of_a_file(
    tmp_path: Path, generator: torch.Generator
) -> None:
    gaussians, batch, watch = (
        random_gaussians(200, generator),
        scene("a", 1, generator),
        Stopwatch(),
    )

    def run(batch: Batch) -> StepOutput:
        with watch("encode"):
            time.sleep(0.01)
        return StepOutput(batch, Prediction((), (gaussians,)), ())

    meter = Meter(run, watch, keep=0.25)
    meter(batch)
    assert meter.cost is not None and meter.cost.gaussians == 50
    assert meter.cost.seconds["encode"] >= 0.01
    save_gaussians(gaussians, tmp_path / "all.ply")
    content = (tmp_path / "all.ply").read_bytes()
    rows = len(content) - content.index(b"end_header\n") - len(b"end_header\n")
    assert 4 * meter.cost.bytes == rows
    # The process holds at least what Python and torch take, and no more than the machine has
    assert meter.cost.peak_bytes is not None and 2**26 < meter.cost.peak_bytes < 2**42


def test_a_baseline_without_gaussians_costs_none(generator: torch.Generator) -> None:
    meter = Meter(off_by(0.1), Stopwatch())
    meter(scene("a", 1, generator))
    assert meter.cost is not None
    assert (meter.cost.gaussians, meter.cost.bytes, meter.cost.seconds) == (0, 0, {})


def test_the_first_scenes_of_a_process_are_warm_up(generator: torch.Generator) -> None:
    meter, batch, found = Meter(off_by(0.1), Stopwatch()), scene("a", 1, generator), []
    for _ in range(WARM_UP + 2):
        meter(batch)
        assert meter.cost is not None
        found.append(meter.cost.warm_up)
    assert found == [True] * WARM_UP + [False] * 2


def test_costs_are_means_without_warm_up_and_the_largest_peak() -> None:
    slow = Cost(100, 24_800, {"encode": 9.0}, 7, warm_up=True)
    fast = Cost(300, 74_400, {"encode": 1.0}, 5, warm_up=False)
    total = summarize([slow, fast, fast])
    assert total.seconds == {"encode": 1.0} and not total.warm_up_included
    assert total.gaussians == pytest.approx(700 / 3) and total.peak_bytes == 7
    assert total.megabytes == pytest.approx((24_800 + 2 * 74_400) / 3e6)
    few = summarize([slow])
    assert few.seconds == {"encode": 9.0} and few.warm_up_included
