"""PlayCanvas' splat-transform, the second tool: it reads our files, and we read its.

Needs node, and the package @playcanvas/splat-transform on the path or in the folder that
SPLAT_TRANSFORM names (`npm install --prefix FOLDER @playcanvas/splat-transform`).
"""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pmsplat.io.gaussians import load_gaussians, save_gaussians, spz
from pmsplat.types import Gaussians
from tests.io.gaussians.encoders import write_ksplat
from tests.scenes import random_gaussians

pytestmark = pytest.mark.slow


@pytest.fixture
def tool() -> str:
    folder = Path(os.environ.get("SPLAT_TRANSFORM", ".")) / "node_modules" / ".bin"
    found = shutil.which("splat-transform", path=f"{folder}:{os.environ.get('PATH', '')}")
    if found is None or shutil.which("node") is None:
        pytest.skip("splat-transform is not installed")
    return found


def convert(tool: str, source: Path, target: Path, *options: str) -> Gaussians:
    command = [tool, "--overwrite", str(source), *options, str(target)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return load_gaussians(target)


def assert_same(found: Gaussians, expected: Gaussians, tolerance: float) -> None:
    """Equal, where a quaternion may differ by a half turn about an axis of its Gaussian."""
    assert found.means.shape == expected.means.shape and found.sh.shape == expected.sh.shape
    for name in ("means", "scales", "opacities", "sh", "covariances"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=tolerance, atol=tolerance
        )


@pytest.fixture
def gaussians(generator: torch.Generator) -> Gaussians:
    made = random_gaussians(600, generator, degree=3)
    return made.map(lambda tensor: tensor[:, made.sh[0].abs().amax((-1, -2)) < 0.95])


@pytest.mark.parametrize("suffix", [".ply", ".compressed.ply", ".spz"])
def test_it_reads_what_we_write(
    tool: str, tmp_path: Path, gaussians: Gaussians, suffix: str
) -> None:
    ours = tmp_path / f"a{suffix}"
    save_gaussians(gaussians, ours)
    assert_same(convert(tool, ours, tmp_path / "b.ply"), load_gaussians(ours), 2e-5)


@pytest.mark.parametrize("suffix", [".compressed.ply", ".spz", ".sog"])
def test_we_read_what_it_writes(
    tool: str, tmp_path: Path, gaussians: Gaussians, suffix: str
) -> None:
    """Its file read by us is its file read by itself."""
    save_gaussians(gaussians, tmp_path / "a.ply")
    options = ("--gpu", "cpu") if suffix == ".sog" else ()
    found = convert(tool, tmp_path / "a.ply", tmp_path / f"b{suffix}", *options)
    assert_same(found, convert(tool, tmp_path / f"b{suffix}", tmp_path / "c.ply"), 2e-5)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_it_reads_the_ksplat_of_these_tests(
    tool: str, tmp_path: Path, gaussians: Gaussians, level: int
) -> None:
    flat = replace(gaussians, sh=gaussians.sh[:, :, :9])
    write_ksplat(flat, tmp_path / "a.ksplat", level)
    theirs = convert(tool, tmp_path / "a.ksplat", tmp_path / "b.ply")
    assert_same(load_gaussians(tmp_path / "a.ksplat"), theirs, 2e-5)


def test_a_sog_has_the_axes_of_its_ply(tool: str, tmp_path: Path, gaussians: Gaussians) -> None:
    save_gaussians(gaussians, tmp_path / "a.ply")
    found = convert(tool, tmp_path / "a.ply", tmp_path / "b.sog", "--gpu", "cpu")
    middle = found.means.mean(dim=1), gaussians.means.mean(dim=1)
    torch.testing.assert_close(*middle, rtol=0, atol=1e-3)


def test_its_spz_is_ours(tool: str, tmp_path: Path, gaussians: Gaussians) -> None:
    """The same bytes but for positions, where we keep more bits, and one coefficient in 30.

    The reference writer rounds coefficients twice, to 1/128 and then to 1/16 or 1/8; we once.
    """
    save_gaussians(gaussians, tmp_path / "a.ply")
    for version in (3, 4):
        spz.write(gaussians, tmp_path / "a.spz", version)
        ours, theirs = load_gaussians(tmp_path / "a.spz"), convert(
            tool, tmp_path / "a.ply", tmp_path / "b.spz", "--spz-version", str(version)
        )  # fmt: skip
        torch.testing.assert_close(ours.means, theirs.means, rtol=0, atol=2**-13 + 2**-17)
        same = (ours.sh - theirs.sh).abs() < 1e-5
        assert same.float().mean() > 0.95 and (ours.sh - theirs.sh).abs().max() < 1 / 8 + 1e-5
        assert ((ours.scales / theirs.scales).log().abs() < 1e-4).float().mean() > 0.999
        torch.testing.assert_close(ours.covariances, theirs.covariances, rtol=0.1, atol=1e-3)


def test_real_files(tool: str, tmp_path: Path, shared: Path) -> None:
    for name in ("biker.spz", "guitar.compressed.ply", "luigi.ply"):
        path = shared / "scenes/pretrained_3dgs" / name
        assert_same(load_gaussians(path), convert(tool, path, tmp_path / "b.ply"), 2e-5)
