"""The confidence of Gaussians in files: a column of .ply, named where other formats lose it."""

import io
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.io.gaussians import load_gaussians, ply, save_gaussians
from pmsplat.io.gaussians._blocks import BLOCK
from pmsplat.types import Gaussians
from tests.scenes import random_gaussians

from .test_facts import ALL, skip_without

COUNT = 300
LOST = [suffix for suffix in ALL if suffix != ".ply"]


@pytest.fixture
def rated(generator: torch.Generator) -> Gaussians:
    sure = torch.rand(1, COUNT, generator=generator)
    sure[0, :2] = torch.tensor([0.0, 1.0])
    return replace(random_gaussians(COUNT, generator, degree=1), confidence=sure)


def read(path: Path) -> plyfile.PlyData:
    """The file as plyfile has it, which does not hold on to it."""
    return plyfile.PlyData.read(io.BytesIO(path.read_bytes()))


def rewrite(path: Path, confidence: np.ndarray, text: bool = False, order: str = "<") -> None:
    """The same file with another column `confidence`, written by plyfile."""
    old = read(path)["vertex"].data
    fields = [field for field in old.dtype.descr if field[0] != "confidence"]
    new = np.empty(len(old), [*fields, ("confidence", confidence.dtype.str)])
    for name, *_ in fields:
        new[name] = old[name]
    new["confidence"] = confidence
    element = plyfile.PlyElement.describe(new, "vertex")
    plyfile.PlyData([element], text=text, byte_order=order).write(str(path))


def test_ply_has_a_column_that_others_read(tmp_path: Path, rated: Gaussians) -> None:
    path = tmp_path / "a.ply"
    ply.save_ply(rated, path)
    vertex = read(path)["vertex"]
    assert vertex.data.dtype.names[-1] == "confidence"
    assert rated.confidence is not None
    np.testing.assert_array_equal(vertex["confidence"], rated.confidence[0].numpy())
    # The columns before are those of the file without.
    ply.save_ply(replace(rated, confidence=None), tmp_path / "plain.ply")
    plain = read(tmp_path / "plain.ply")["vertex"].data
    assert "confidence" not in plain.dtype.names and len(plain.dtype) + 1 == len(vertex.data.dtype)
    for name in plain.dtype.names:
        np.testing.assert_array_equal(vertex[name], plain[name])


def test_ply_keeps_it_and_says_nothing(
    tmp_path: Path, rated: Gaussians, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        save_gaussians(rated, tmp_path / "a.ply")
        back = load_gaussians(tmp_path / "a.ply")
    assert not caplog.records
    assert back.confidence is not None and rated.confidence is not None
    assert torch.equal(back.confidence, rated.confidence)
    save_gaussians(replace(rated, confidence=None), tmp_path / "b.ply")
    assert load_gaussians(tmp_path / "b.ply").confidence is None


def test_it_stays_with_its_gaussian_where_others_are_left_out(
    tmp_path: Path, rated: Gaussians
) -> None:
    """Over the border of two blocks, too."""
    count = BLOCK + 50
    many = rated.map(lambda tensor: tensor.repeat_interleave(count // COUNT + 1, dim=1)[:, :count])
    path = tmp_path / "a.ply"
    ply.save_ply(many, path)
    data = read(path)
    data["vertex"].data["x"][[3, count - 5]] = np.nan
    data.write(str(path))
    back = ply.load_ply(path)
    kept = [i for i in range(count) if i not in (3, count - 5)]
    assert back.confidence is not None and many.confidence is not None
    assert torch.equal(back.confidence, many.confidence[:, kept])
    assert torch.equal(back.means, many.means[:, kept])


@pytest.mark.parametrize(("kind", "text", "order"), [
    ("<f8", False, "<"), (">f4", False, ">"), ("<f4", True, "="),
])  # fmt: skip
def test_columns_of_floats_are_read(
    tmp_path: Path, rated: Gaussians, kind: str, text: bool, order: str
) -> None:
    path = tmp_path / "a.ply"
    ply.save_ply(replace(rated, confidence=None), path)
    column = np.linspace(0, 1, COUNT)
    rewrite(path, column.astype(kind), text, order)
    back = ply.load_ply(path).confidence
    assert back is not None and back.dtype == torch.float32
    np.testing.assert_allclose(back[0].numpy(), column, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e-3, 1.5])
def test_values_that_are_no_confidence_are_named_and_left_out(
    tmp_path: Path, rated: Gaussians, bad: float, caplog: pytest.LogCaptureFixture
) -> None:
    """One is enough: whoever wrote the column means something else, or has lost it."""
    path = tmp_path / "a.ply"
    ply.save_ply(rated, path)
    column = np.full(COUNT, 0.5, "<f4")
    column[[7, 9]] = bad
    rewrite(path, column)
    back = ply.load_ply(path)
    assert back.confidence is None and torch.equal(back.means, rated.means)
    assert len(caplog.records) == 1
    said = f"left out: its column confidence, because 2 of {COUNT} values are not in [0, 1]"
    assert said in caplog.text


def test_whole_numbers_are_another_programs_and_named(
    tmp_path: Path, rated: Gaussians, caplog: pytest.LogCaptureFixture
) -> None:
    """As ARKit's levels, 0 to 2."""
    path = tmp_path / "a.ply"
    ply.save_ply(rated, path)
    rewrite(path, np.ones(COUNT, "u1"))
    assert ply.load_ply(path).confidence is None
    assert "left out: the columns confidence" in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize("suffix", LOST)
def test_other_formats_say_once_that_they_lose_it(
    tmp_path: Path, rated: Gaussians, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    skip_without(suffix)
    path, plain = tmp_path / f"a{suffix}", tmp_path / f"plain{suffix}"
    said = "no place for the confidence of Gaussians; a .ply keeps it"
    save_gaussians(replace(rated, confidence=None), plain)
    assert said not in caplog.text
    save_gaussians(rated, path)
    assert caplog.text.count(said) == 1
    assert load_gaussians(path).confidence is None
    if suffix in (".splat", ".glb", ".compressed.ply"):
        assert path.read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("suffix", [".ply", ".splat"])
def test_what_is_no_confidence_is_not_written(
    tmp_path: Path, rated: Gaussians, suffix: str
) -> None:
    assert rated.confidence is not None
    for bad in (torch.nan, 1.25):
        wrong = rated.confidence.clone()
        wrong[0, 4] = bad
        with pytest.raises(UserError, match="1 of 300 Gaussians are not finite") as caught:
            save_gaussians(replace(rated, confidence=wrong), tmp_path / f"a{suffix}")
        assert "confidence in [0, 1]" in caught.value.wanted
    assert not list(tmp_path.iterdir())
