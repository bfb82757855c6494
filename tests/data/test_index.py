"""Evaluation indices: published files, files of ours, and files that are neither."""

import json
from pathlib import Path

import pytest
import torch

from pmsplat.data._index import make_index, read_index, write_index
from pmsplat.data._sampling import Frames
from pmsplat.errors import UserError

PUBLISHED = {
    "evaluation_index_re10k.json": (6474, 2, 3),
    "evaluation_index_acid.json": (1595, 2, 3),
    "dl3dv_bound_aware.json": (140, 2, 20),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_reads_the_published_ones(shared: Path, name: str) -> None:
    scenes, context, target = PUBLISHED[name]
    index = read_index(shared / "indices" / name)
    assert len(index) == scenes
    assert {len(frames.context) for frames in index.values()} == {context}
    assert {len(frames.target) for frames in index.values()} == {target}


def test_null_scenes_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "i.json"
    path.write_text(json.dumps({"a": None, "b": {"context": [0, 9], "target": [4]}}))
    assert read_index(path) == {"b": Frames((0, 9), (4,))}


def test_round_trip(tmp_path: Path) -> None:
    index = {'a "quoted" key': Frames((0, 9), (4, 5)), "b": Frames((3, 4, 8), (5,))}
    write_index(tmp_path / "i.json", index)
    assert read_index(tmp_path / "i.json") == index
    assert json.loads((tmp_path / "i.json").read_text())["b"] == {
        "context": [3, 4, 8],
        "target": [5],
    }


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"a": [1]}', "no list 'context'"),
        ('{"a": {"context": [1]}}', "no list 'target'"),
        ('{"a": {"context": [], "target": [1]}}', "no list 'context'"),
        ('{"a": {"context": [1, 2], "target": [1.5]}}', "no list 'target'"),
    ],
)
def test_malformed_files_are_told(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "i.json").write_text(content)
    with pytest.raises(UserError, match=told):
        read_index(tmp_path / "i.json")


@pytest.mark.parametrize(("views", "gap", "targets"), [(2, 6, 3), (4, 12, 5), (2, 2, 1)])
def test_made_indices_interpolate(
    generator: torch.Generator, views: int, gap: int, targets: int
) -> None:
    lengths = {f"s{i}": i for i in range(40)}
    index = make_index(lengths, gap, views, targets, generator)
    assert set(index) == {key for key, count in lengths.items() if count > gap}
    for key, frames in index.items():
        assert frames.context[-1] - frames.context[0] == gap and len(set(frames.context)) == views
        assert frames.context[0] >= 0 and frames.context[-1] < lengths[key]
        assert len(set(frames.target)) == targets and not set(frames.target) & set(frames.context)
        assert frames.context[0] < min(frames.target) and max(frames.target) < frames.context[-1]


def test_impossible_wishes_are_told(generator: torch.Generator) -> None:
    with pytest.raises(UserError, match="no scene has more than 8 frames, the longest 5"):
        make_index({"a": 5}, 8, 2, 3, generator)
    with pytest.raises(UserError, match="ask for a gap of at least 4"):
        make_index({"a": 50}, 3, 2, 3, generator)
