"""Whole encoders against the official implementation's outputs, by the reference's own script."""

import subprocess
import sys
from pathlib import Path

import pytest

QUICK = ["ds_gs_small_re10k_b2_v4_64x96", "ds_gs_small_re10k_v2_96x96_clamp"]
SLOW = [
    "ds_gs_small_448x768_v3_128x192",
    "ds_gs_small_re10k_b2_v2_96x96",
    "ds_gs_small_re10k_v2_128x128",
    "ds_gs_small_re10k_v2_256x256_full",
    "ds_gs_base_re10k_v2_128x128",
    "ds_gs_base_re10k_v2_96x128_train",
    "ds_gs_base_dl3dv_v6_96x128",
    "ds_gs_base_448x768_v2_96x160",
    "ds_gs_large_re10k_v2_96x128",
    "ds_depth_base_v3_96x160",
    "ds_depth_small_v2_96x160",
]


def check(shared: Path, cases: list[str]) -> None:
    folder = shared / "reference"
    files = [str(folder / f"{case}.npz") for case in cases]
    done = subprocess.run(
        [sys.executable, str(folder / "check.py"), *files], capture_output=True, text=True
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_small_models_equal_the_official_ones(shared: Path) -> None:
    check(shared, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_published_models_equal_the_official_ones(case: str, shared: Path) -> None:
    check(shared, [case])
