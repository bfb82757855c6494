"""Gzipped and zipped files of Gaussians: what is inside decides, and bombs do not go off."""

import gzip
import logging
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.io.gaussians import load_gaussians, save_gaussians
from pmsplat.types import Gaussians
from tests.io.gaussians.encoders import write_ksplat
from tests.scenes import are_equal, random_gaussians


@pytest.fixture
def gaussians(generator: torch.Generator) -> Gaussians:
    return random_gaussians(200, generator, degree=1)


@pytest.mark.parametrize("suffix", [".ply", ".compressed.ply", ".splat", ".glb", ".spz", ".ksplat"])
def test_gzipped(
    tmp_path: Path, gaussians: Gaussians, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    plain = tmp_path / f"a{suffix}"
    if suffix == ".ksplat":
        write_ksplat(gaussians, plain)
    else:
        save_gaussians(gaussians, plain)
    packed = tmp_path / f"a{suffix}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    expected = load_gaussians(plain)
    assert are_equal(load_gaussians(packed), expected)
    if "splat" not in suffix:  # these two have nothing but their names to know them by
        assert are_equal(load_gaussians(packed.rename(tmp_path / "a.download")), expected)
    assert not list((tmp_path / "temporary").iterdir())


def test_a_spz_is_no_other_gzip(tmp_path: Path, gaussians: Gaussians) -> None:
    """Both begin alike; the first bytes inside decide, whatever the name says."""
    save_gaussians(gaussians, tmp_path / "a.spz")
    expected = load_gaussians(tmp_path / "a.spz")
    (tmp_path / "a.spz").rename(tmp_path / "a.ply.gz")
    assert are_equal(load_gaussians(tmp_path / "a.ply.gz"), expected)


def test_several_members(tmp_path: Path, gaussians: Gaussians) -> None:
    """A gzip file may be several streams, one after the other."""
    save_gaussians(gaussians, tmp_path / "a.ply")
    content = (tmp_path / "a.ply").read_bytes()
    half = len(content) // 2
    packed = gzip.compress(content[:half]) + gzip.compress(content[half:])
    (tmp_path / "a.ply.gz").write_bytes(packed)
    assert are_equal(load_gaussians(tmp_path / "a.ply.gz"), load_gaussians(tmp_path / "a.ply"))


def test_damage_is_told_by_the_name_that_the_user_knows(
    tmp_path: Path, gaussians: Gaussians
) -> None:
    save_gaussians(gaussians, tmp_path / "a.ply")
    content, path = (tmp_path / "a.ply").read_bytes(), tmp_path / "b.ply.gz"
    for packed, fault in (
        (gzip.compress(content)[:-5], "its gzip stream is damaged"),
        (gzip.compress(content) + b"more", "its gzip stream is damaged"),
        (gzip.compress(content[:-9]), "200 Gaussians in"),
        (gzip.compress(b"solid of triangles"), "no .ply header"),
        (gzip.compress(gzip.compress(content)), "a gzip stream inside a gzip stream"),
    ):
        path.write_bytes(packed)
        with pytest.raises(UserError, match=fault) as caught:
            load_gaussians(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_bombs_are_refused(tmp_path: Path) -> None:
    """A megabyte that unpacks to a gigabyte: 1,000 times, where Gaussians pack at most 10 times."""
    bomb = gzip.compress(b"ply\n" + bytes(1 << 27))
    path = tmp_path / "a.ply.gz"
    path.write_bytes(bomb)
    with pytest.raises(UserError, match=f"{len(bomb)} bytes that unpack to more than"):
        load_gaussians(path)


def test_unknown_things_in_a_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(b"photos/"))
    with pytest.raises(UserError, match=r"a\.tar\.gz is no known file of Gaussians"):
        load_gaussians(path)


def test_a_zip_of_a_ply(tmp_path: Path, gaussians: Gaussians) -> None:
    save_gaussians(gaussians, tmp_path / "scene.ply")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "scene.ply", "scene.ply")
    with pytest.raises(UserError, match=r"is a zip archive .*\(scene\.ply\).*unpack the archive"):
        load_gaussians(tmp_path / "a.zip")


def test_cases(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = shared / "cases/gaussians"
    if not folder.is_dir():
        pytest.skip("no cases")
    with caplog.at_level(logging.WARNING):
        assert are_equal(
            load_gaussians(folder / "35_plain.ply.gz"), load_gaussians(folder / "00_plain.ply")
        )
    assert not caplog.records
