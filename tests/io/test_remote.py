"""Splits in object stores: the same scenes as here, by as few bytes as they need."""

import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pmsplat.contracts import dataset_traits
from pmsplat.data import re10k
from pmsplat.errors import UserError
from pmsplat.io import chunks
from pmsplat.io._objects import RemoteFolder
from pmsplat.io._range_cache import RangeCache
from pmsplat.io.chunks import Unreachable, read_split
from tests.io.test_chunk_offsets import equal
from tests.io.test_chunks import ours
from tests.servers import Handler, Server, Store, running

pytest.importorskip("obstore")

SPLIT = "/bucket/re10k/train"
NOISE = np.random.default_rng(0)


def heavy(key: str, seed: int) -> chunks.ChunkScene:
    """A scene whose photographs are 20 kB each: they are not decoded here."""
    images = tuple(torch.from_numpy(NOISE.integers(0, 255, 20_000, np.uint8)) for _ in range(12))
    return replace(ours(key, 12, seed), images=images, depths=None, depth_scale=1.0)


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PMSPLAT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "train"
    chunks.append(folder, [heavy("a", 1), heavy("b", 2)])
    chunks.append(folder, [ours("c", 5, seed=3)])
    return folder


@pytest.fixture
def store(local: Path) -> Iterator[Store]:
    contents = {f"{SPLIT}/{path.name}": path.read_bytes() for path in local.iterdir()}
    with running(Store(contents)) as server:
        yield server


def whole(scene: chunks.ChunkScene) -> chunks.ChunkScene:
    """The same with its files here."""
    depths = None if scene.depths is None else tuple(scene.depths)
    return replace(scene, images=tuple(scene.images), depths=depths)


def address(store: Store) -> str:
    return f"{store.address}{SPLIT}"


def kept(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]


def test_scenes_are_those_of_the_folder(store: Store, local: Path) -> None:
    here = read_split(local)
    for place in (address(store), f"file://{local}"):
        there = read_split(place)
        assert there.keys == here.keys and there.place == place and not there.quarantine()
        for name, keys in here.keys.items():
            one, other = there.open(name).scenes, here.open(name).scenes
            assert all(equal(whole(one[key]), other[key]) for key in keys)


def test_data_elsewhere_need_no_test_split(store: Store) -> None:
    root = address(store).removesuffix("/train")
    assert not dataset_traits(re10k.build(re10k.Config(root=root))).has_test
    store.contents[SPLIT.replace("train", "test") + "/index.json"] = b"{}"
    assert dataset_traits(re10k.build(re10k.Config(root=root))).has_test


def test_a_scene_costs_the_photographs_that_are_used(store: Store, local: Path) -> None:
    for name in ("000000", "000001"):
        chunks.open_chunk(local / f"{name}.torch")
        store.contents[f"{SPLIT}/{name}.offsets"] = (local / f"{name}.offsets").read_bytes()
    scene = read_split(address(store)).open("000000.torch").scenes["b"]
    before = store.bytes
    assert before < len(store.contents[f"{SPLIT}/000000.torch"]) / 5
    scene.fetch([3, 7, 3])
    assert torch.equal(
        scene.images[7], read_split(local).open("000000.torch").scenes["b"].images[7]
    )
    assert store.bytes - before == 40_000
    # Another process, or the next epoch, has them already.
    scene = read_split(address(store)).open("000000.torch").scenes["b"]
    before = store.bytes
    scene.fetch([3, 7])
    assert store.bytes == before
    assert store.requests[f"{SPLIT}/000001.torch"] == 0


def test_without_offsets_a_chunk_is_downloaded_once(store: Store) -> None:
    read_split(address(store)).open("000000.torch")
    size = len(store.contents[f"{SPLIT}/000000.torch"])
    assert size < store.bytes < 1.2 * size
    before = store.bytes
    read_split(address(store)).open("000000.torch")
    assert store.bytes - before < 1000  # its index.json


def test_a_chunk_that_changed_is_looked_at_anew(store: Store, tmp_path: Path) -> None:
    split = read_split(address(store))
    scene = split.open("000000.torch").scenes["a"]
    other = tmp_path / "000000.torch"
    chunks.write_chunk(other, [heavy("a", 5), heavy("b", 6)])
    store.contents[f"{SPLIT}/000000.torch"] = other.read_bytes()
    with pytest.raises(Unreachable, match="has changed while it was read"):
        scene.fetch([1])
    again = split.open("000000.torch").scenes["a"]
    assert equal(whole(again), chunks.read_chunk(other).scenes["a"])


def test_stale_offsets_beside_a_chunk_are_not_used(store: Store, local: Path) -> None:
    chunks.open_chunk(local / "000001.torch")
    store.contents[f"{SPLIT}/000000.offsets"] = (local / "000001.offsets").read_bytes()
    assert list(read_split(address(store)).open("000000.torch").scenes) == ["a", "b"]


def test_what_a_quarantine_elsewhere_names(store: Store) -> None:
    content = {"chunks": {}, "scenes": {"a": "photos of a cat"}}
    store.contents[f"{SPLIT}/quarantine.json"] = json.dumps(content).encode()
    assert read_split(address(store)).quarantine().scenes == content["scenes"]


def test_a_data_set_of_the_hub(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    for path in list(store.contents):
        name = path.rpartition("/")[2]
        store.contents[f"/datasets/team/re10k/resolve/v2/sub/{name}"] = store.contents[path]
    monkeypatch.setattr(constants, "ENDPOINT", store.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    split = read_split("hf://datasets/team/re10k@v2/sub")
    assert list(split.open("000000.torch").scenes) == ["a", "b"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="switched off by HF_HUB_OFFLINE"):
        read_split("hf://datasets/team/re10k")


def test_what_cannot_be_read_is_one_sentence(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(place: str) -> str:
        with pytest.raises(UserError) as caught:
            read_split(place).open("000000.torch")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "there is no" in error(f"{store.address}/elsewhere")
    del store.contents[f"{SPLIT}/000000.torch"]
    assert "there is no chunk" in error(address(store))
    for status, words in ((403, "the store refuses"), (401, "AWS_ACCESS_KEY_ID")):
        store.status = status
        assert words in error(address(store))
    assert "of the kind ftp://" in error("ftp://somewhere/re10k")
    assert "names no data set" in error("hf://team/re10k")
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert 'pip install "pmsplat[cloud]"' in error(address(store))


def test_a_truncated_chunk_is_named_by_its_address(store: Store) -> None:
    place = f"{SPLIT}/000001.torch"
    store.contents[place] = store.contents[place][:-200]
    split = read_split(address(store))
    with pytest.raises(UserError) as caught:
        split.open("000001.torch")
    assert f"the chunk {store.address}{place} cannot be read" in str(caught.value)


def test_no_network_is_said_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pmsplat.io._objects.RETRIES", {"max_retries": 1})
    with running(Server(Handler)) as server:
        gone = server.address
    with pytest.raises(Unreachable, match="cannot be read"):
        read_split(f"{gone}/train")


def test_a_forked_process_is_told_to_be_spawned(store: Store) -> None:
    folder = RemoteFolder(address(store))
    assert folder.read("index.json")
    answer = multiprocessing.get_context("fork").Queue()

    def work() -> None:
        try:
            folder.read("index.json")
        except UserError as error:
            answer.put(str(error))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    assert "spawn" in answer.get(timeout=20)
    process.join()


def test_the_cache_stays_below_its_limit(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 100_000)
    for number in range(60):
        cache.put(f"chunk/{number}", bytes(5_000))
        cache.get("chunk/0")  # used again and again
        os.utime(tmp_path / "chunk" / str(number), (number, number))
        os.utime(tmp_path / "chunk" / "0")
        assert sum(path.stat().st_size for path in kept(tmp_path)) <= 105_000
    assert cache.get("chunk/0") and cache.get("chunk/59") and cache.get("chunk/5") is None
    cache.put("large", bytes(200_000))
    assert cache.get("large") is None
    RangeCache(tmp_path / "none", 0).put("a", b"1")
    assert not (tmp_path / "none").exists()


def test_a_limit_that_is_no_number_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMSPLAT_CACHE_GB", "much")
    with pytest.raises(UserError, match="PMSPLAT_CACHE_GB=much"):
        read_split(address(store)).open("000001.torch")
