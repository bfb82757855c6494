"""What long runs keep: what is counted, and the growth of a curve that is known."""

import os
from pathlib import Path

import pytest
import torch

from benchmarks import memory


def test_growth_is_that_of_the_settled_part() -> None:
    """100 MiB at once, then 2 MiB in 60 s of files and maps that stay; 3 in 90 s would be all."""
    looks = [memory.Look(float(i), 400 + (i / 30 if i >= 30 else -100), 7, 90) for i in range(91)]
    found = memory.describe(looks, units=900)
    assert found["growth_mib"] == pytest.approx(2, abs=0.01) and found["over_units"] == 600
    assert found["growth_files"] == found["growth_maps"] == 0 and len(found["curve"]) == 91


def test_a_process_is_seen_with_what_it_holds(tmp_path: Path) -> None:
    before = memory.look(os.getpid(), 0)
    held, opened = torch.ones(64 << 20), [(tmp_path / str(i)).open("w") for i in range(5)]
    after = memory.look(os.getpid(), 1)
    assert before is not None and after is not None
    assert after.mib - before.mib == pytest.approx(held.nbytes / 2**20, abs=16)
    assert after.files - before.files == len(opened) and after.maps > 10
    for file in opened:
        file.close()
    assert memory.look(2**22 + 1, 0) is None
