"""Scenes that are kept until the results are written: whatever happens to their file."""

import json
import math
from pathlib import Path

import pytest

from pmsplat.errors import UserError
from pmsplat.evaluate.cost import Cost
from pmsplat.evaluate.journal import Journal
from pmsplat.evaluate.protocol import Row
from pmsplat.evaluate.views import ViewRow

IDENTITY: dict[str, str | None] = {"weights": "12ab", "index": "34cd"}


def a_row(name: str) -> Row:
    views = (ViewRow("000003", {"psnr": 0.1 + 0.2}, "aa", "bb"), ViewRow("000005", {"psnr": 1e-17}))
    cost = Cost(10, 2480, {"encode": 1 / 3}, None, True)
    return Row(name, 2, {"psnr": 1 / 7, "ssim": 2**-60}, views, cost)


def write(folder: Path, *names: str, rank: int = 0, **changed: str | None) -> Journal:
    journal = Journal(folder / "results.json", IDENTITY | changed, rank)
    with journal.writer() as add:
        for name in names:
            add(a_row(name))
    return journal


def read(folder: Path, **changed: str | None) -> tuple[dict[str, Row], list[str]]:
    told: list[str] = []
    rows = Journal(folder / "results.json", IDENTITY | changed).read(told.append)
    return rows, told


def test_scenes_of_all_ranks_come_back_to_the_last_bit(tmp_path: Path) -> None:
    write(tmp_path, "a", "b")
    write(tmp_path, "c", rank=1)
    rows, told = read(tmp_path)
    assert rows == {name: a_row(name) for name in "abc"}
    assert len(told) == 1 and told[0].startswith("3 scenes")
    write(tmp_path, "d").remove()
    assert read(tmp_path) == ({}, []) and not list(tmp_path.iterdir())


def test_values_that_are_not_finite_come_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "results.json", IDENTITY)
    with journal.writer() as add:
        add(Row("a", 1, {"ssim": math.nan, "psnr": math.inf}))
    values = read(tmp_path)[0]["a"].values
    assert math.isnan(values["ssim"]) and values["psnr"] == math.inf


def test_a_file_cut_anywhere_keeps_its_whole_lines_and_goes_on(tmp_path: Path) -> None:
    path = write(tmp_path, "a", "b").path
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for length in range(0, len(content) + 1, 7):
        path.write_bytes(content[:length])
        whole = sum(end <= length for end in ends)
        rows, told = read(tmp_path)
        assert list(rows) == ["a", "b"][: max(0, whole - 1)]
        assert bool(told) == bool(rows)
        write(tmp_path, "c")
        assert set(read(tmp_path)[0]) == {*rows, "c"}


def test_what_was_measured_otherwise_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, "a")
    rows, (sentence,) = read(tmp_path, index="56ef")
    assert not rows and "differs in index: it is begun anew" in sentence
    rows, (sentence,) = read(tmp_path, index="56ef", weights="0")
    assert "weights and index" in sentence
    write(tmp_path, "b", index="56ef")
    assert set(read(tmp_path, index="56ef")[0]) == {"b"}


def test_what_is_not_known_may_have_changed(tmp_path: Path) -> None:
    write(tmp_path, "a", weights=None)
    rows, (sentence,) = read(tmp_path, weights=None)
    assert not rows and "weights (not known)" in sentence


def test_nothing_is_written_before_there_is_a_scene(tmp_path: Path) -> None:
    write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, "a").path
    path.write_bytes(path.read_bytes()[:-20] + b"\n" + json.dumps({}).encode() + b"\n")
    with pytest.raises(UserError, match=r"partial-0\.jsonl is damaged .*remove it"):
        read(tmp_path)
