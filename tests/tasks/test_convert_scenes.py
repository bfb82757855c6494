"""Many scenes to chunks: layouts of data sets, known traps, interruption, shards."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch

from pmsplat.cli import main
from pmsplat.errors import UserError
from pmsplat.io import chunks, images, video
from pmsplat.scene import open_scene
from pmsplat.scene.folders import find_scenes, is_scene
from pmsplat.tasks import convert_scenes as task
from pmsplat.tasks.convert_scenes import ConvertOptions, convert_scenes
from pmsplat.tasks.verify import verify
from tests.io.cameras.test_survey import transforms
from tests.io.test_chunks import ours
from tests.io.test_video import frame

ALONE = ConvertOptions(jobs=1)


def photo(path: Path, size: tuple[int, int] = (8, 12), seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    images.write_image(path, pixels)


def dl3dv(root: Path, name: str, frames: int = 3, size: tuple[int, int] = (8, 12)) -> Path:
    """A scene as DL3DV is downloaded: the cameras of photos four times as large."""
    place = root / name / "nerfstudio"
    height, width = 4 * size[0], 4 * size[1]
    entries = []
    for i in range(frames):
        photo(
            place / "images_4" / f"frame_{i + 1:05d}.png", size, seed=crc32(f"{name} {i}".encode())
        )
        matrix = np.eye(4)
        matrix[0, 3] = 0.1 * i
        entries.append(
            {"file_path": f"images/frame_{i + 1:05d}.png", "transform_matrix": matrix.tolist()}
        )
    content = {
        "w": width,
        "h": height,
        "fl_x": 0.9 * width,
        "fl_y": 0.9 * width,
        "cx": width / 2,
        "cy": height / 2,
        "frames": entries,
    }
    (place / "transforms.json").write_text(json.dumps(content))
    return place


def split_of(output: Path) -> dict[str, chunks.ChunkScene]:
    split = chunks.read_split(output)
    scenes = {key: split.chunk(name).scenes[key] for key, name in split.chunk_of.items()}
    return dict(sorted(scenes.items()))


def record(output: Path, name: str = "conversion") -> dict:
    return json.loads((output / f"{name}.json").read_text())


def same(one: Path, other: Path) -> bool:
    """Whether two splits have the same scenes, whatever their chunks."""
    first, second = split_of(one), split_of(other)
    return list(first) == list(second) and all(
        torch.equal(a.c2w, b.c2w)
        and torch.equal(a.K, b.K)
        and all(map(torch.equal, a.images, b.images))
        for a, b in zip(first.values(), second.values(), strict=True)
    )


def test_dl3dv_with_its_traps(tmp_path: Path) -> None:
    """Intrinsics of the size in the file, another resolution, missing frames, a scene without."""
    raw = tmp_path / "raw"
    dl3dv(raw / "1K", "a" * 64)
    dl3dv(raw / "1K", "b" * 64, size=(16, 24))
    (dl3dv(raw / "2K", "c" * 64) / "images_4" / "frame_00002.png").unlink()
    (dl3dv(raw / "2K", "d" * 64) / "transforms.json").unlink()
    (dl3dv(raw / "2K", "e" * 64) / "transforms.json").write_text("{")
    (raw / "2K" / ("f" * 64)).mkdir()
    output = tmp_path / "train"
    summary = convert_scenes(raw, output, ALONE)
    scenes = split_of(output)
    assert [key[0] for key in scenes] == ["a", "b", "c"]
    for scene in scenes.values():
        assert scene.K[0, 0, 0].item() == pytest.approx(0.9)
        assert scene.K[0, 1, 1].item() == pytest.approx(0.9 * 12 / 8)
        assert scene.K[0, :2, 2].tolist() == pytest.approx([0.5, 0.5])
    assert (summary.converted, summary.photos, summary.left_out) == (3, 8, 1)
    assert summary.sizes == {(8, 12): 2, (16, 24): 1}
    assert {key[0]: reason for key, reason in summary.dropped.items()} == {
        "d": "no cameras were found beside its photographs, if any",
        "e": summary.dropped["e" * 64],
        "f": "no cameras were found beside its photographs, if any",
    }
    assert "transforms.json" in summary.dropped["e" * 64]
    written = record(output)
    assert written["dropped"] == summary.dropped
    assert written["counts"] == {"converted": 3, "dropped": 3}
    assert list(written["scenes"]["c" * 64]["left_out"]) == ["images/frame_00002.png"]
    convert_scenes(raw, tmp_path / "sized", ConvertOptions(size=(6, 8), jobs=1))
    assert open_scene(f"{tmp_path / 'sized'}:{'b' * 64}").size == (6, 8)


def test_wrong_intrinsics_and_mixed_photos_are_dropped(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    dl3dv(raw, "good")
    path = dl3dv(raw, "halved") / "transforms.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"w": 24, "h": 16}))
    place = dl3dv(raw, "mixed")
    photo(place / "images_4" / "frame_00001.png", (16, 24))
    summary = convert_scenes(raw, tmp_path / "train", ALONE)
    assert summary.converted == 1
    assert "a principal point far from the middle" in summary.dropped["halved"]
    assert "photos of different sizes (8x12 and 16x24)" in summary.dropped["mixed"]
    (found,) = verify(tmp_path / "train", jobs=1)
    assert found.is_whole and found.whole == 1


def re10k_text(path: Path, times: list[int], address: str = "https://youtu.be/x") -> Path:
    rows = [
        f"{time} 0.5 0.9 0.5 0.5 0 0 1 0 0 {0.1 * i} 0 1 0 0 0 0 1 0"
        for i, time in enumerate(times)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([address, *rows]) + "\n")
    return path


def test_realestate10k_with_frames_and_videos(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    period = 40_000  # microseconds, of 25 frames a second
    chosen = [0, 3, 7]
    re10k_text(raw / "first.txt", [33_366, 66_733])
    for time_ in (33_366, 66_733):
        photo(raw / "frames" / "first" / f"{time_}.jpg")
    address = "https://www.youtube.com/watch?v=Abc_12-3"
    late = [period * i for i in [*chosen, 99]]
    re10k_text(raw / "second.txt", late, address)
    re10k_text(raw / "third.txt", late)
    (raw / "videos").mkdir()
    pictures = [frame(i) for i in range(10)]
    video.write_video(raw / "videos" / "Abc_12-3.mp4", pictures, fps=25)
    summary = convert_scenes(raw, tmp_path / "train", ALONE)
    scenes = split_of(tmp_path / "train")
    assert list(scenes) == ["first", "second"] and list(summary.dropped) == ["third"]
    assert len(scenes["second"]) == 3 and summary.left_out == 1
    for position, number in enumerate(chosen):
        shown = scenes["second"].image(position).astype(float)
        nearest = min(range(10), key=lambda i: float(np.abs(pictures[i] - shown).mean()))
        assert nearest == number
    assert torch.allclose(scenes["second"].c2w[:, 0, 3], torch.tensor([0.0, -0.1, -0.2]))


def test_the_scenes_of_a_folder(tmp_path: Path) -> None:
    """Of several kinds, at several depths, two with one name; bare photographs, a video."""
    transforms(tmp_path / "one" / "room")
    transforms(tmp_path / "two" / "room")
    transforms(tmp_path / "hall")
    photo(tmp_path / "bare" / "images_4" / "0.png")
    photo(tmp_path / "loose" / "0.png")
    (tmp_path / "walk.mp4").touch()
    (tmp_path / "one" / ".cache").mkdir()
    found = {scene.key: scene.posed for scene in find_scenes(tmp_path)}
    assert found == {
        "one/room": True,
        "two/room": True,
        "hall": True,
        "bare": False,
        "loose": False,
        "walk": False,
    }
    assert not is_scene(tmp_path) and is_scene(tmp_path / "hall") and is_scene(tmp_path / "bare")
    photo(tmp_path / "preview.png")
    assert not is_scene(tmp_path)


def test_a_split_is_made_smaller(tmp_path: Path) -> None:
    chunks.append(tmp_path / "720p", [ours("a"), ours("b", seed=1)])
    chunks.append(tmp_path / "720p", [ours("c", seed=2)])
    half = tmp_path / "360p"
    summary = convert_scenes(tmp_path / "720p", half, ConvertOptions(size=(6, 8), jobs=1))
    assert summary.fitted == (
        "Photos (3 scenes of 12x16) are scaled and cut to 6x8 (height x width).",
    )
    before, after = split_of(tmp_path / "720p"), split_of(half)
    assert list(after) == ["a", "b", "c"]
    assert after["c"].image(0).shape == (6, 8, 3)
    assert torch.allclose(before["c"].K, after["c"].K, atol=1e-5)
    near, nearest = after["c"].near, before["c"].near
    assert near is not None and nearest is not None and torch.equal(near, nearest)


def test_chunks_are_of_a_size_and_added_to_those_that_are_there(
    tmp_path: Path, monkeypatch
) -> None:
    raw, output = tmp_path / "raw", tmp_path / "train"
    for name in "abcde":
        dl3dv(raw, name)
    chunks.append(output, [ours("mine"), ours("b", seed=1)])
    bytes_ = sum(map(len, split_of_one(raw / "a", tmp_path)))
    monkeypatch.setattr(task, "CHUNK_BYTES", int(2.5 * bytes_))
    summary = convert_scenes(raw, output, ALONE)
    assert chunks.read_split(output).keys == {
        "000000.torch": ["mine", "b"],
        "000001.torch": ["a", "c"],
        "000002.torch": ["d", "e"],
    }
    assert summary.dropped == {"b": "index.json has a scene of this key"}


def split_of_one(path: Path, tmp_path: Path) -> tuple[torch.Tensor, ...]:
    assert main(["data", "convert", str(path), str(tmp_path / "single")]) == 0
    (scene,) = split_of(tmp_path / "single").values()
    return tuple(scene.images)


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch) -> None:
    raw, output, straight = tmp_path / "raw", tmp_path / "train", tmp_path / "straight"
    for name in "abcdef":
        dl3dv(raw, name)
    (raw / "c" / "nerfstudio" / "transforms.json").unlink()
    monkeypatch.setattr(task, "CHUNK_BYTES", 1)
    convert_scenes(raw, straight, ALONE)
    calls: list[str] = []
    original = task._convert

    def convert(found, options):
        calls.append(found.key)
        if found.key == "e" and calls.count("e") == 1:
            raise KeyboardInterrupt
        return original(found, options)

    monkeypatch.setattr(task, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        convert_scenes(raw, output, ALONE)
    assert len(list(output.glob("*.torch"))) == 2 and not (output / "index.json").exists()
    (output / ".000002-x1.tmp").write_text("as a kill leaves it")
    (output / ".conversion-x1.tmp").write_text("as a kill leaves it")
    said: list[str] = []
    summary = convert_scenes(raw, output, ALONE, tell=said.append)
    assert calls == [*"abcde", *"cdef"] and (summary.converted, summary.found) == (3, 2)
    assert "2 of 6 scenes are in" in said[0]
    for file in straight.glob("*.torch"):
        assert file.read_bytes() == (output / file.name).read_bytes()
    assert record(output) == record(straight) and not list(output.glob("*.tmp"))
    assert not list(output.glob(".*.tmp"))
    # The dropped scene is tried again, and one that is new is added.
    shutil.copy(raw / "a/nerfstudio/transforms.json", raw / "c/nerfstudio/transforms.json")
    dl3dv(raw, "g")
    again = convert_scenes(raw, output, ALONE)
    assert (again.converted, again.found, again.dropped) == (2, 5, {})
    assert list(split_of(output)) == list("abcdefg")


def test_a_conversion_that_has_not_ended_is_no_folder_of_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, output = tmp_path / "raw", tmp_path / "train"
    dl3dv(raw, "a")

    def interrupt(found: object, options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(task, "_convert", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_scenes(raw, output, ALONE)
    assert not list(output.glob("*.torch"))
    for read in (open_scene, chunks.read_split):
        with pytest.raises(UserError, match=r"conversion has not ended; .*; run the same .* again"):
            read(output)


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch) -> None:
    raw, output = tmp_path / "raw", tmp_path / "train"
    for number in range(16):
        dl3dv(raw, f"s{number:02d}", frames=12, size=(64, 96))
    code = (
        "from pmsplat.tasks import convert_scenes as task\n"
        "task.CHUNK_BYTES = 1\n"
        f"task.convert_scenes({str(raw)!r}, {str(output)!r}, task.ConvertOptions(jobs=1))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while len(list(output.glob("*.torch"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    monkeypatch.setattr(task, "CHUNK_BYTES", 1)
    summary = convert_scenes(raw, output, ALONE)
    assert summary.found >= 2 and summary.found + summary.converted == 16
    assert len(list(output.glob("*.torch"))) == 16 and not list(output.glob(".*.tmp"))
    convert_scenes(raw, tmp_path / "straight", ALONE)
    assert same(output, tmp_path / "straight")


def test_shards_and_processes_give_the_same_scenes(tmp_path: Path) -> None:
    raw, output, alone = tmp_path / "raw", tmp_path / "shared", tmp_path / "alone"
    for number in range(9):
        dl3dv(raw, f"s{number}", frames=2)
    (raw / "s4" / "nerfstudio" / "transforms.json").unlink()
    convert_scenes(raw, alone, ConvertOptions(jobs=2))
    parts = [
        convert_scenes(raw, output, ConvertOptions(jobs=1, shard=(part, 3))) for part in (2, 1, 3)
    ]
    assert sum(part.converted for part in parts) == 8
    assert sum(len(part.dropped) for part in parts) == 1
    assert same(output, alone)
    names = [f"conversion-{part:02d}-of-03" for part in (1, 2, 3)]
    assert sum(record(output, name)["counts"]["converted"] for name in names) == 8
    with pytest.raises(UserError, match=r"`shard=1/2` into .* which holds other chunks"):
        convert_scenes(raw, output, ConvertOptions(jobs=1, shard=(1, 2)))
    with pytest.raises(UserError, match=r"`shard=1/2` into .* which holds other chunks"):
        convert_scenes(raw, alone, ConvertOptions(jobs=1, shard=(1, 2)))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, output = tmp_path / "raw", tmp_path / "train"
    dl3dv(raw, "a")
    dl3dv(raw, "b", size=(16, 24))
    (dl3dv(raw, "c") / "transforms.json").unlink()
    arguments = ["data", "convert", str(raw), str(output), "--jobs", "1"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "2 scenes converted, 0 there before, 1 dropped" in said
    assert "1 dropped, c first: no cameras" in said and "conversion.json" in said
    assert "different sizes: 8x12 (1 scene), 16x24 (1 scene)" in said
    fitted = [*arguments[:3], str(tmp_path / "fitted"), *arguments[4:], "--size", "12x12"]
    for _ in range(2):  # also where all scenes are there already
        assert main(fitted) == 0
        said = capsys.readouterr().out
        assert "(1 scene of 8x12, 1 scene of 16x24) are scaled and cut to 12x12" in said
        assert "some are enlarged" in said and "33% is cut off of photos of 2 scenes" in said
    assert main([*arguments, "--size", "6x8"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "photos of their own size; wanted the same options, now size=6x8" in told
    assert told.endswith("convert into another folder, or without --size")
    assert main([*fitted, "--every", "2", "--size", "6x8"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "size=12x12, every=1; wanted the same options, now size=6x8, every=2" in told
    assert told.endswith("or with --size 12x12 and with --every 1")
    assert main([*arguments, "--scene", "x"]) == 2
    assert "--scene for" in capsys.readouterr().err
    assert main(["data", "convert", str(raw / "a"), str(output), "--shard", "1/2"]) == 2
    assert "--shard for" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--shard", "3/2"])
    assert "'3/2'; wanted I/N" in capsys.readouterr().err


def test_no_scene_that_can_be_used_is_an_error(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for name in "ab":
        (dl3dv(raw, name) / "transforms.json").unlink()
    with pytest.raises(UserError, match=r"none of 2 scenes can be used: 2 .* no cameras"):
        convert_scenes(raw, tmp_path / "train", ALONE)
    assert list(record(tmp_path / "train")["dropped"]) == ["a", "b"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no scene"):
        convert_scenes(empty, tmp_path / "train", ALONE)


def test_a_shard_of_what_is_no_folder_is_refused(
    room: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scene of a split, and nothing at all."""
    (key,) = chunks.read_split(room).chunk_of
    for given in (f"{room}:{key}", str(tmp_path / "nothing")):
        words = ["data", "convert", given, str(tmp_path / "out"), "--shard", "1/2"]
        assert main(words) == 2
        assert f"--shard for {given}, which is no folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
