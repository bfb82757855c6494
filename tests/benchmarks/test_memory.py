"""What long runs keep: what is counted, and the growth of a curve that is known."""

import os
from pathlib import Path

import pytest
import torch

from benchmarks import memory


def test_growth_is_that_of_the_settled_part() -> None:
    """100 MiB before the first third is done, then 2 MiB; a long begin and end do not count."""
    steps = [0] * 50 + list(range(0, 901, 10))
    looks = [
        memory.Look(float(i), done, 400 + (done / 300 if done >= 300 else -100), 7, 90)
        for i, done in enumerate(steps)
    ]
    found = memory.describe(looks)
    assert found["growth_mib"] == pytest.approx(2, abs=0.01) and found["over_units"] == 600
    assert found["growth_files"] == found["growth_maps"] == 0 and len(found["curve"]) == 141


def test_a_process_is_seen_with_what_it_holds(tmp_path: Path) -> None:
    before = memory.look(os.getpid(), 0, 0)
    held, opened = torch.ones(64 << 20), [(tmp_path / str(i)).open("w") for i in range(5)]
    after = memory.look(os.getpid(), 1, 0)
    assert before is not None and after is not None
    assert after.mib - before.mib == pytest.approx(held.nbytes / 2**20, abs=16)
    assert after.files - before.files == len(opened) and after.maps > 10
    for file in opened:
        file.close()
    assert memory.look(2**22 + 1, 0, 0) is None
