"""Scenes that are opened one at a time are those of the whole chunk, whatever happened to it."""

import json
import multiprocessing
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pmsplat.errors import UserError
from pmsplat.io import chunks
from pmsplat.io.chunks import ChunkScene, open_chunk, read_chunk, write_chunk
from tests.io.test_chunks import ours


def equal(a: ChunkScene, b: ChunkScene) -> bool:
    for field in fields(ChunkScene):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, torch.Tensor):
            same = torch.equal(one, other)
        elif isinstance(one, tuple) and one and isinstance(one[0], torch.Tensor):
            same = len(one) == len(other) and all(map(torch.equal, one, other))
        else:
            same = one == other
        if not same:
            return False
    return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Five scenes: one without range and depth, one far from zero, and one with a fault."""
    plain = replace(ours("plain", 4), near=None, far=None, depths=None, depth_scale=1.0, url="u")
    far = ours("far", 6, seed=2)
    far = replace(far, c2w=far.c2w.clone(), origin=(4e6, 5e5, -3e6))
    scenes = [ours("a", 5), plain, far, ours("long", 60, seed=3), ours("odd", 5)]
    target = tmp_path / "000000.torch"
    write_chunk(target, scenes)
    entries = torch.load(target, weights_only=True)
    entries[4]["near"] = torch.tensor(1.0)
    torch.save(entries, target)
    return target


def test_scenes_are_those_of_the_whole_chunk(path: Path) -> None:
    whole = read_chunk(path)
    first, again = open_chunk(path), open_chunk(path)
    assert type(first.scenes) is dict and type(again.scenes) is not dict
    for chunk in (first, again):
        assert list(chunk.scenes) == list(whole.scenes) == ["a", "plain", "far", "long"]
        assert chunk.faults == whole.faults and set(chunk.faults) == {"odd"}
        assert "odd" not in chunk.scenes and "a" in chunk.scenes
        assert all(equal(chunk.scenes[key], whole.scenes[key]) for key in whole.scenes)
    assert again.scenes["far"].origin == whole.scenes["far"].origin != (0.0, 0.0, 0.0)
    assert torch.equal(
        torch.from_numpy(again.scenes["a"].image(3)), torch.from_numpy(whole.scenes["a"].image(3))
    )


def test_a_chunk_that_changed_is_read_anew(path: Path) -> None:
    open_chunk(path)
    write_chunk(path, [ours("b", 3)])
    assert list(open_chunk(path).scenes) == ["b"]
    size = path.stat().st_size
    write_chunk(path, [ours("c", 3)])  # as long as before, to the byte
    assert path.stat().st_size == size
    for _ in range(2):
        assert equal(open_chunk(path).scenes["c"], read_chunk(path).scenes["c"])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        open_chunk(path)
    path.unlink()
    with pytest.raises(UserError, match="there is no chunk"):
        open_chunk(path)
    assert not path.exists()


def test_damaged_offsets_are_renewed(path: Path) -> None:
    open_chunk(path)
    place = path.with_suffix(".offsets")
    whole = place.read_bytes()
    with safe_open(place, "pt") as file:
        header = json.loads(file.metadata()["pmsplat"])
        tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    beyond = tables | {"images": tables["images"] + path.stat().st_size}
    negative = tables | {"images": -tables["images"]}
    huge = tables | {"images": tables["images"] * 2**40}
    less = {name: table[:3] for name, table in tables.items()}
    backwards = header | {"scenes": {"a": {**header["scenes"]["a"], "frames": [5, 0]}}}
    outside = header | {"scenes": {"a": {**header["scenes"]["a"], "frames": [0, 10**9]}}}
    for values, about in [(beyond, header), (negative, header), (huge, header), (less, header)] + [
        (tables, other) for other in (backwards, outside, {"format": 2}, [])
    ]:
        save_file(values, place, {"pmsplat": json.dumps(about)})
        assert list(open_chunk(path).scenes) == ["a", "plain", "far", "long"]
        assert place.read_bytes() == whole
    for content in (b"", whole[:100], whole[:-50], os.urandom(500)):
        place.write_bytes(content)
        assert equal(open_chunk(path).scenes["a"], read_chunk(path).scenes["a"])
        assert place.read_bytes() == whole


def test_no_offsets_where_they_cannot_be_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pmsplat.io._chunk_offsets.save_safetensors", full)
    for _ in range(2):
        assert list(open_chunk(path).scenes) == ["a", "plain", "far", "long"]
    assert [file.name for file in path.parent.iterdir()] == ["000000.torch"]


def test_files_of_old_torch_have_none(tmp_path: Path, path: Path) -> None:
    entries = torch.load(path, weights_only=True)
    old = tmp_path / "000001.torch"
    torch.save(entries, old, _use_new_zipfile_serialization=False)
    for _ in range(2):
        assert equal(open_chunk(old).scenes["long"], read_chunk(path).scenes["long"])
    assert not old.with_suffix(".offsets").exists()


def test_several_processes_open_it_at_once(path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(_count, [path] * 6)
    assert found == [75] * 6
    assert sorted(file.name for file in path.parent.iterdir()) == ["000000.offsets", path.name]


def _count(path: Path) -> int:
    return sum(map(len, open_chunk(path).scenes.values()))


def test_a_chunk_of_faults_alone(tmp_path: Path) -> None:
    path = tmp_path / "000000.torch"
    torch.save([{"key": "a"}, {"key": "b", "images": []}], path)
    for _ in range(2):
        assert set(open_chunk(path).faults) == {"a", "b"} and not open_chunk(path).scenes


def test_split_and_index_pass_over_them(path: Path) -> None:
    open_chunk(path)
    assert chunks.write_index(path.parent).keys == {
        "000000.torch": ["a", "plain", "far", "long", "odd"]
    }


def test_what_is_not_used_is_said_with_offsets_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "000000.torch"
    write_chunk(path, [ours("a", 3)])
    entries = torch.load(path, weights_only=True)
    torch.save([entries[0] | {"caption": "a cat"}, {"images": []}], path)
    for _ in range(2):
        chunks._say_unused.cache_clear()
        caplog.clear()
        assert open_chunk(path).unused == ("caption",)
        assert "not used (caption)" in caplog.text and "left out 1 entry" in caplog.text
    assert path.with_suffix(".offsets").is_file()
