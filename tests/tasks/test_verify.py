"""`pmsplat data verify`: a damaged data set, each damage named once, and what is left out."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pmsplat.cli import main
from pmsplat.errors import UserError
from pmsplat.io import chunks, images
from pmsplat.io.chunks import Quarantine, read_quarantine
from pmsplat.tasks import verify as task
from pmsplat.tasks.verify import JOURNAL, Verified, verify
from tests.io.test_chunks import encoded, official


def scene(key: str, seed: int, count: int = 4) -> dict:
    """A scene without anything odd."""
    entry = official(key, count, seed)
    fx, fy = 0.9 * 12 / 16, 0.9  # square pixels at 12x16
    entry["cameras"][:, :4] = torch.tensor([fx, fy, 0.5, 0.5])
    return entry


def write(folder: Path, *contents: list[dict], index: bool = True) -> Path:
    """A split of chunks 000000.torch and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, entries in enumerate(contents):
        torch.save(entries, folder / f"{number:06d}.torch")
    if index:
        names = {e["key"]: f"{n:06d}.torch" for n, entries in enumerate(contents) for e in entries}
        (folder / "index.json").write_text(json.dumps(names))
    return folder


def check(folder: Path, **options) -> Verified:
    (verified,) = verify(folder, jobs=1, **options)
    return verified


def reasons(verified: Verified) -> dict[str, tuple[str, ...]]:
    return {row.reason: row.names for row in verified.rows}


def flip(path: Path, at: bytes, offset: int) -> None:
    """Turns one bit of a file, `offset` bytes after the only place that holds `at`."""
    content = bytearray(path.read_bytes())
    assert content.count(at) == 1
    content[content.index(at) + offset] ^= 1
    path.write_bytes(content)


def test_a_whole_split_has_nothing_wrong(tmp_path: Path) -> None:
    split = write(tmp_path, [scene("a", 1), scene("b", 2)], [scene("c", 3)])
    found = check(split)
    assert found.rows == () and found.is_whole and not found.notes
    assert (found.chunks, found.scenes, found.whole, found.photos) == (2, 3, 3, 12)
    assert found.sizes == {(12, 16): 3}
    assert not (split / "quarantine.json").exists()


SPOILED: dict[str, tuple[Callable[[dict], object], str]] = {
    "photo": (lambda s: s["images"].__setitem__(2, s["images"][2][:60]), "a photo that cannot be"),
    "size": (lambda s: s["images"].__setitem__(1, encoded(7, (6, 8))), "photos of different sizes"),
    "nan": (lambda s: s["cameras"].__setitem__((1, 9), torch.nan), "cameras that are not finite"),
    "mirror": (lambda s: s["cameras"][:, 6:9].mul_(-1), "camera rotations that are not"),
    "center": (lambda s: s["cameras"][:, 2:4].mul_(2), "a principal point far from the middle"),
    "half": (lambda s: s["cameras"][:, :4].mul_(0.5), "a principal point far from the middle"),
    "focal": (lambda s: s["cameras"][:, :2].mul_(100), "an implausible field of view"),
    "wide": (lambda s: s["cameras"][:, :2].mul_(0.01), "an implausible field of view"),
    "empty": (lambda s: s.__setitem__("images", []), "no list 'images'"),
    "lost": (lambda s: s["images"].pop(), "no 'cameras' with 18 numbers for each image"),
    "times": (lambda s: s.__setitem__("timestamps", torch.arange(3)), "no finite 'timestamps'"),
    "depth": (
        lambda s: s.update(depths=[depth_file((3, 4))] * 4),
        "depth of another size than its photo",
    ),
}


def depth_file(size: tuple[int, int]) -> torch.Tensor:
    data = images.encode_depth(np.ones(size, np.uint16))
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@pytest.mark.parametrize("case", SPOILED)
def test_a_scene_that_cannot_be_used_is_quarantined(tmp_path: Path, case: str) -> None:
    spoil, reason = SPOILED[case]
    bad = scene("bad", 1)
    spoil(bad)
    split = write(tmp_path, [scene("a", 2), bad, scene("b", 3)])
    found = check(split)
    (row,) = found.rows
    assert row.reason.startswith(reason) and row.names == ("bad",) and not row.used
    assert (found.scenes, found.whole, found.is_whole) == (3, 2, False)
    quarantine = read_quarantine(split)
    assert list(quarantine.scenes) == ["bad"] and not quarantine.chunks
    assert quarantine.scenes["bad"].startswith(reason)


ODD: dict[str, tuple[Callable[[dict], object], str]] = {
    "square": (lambda s: s["cameras"][:, 0].mul_(4 / 3), "pixels that are not square"),
    "frames": (
        lambda s: s.__setitem__("timestamps", torch.tensor([0, 33, 99, 132])),
        "missing frames, by jumps of the time stamps",
    ),
    "order": (
        lambda s: s.__setitem__("timestamps", torch.tensor([0, 66, 33, 99])),
        "time stamps that do not increase",
    ),
    "still": (
        lambda s: s.__setitem__("cameras", s["cameras"][:1].repeat(4, 1)),
        "cameras that stay in one place",
    ),
    "720p": (
        lambda s: s.__setitem__("images", [encoded(90 + i, (24, 32)) for i in range(4)]),
        "photos of 24x32, where most scenes have 12x16",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_scene_is_named_and_used(tmp_path: Path, case: str) -> None:
    spoil, reason = ODD[case]
    odd = scene("odd", 1)
    spoil(odd)
    split = write(tmp_path, [scene("a", 2), odd, scene("b", 3)])
    found = check(split)
    (row,) = found.rows
    assert row.reason.startswith(reason) and row.names == ("odd",) and row.used
    assert found.is_whole and found.whole == 3 and not read_quarantine(split)


def test_poses_of_a_failed_reconstruction_are_named(tmp_path: Path) -> None:
    far = scene("far", 1)
    far["cameras"][2, [9, 13, 17]] = torch.tensor([2e3, 0.0, 0.0])
    found = check(write(tmp_path, [far, scene("a", 2)]))
    assert reasons(found) == {"camera positions beyond 1000": ("far",)} and found.is_whole


def test_one_flipped_bit_is_found_and_costs_one_scene(tmp_path: Path) -> None:
    """A decoder would not have noticed: the photos are JPEG files of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = bytearray(images.encode_image(pixels, "jpeg"))
    bad = scene("bad", 1)
    bad["images"] = [torch.frombuffer(data, dtype=torch.uint8)] * 4
    split = write(tmp_path, [scene("a", 2), bad])
    middle = bytes(data[len(data) // 2 :][:40])
    flip(split / "000000.torch", middle, 20)
    decoded = chunks.read_chunk(split / "000000.torch").scenes["bad"].image(0)
    assert decoded.shape == pixels.shape
    found = check(split)
    assert reasons(found) == {"bytes that have changed since they were written": ("bad",)}
    assert found.whole == 1


def test_flipped_cameras_belong_to_their_scene_and_pickles_to_the_chunk(tmp_path: Path) -> None:
    split = write(tmp_path, [scene("a", 1), scene("b", 2)], [scene("c", 3)])
    row = chunks._load(split / "000000.torch")[1]["cameras"][2, 6:].numpy().tobytes()
    flip(split / "000000.torch", row, 5)
    flip(split / "000001.torch", b"https://example.org", 3)
    found = check(split)
    assert reasons(found) == {
        "a chunk with bytes that have changed": ("000001.torch",),
        "bytes that have changed since they were written": ("b",),
    }
    assert (found.scenes, found.whole) == (3, 1)


@pytest.mark.parametrize("zipped", [True, False])
def test_chunks_without_checksums_are_read(tmp_path: Path, zipped: bool) -> None:
    """Of torch before 1.6, and of a torch that was told to leave them out."""
    (tmp_path / "index.json").write_text('{"a": "000000.torch"}')
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(
            [scene("a", 1)], tmp_path / "000000.torch", _use_new_zipfile_serialization=zipped
        )
    finally:
        torch.serialization.set_crc32_options(True)
    assert check(tmp_path).rows == ()


def test_a_truncated_and_a_missing_chunk_are_quarantined(tmp_path: Path) -> None:
    split = write(tmp_path, [scene("a", 1), scene("b", 2)], [scene("c", 3)], [scene("d", 4)])
    whole = (split / "000000.torch").read_bytes()
    (split / "000000.torch").write_bytes(whole[: len(whole) // 2])
    (split / "000002.torch").unlink()
    found = check(split)
    cut, gone = found.rows
    assert (cut.reason, cut.names, cut.scenes) == (
        "a chunk that cannot be read",
        ("000000.torch",),
        2,
    )
    assert (gone.names, gone.scenes) == (("000002.torch",), 1)
    assert (found.scenes, found.whole) == (4, 1)
    assert list(read_quarantine(split).chunks) == ["000000.torch", "000002.torch"]


def test_keys_are_compared(tmp_path: Path) -> None:
    split = write(
        tmp_path,
        [scene("a", 1), scene("twin", 2), scene("twin", 3)],
        [scene("b", 4), scene("a", 5)],
        [scene("c", 1), scene("d", 6)],
    )
    index = json.loads((split / "index.json").read_text())
    assert index["a"] == "000001.torch"
    del index["b"]
    index["gone"] = "000000.torch"
    index["d"] = "000001.torch"
    (split / "index.json").write_text(json.dumps(index))
    found = check(split)
    assert reasons(found) == {
        "another scene of the same key in its chunk": ("twin",),
        "a scene that index.json does not name": ("b",),
        "a scene that its chunk lacks, though index.json names it": ("d", "gone"),
        "its key occurs again in another chunk, and that scene is not used": ("a",),
    }
    assert (found.scenes, found.whole) == (6, 2)
    assert list(read_quarantine(split).scenes) == ["twin", "d", "gone"]
    assert "it is in 000002.torch" in read_quarantine(split).scenes["d"]


def test_photographs_are_compared(tmp_path: Path) -> None:
    """Of one scene under three keys, one without two of its frames."""
    first, again, cut = scene("first", 1, 12), scene("again", 1, 12), scene("cut", 1, 10)
    other = scene("other", 2, 12)
    other["images"][3] = first["images"][3]  # a single common photo is no twin
    split = write(tmp_path, [first, other], [cut, again])
    found = check(split)
    assert reasons(found) == {"the same photographs as another scene": ("cut", "again")}
    assert "(first)" in read_quarantine(split).scenes["again"]


def test_splits_of_a_dataset_are_compared(tmp_path: Path) -> None:
    write(tmp_path / "test", [scene("a", 1), scene("b", 2)])
    write(tmp_path / "train", [scene("a", 3), scene("copy", 2), scene("c", 4)])
    test, train = verify(tmp_path, jobs=1)
    assert (test.folder.name, train.folder.name) == ("test", "train")
    assert reasons(train) == {
        "the key of another scene of test": ("a",),
        "the same photographs as a scene of test": ("copy",),
    }
    assert train.is_whole and test.rows == ()


def test_prefixes_of_keys_are_named(tmp_path: Path) -> None:
    hashes = [f"{number:064x}" for number in range(1, 4)]
    keys = [f"dl3dv_{hashes[0]}", f"dl3dv_{hashes[1]}", hashes[2]]
    split = write(tmp_path / "mixed", [scene(key, i) for i, key in enumerate(keys)])
    assert reasons(check(split)) == {"a key without prefix, unlike most": (hashes[2],)}
    split = write(tmp_path / "all", [scene(key, i) for i, key in enumerate(keys[:2])])
    assert "All keys begin with 'dl3dv_'" in check(split).notes[0]
    bare = dict.fromkeys(hashes[:2], "000000.torch")
    (split / "index.json").write_text(json.dumps(bare))
    found = check(split)
    assert found.whole == 0 and found.scenes == 4
    assert f"000000.torch has {keys[0]!r}" in read_quarantine(split).scenes[hashes[0]]


def test_entries_without_a_key_and_a_missing_index_are_notes(tmp_path: Path) -> None:
    entry = scene("a", 1)
    torch.save([entry, {"images": []}], tmp_path / "000000.torch")
    found = check(tmp_path)
    assert not found.is_whole and found.whole == 1
    assert any("1 entry without a key" in note for note in found.notes)
    assert any("There is no" in note and "index.json" in note for note in found.notes)
    (tmp_path / "index.json").write_text("[1")
    assert any("is not JSON" in note for note in check(tmp_path).notes)


def test_a_second_run_looks_only_at_what_changed(tmp_path: Path, monkeypatch) -> None:
    split = write(tmp_path, [scene("a", 1)], [scene("b", 2)], [scene("c", 3)])
    looked: list[str] = []

    def examine(file: Path) -> object:
        looked.append(file.name)
        if len(looked) == 2:
            raise KeyboardInterrupt
        return original(file)

    original = task._examine
    monkeypatch.setattr(task, "_examine", examine)
    with pytest.raises(KeyboardInterrupt):
        check(split)
    with (split / JOURNAL).open("a") as stream:  # as a kill in the middle of a line leaves it
        stream.write('{"chunk": "000001.torch", "byt')
    looked[:] = ["", ""]
    found = check(split)
    assert looked[2:] == ["000001.torch", "000002.torch"] and found.found == 1
    os.utime(split / "000001.torch", ns=(1, 1))
    assert check(split).found == 2 and looked[4:] == ["000001.torch"]
    assert check(split, again=True).found == 0 and len(looked) == 8
    assert check(split).found == 3 and len(looked) == 8


def test_processes_find_the_same(tmp_path: Path) -> None:
    bad = scene("bad", 9)
    bad["images"][1] = bad["images"][1][:50]
    split = write(tmp_path, *([scene(f"s{i}", i)] for i in range(4)), [bad])
    alone = check(split)
    (together,) = verify(split, jobs=2, again=True)
    assert together == alone
    assert not multiprocessing.active_children()


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    split = write(tmp_path / "split", *([scene(f"s{i}", i, 40)] for i in range(12)))
    code = "from pmsplat.cli import main; main(['data', 'verify', {!r}, '--jobs', '1'])"
    process = subprocess.Popen([sys.executable, "-c", code.format(str(split))])
    journal = split / JOURNAL
    deadline = time.monotonic() + 60
    while not journal.is_file() or journal.read_text().count("\n") < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = journal.read_text().count("\n")
    assert check(split).found == done >= 2
    assert not list(split.glob(".*"))


def test_the_command_prints_each_trouble_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, odd = scene("bad", 1), scene("odd", 2)
    bad["cameras"][0, 8] = torch.nan
    odd["images"] = [encoded(50 + i, (24, 32)) for i in range(4)]
    write(tmp_path / "test", [scene("a", 3), bad], [odd, scene("b", 4)])
    assert main(["data", "verify", str(tmp_path), "--jobs", "1"]) == 2
    shown = capsys.readouterr()
    assert shown.out.count("cameras that are not finite") == 1
    assert shown.out.count("photos of 24x32") == 1
    assert "2 chunks, 4 scenes: 3 can be used" in shown.out and "1 is left out" in shown.out
    assert "1 of 4 scenes cannot be used; wanted" in shown.err
    write(tmp_path / "test", [scene("a", 3)], [scene("b", 4)])
    assert main(["data", "verify", str(tmp_path / "test"), "--jobs", "1"]) == 0
    assert not read_quarantine(tmp_path / "test")


def test_what_is_no_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no chunk; wanted NNNNNN"):
        verify(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        verify(tmp_path / "gone")
    with pytest.raises(UserError, match="`jobs=0`; wanted 1 or more"):
        verify(tmp_path, jobs=0)


def test_a_quarantine_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_quarantine(tmp_path) == Quarantine()
    written = Quarantine({"000003.torch": "truncated"}, {"a": "NaN"})
    chunks.write_quarantine(tmp_path, written)
    assert read_quarantine(tmp_path) == written
    assert json.loads((tmp_path / "quarantine.json").read_text()) == {
        "chunks": {"000003.torch": "truncated"},
        "scenes": {"a": "NaN"},
    }
    (tmp_path / "quarantine.json").write_text("[]")
    with pytest.raises(UserError, match="is no quarantine"):
        read_quarantine(tmp_path)
    chunks.write_quarantine(tmp_path, replace(written, chunks={}, scenes={}))
    assert not (tmp_path / "quarantine.json").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_checked(tmp_path: Path) -> None:
    split, said = write(tmp_path, [scene("a", 1)]), []
    split.chmod(0o500)
    try:
        assert check(split, tell=said.append).is_whole
    finally:
        split.chmod(0o700)
    assert "nothing is kept there" in said[0] and not (split / JOURNAL).exists()
