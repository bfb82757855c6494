"""Whole encoders against the official implementations' outputs, by the reference's own script."""

import tempfile
from pathlib import Path

import pytest

from tests.models.official import checker

QUICK = [
    "ds_gs_small_re10k_b2_v4_64x96",
    "ds_gs_small_re10k_v2_96x96_clamp",
    "ds24_gs_small_re10k_v4_64x96",
    "ds24_gs_small_re10k_v2_96x96_clamp",
    "mv_re10k_v3_64x96",
    "mv_re10k_v2_128x128",
]
SLOW = [
    "ds_depth_base_v3_96x160",
    "ds_depth_small_v2_96x160",
    "ds_gs_base_448x768_v2_96x160",
    "ds_gs_base_dl3dv_v4_128x192",
    "ds_gs_base_dl3dv_v6_96x128",
    "ds_gs_base_re10k448_v2_128x192",
    "ds_gs_base_re10k_v2_128x128",
    "ds_gs_base_re10k_v2_96x128_train",
    "ds_gs_base_re10k_v2_96x96_clamp",
    "ds_gs_large_re10k_v2_96x128",
    "ds_gs_small_448x768_v3_128x192",
    "ds_gs_small_re10k_b2_v2_96x96",
    "ds_gs_small_re10k_v2_128x128",
    "ds_gs_small_re10k_v2_256x256_full",
    "ds24_depth_large_v2_96x128_train",
    "ds24_depth_small_v4_96x160",
    "ds24_gs_base_dl3dv_v3_128x192",
    "ds24_gs_base_dl3dv_v6_96x128",
    "ds24_gs_base_re10k_v2_96x128_train",
    "ds24_gs_large_re10k_v2_96x128",
    "ds24_gs_small_re10k_v2_128x128",
    "ds24_gs_small_re10k_v2_256x256_full",
    "mv_re10k_b2_v2_64x96",
    "mv_re10k_v2_256x256_full",
    "pm_ori_v4_64x96_train",
    "pm_unconstrained_v2_128x192",
]


def ratio(folder: Path, case: str) -> float:
    """The worst error of a case in units of what is tolerated."""
    with tempfile.TemporaryDirectory() as workdir:  # weights of up to 1.4 GB
        return checker(folder).run(folder / f"{case}.npz", Path(workdir))


def test_every_case_is_listed(shared: Path) -> None:
    kinds = ("ds_", "ds24_", "mv_", "pm_")
    found = {f.stem for f in (shared / "reference").glob("*.npz") if f.name.startswith(kinds)}
    assert found == {*QUICK, *SLOW}


@pytest.mark.parametrize("case", QUICK)
def test_small_models_equal_the_official_ones(case: str, shared: Path) -> None:
    assert ratio(shared / "reference", case) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_published_models_equal_the_official_ones(case: str, shared: Path) -> None:
    assert ratio(shared / "reference", case) <= 1
