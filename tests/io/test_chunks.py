"""The chunk format: what others wrote is read, what we write others read, damage is fault."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.io import chunks, images
from pmsplat.io._chunk_scene import make_entry
from pmsplat.io.chunks import ChunkScene
from pmsplat.scene import PhotoOptions, open_scene
from tests.scenes import random_cameras


def encoded(seed: int, size: tuple[int, int] = (12, 16)) -> torch.Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return torch.frombuffer(bytearray(images.encode_image(pixels)), dtype=torch.uint8)


def official(key: str, count: int = 4, seed: int = 0) -> dict:
    """A scene as the published conversion scripts store it."""
    cameras = random_cameras(count, torch.Generator().manual_seed(seed), dtype=torch.float64)
    K = cameras.K[0]
    w2c = torch.linalg.inv(cameras.c2w[0])[:, :3]
    focal = torch.stack([K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2]], dim=1)
    rows = torch.cat([focal, torch.zeros(count, 2), w2c.reshape(count, 12)], dim=1).float()
    return {
        "url": "https://example.org",
        "timestamps": torch.arange(count) * 33,
        "cameras": rows,
        "images": [encoded(seed * 100 + i) for i in range(count)],
        "key": key,
    }


def ours(key: str, count: int = 4, seed: int = 0) -> ChunkScene:
    cameras = random_cameras(count, torch.Generator().manual_seed(seed))
    depth = np.random.default_rng(seed).integers(1, 5000, (count, 12, 16)).astype(np.uint16)
    return ChunkScene(
        key=key,
        c2w=cameras.c2w[0],
        K=cameras.K[0],
        images=tuple(encoded(seed * 100 + i) for i in range(count)),
        timestamps=torch.arange(count),
        near=cameras.near[0],
        far=cameras.far[0],
        depths=tuple(
            torch.frombuffer(bytearray(images.encode_depth(d)), dtype=torch.uint8) for d in depth
        ),
        depth_scale=0.001,
    )


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_reads_what_others_wrote(tmp_path: Path, zipped: bool) -> None:
    scenes = [official("a", 4, 1), official("b", 3, 2)]
    torch.save(scenes, tmp_path / "000000.torch", _use_new_zipfile_serialization=zipped)
    chunk = chunks.read_chunk(tmp_path / "000000.torch")
    assert list(chunk.scenes) == ["a", "b"] and not chunk.faults
    want = random_cameras(4, torch.Generator().manual_seed(1), dtype=torch.float64)
    scene = chunk.scenes["a"]
    torch.testing.assert_close(scene.c2w, want.c2w[0].float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(scene.K, want.K[0].float(), rtol=0, atol=1e-6)
    assert scene.near is None and scene.depth(0) is None
    pixels = np.random.default_rng(101).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    assert (scene.image(1) == pixels).all()


def test_others_read_what_we_write(tmp_path: Path) -> None:
    scene = ours("mine", 5, 3)
    chunks.write_chunk(tmp_path / "000000.torch", [scene])
    (entry,) = torch.load(tmp_path / "000000.torch", weights_only=True)
    assert {"url", "timestamps", "cameras", "images", "key"} <= set(entry)
    rows = entry["cameras"]
    assert rows.dtype == torch.float32 and rows.shape == (5, 18) and not rows[:, 4:6].any()
    w2c = torch.eye(4).repeat(5, 1, 1)
    w2c[:, :3] = rows[:, 6:].reshape(5, 3, 4)
    torch.testing.assert_close(w2c @ scene.c2w, torch.eye(4).expand(5, 4, 4), rtol=0, atol=1e-6)
    assert all(image.dtype == torch.uint8 and image.ndim == 1 for image in entry["images"])


def test_round_trip_with_depth_and_range(tmp_path: Path) -> None:
    scene = ours("mine", 5, 3)
    chunks.write_chunk(tmp_path / "c.torch", [scene])
    back = chunks.read_chunk(tmp_path / "c.torch").scenes["mine"]
    torch.testing.assert_close(back.c2w, scene.c2w, rtol=0, atol=1e-6)
    assert back.near is not None and scene.near is not None and torch.equal(back.near, scene.near)
    want = np.random.default_rng(3).integers(1, 5000, (5, 12, 16)).astype(np.float32)
    depth = back.depth(4)
    assert depth is not None
    np.testing.assert_allclose(depth, want[4] / 1000, rtol=1e-6)
    assert (back.image(2) == scene.image(2)).all()


def test_same_scenes_same_bytes(tmp_path: Path) -> None:
    for name in ("a.torch", "b.torch"):
        chunks.write_chunk(tmp_path / name, [ours("mine")])
    assert (tmp_path / "a.torch").read_bytes() == (tmp_path / "b.torch").read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_chunk_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "000007.torch"
    torch.save([official("a")], path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"000007\.torch cannot be read.*truncated or damaged"):
        chunks.read_chunk(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_bytes_never_escape(tmp_path: Path) -> None:
    """Flipped bytes give a UserError or a chunk, never another exception."""
    path = tmp_path / "000000.torch"
    torch.save([official("a")], path)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), 20):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            chunk = chunks.read_chunk(path)
            for scene in chunk.scenes.values():
                scene.image(0)
        except UserError:
            refused += 1
    assert refused > 50


class Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("evil-was-here"),))


def test_code_in_a_chunk_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save([Evil()], tmp_path / "a.torch")
    (tmp_path / "b.torch").write_bytes(pickle.dumps([Evil()], protocol=2))
    for name in ("a.torch", "b.torch"):
        with pytest.raises(UserError, match="cannot be read"):
            chunks.read_chunk(tmp_path / name)
    assert not (tmp_path / "evil-was-here").exists()


def test_what_is_no_chunk_is_named(tmp_path: Path) -> None:
    scene = official("a")
    for content, fault in ((scene, "holds a dict, not a list"), ([3, {}], "no entry is a dict")):
        torch.save(content, tmp_path / "c.torch")
        with pytest.raises(UserError, match=fault):
            chunks.read_chunk(tmp_path / "c.torch")


MALFORMED: dict[str, tuple[Callable[[dict], dict], str]] = {
    "no images": (lambda s: {"images": []}, "no list 'images'"),
    "images missing": (lambda s: {"images": None}, "no list 'images'"),
    "float images": (lambda s: {"images": [torch.zeros(3)] * 4}, "no list 'images'"),
    "names as images": (lambda s: {"images": ["a.png"] * 4}, "no list 'images'"),
    "cameras": (lambda s: {"cameras": s["cameras"][:, :16]}, "no 'cameras' with 18"),
    "fewer cameras": (lambda s: {"cameras": s["cameras"][:3]}, "no 'cameras' with 18"),
    "cameras missing": (lambda s: {"cameras": None}, "no 'cameras' with 18"),
    "complex cameras": (lambda s: {"cameras": s["cameras"] + 0j}, "no 'cameras' with 18"),
    "sparse cameras": (lambda s: {"cameras": s["cameras"].to_sparse()}, "no 'cameras' with 18"),
    "text as cameras": (lambda s: {"cameras": "none"}, "no 'cameras' with 18"),
    "nan": (lambda s: {"cameras": s["cameras"] * torch.nan}, "cameras that are not finite"),
    "timestamps": (lambda s: {"timestamps": torch.zeros(2)}, "timestamps"),
    "nan times": (lambda s: {"timestamps": torch.full((4,), torch.nan)}, "timestamps"),
    "near alone": (lambda s: {"near": torch.ones(4)}, "no 'near' and 'far'"),
    "one near": (lambda s: {"near": torch.tensor(1.0), "far": torch.tensor(2.0)}, "no 'near'"),
    "near 0": (lambda s: {"near": torch.zeros(4), "far": torch.ones(4)}, "0 < near < far"),
    "depths": (lambda s: {"depths": s["images"][:2]}, "another number of 'depths'"),
    "float depths": (
        lambda s: {"depths": [torch.rand(64, 64)] * 4},
        "'depths' that are not a list",
    ),
    "scale": (lambda s: {"depths": s["images"], "depth_scale": -1.0}, "depth_scale"),
    "text scale": (lambda s: {"depths": s["images"], "depth_scale": "mm"}, "depth_scale"),
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_one_odd_scene_is_kept_apart_with_its_reason(tmp_path: Path, case: str) -> None:
    spoil, fault = MALFORMED[case]
    odd = official("odd")
    odd |= spoil(odd)
    torch.save([official("a"), odd, official("b")], tmp_path / "000000.torch")
    chunk = chunks.read_chunk(tmp_path / "000000.torch")
    assert list(chunk.scenes) == ["a", "b"] and [*chunk.faults] == ["odd"]
    assert fault in chunk.faults["odd"]
    split = chunks.write_index(tmp_path)
    assert split.keys == {"000000.torch": ["a", "b", "odd"]}
    for place in (tmp_path, tmp_path / "000000.torch"):
        assert len(open_scene(f"{place}:a")) == 4
        with pytest.raises(
            UserError, match=re.escape(f"'odd' of {place} has {chunk.faults['odd']}")
        ):
            open_scene(f"{place}:odd")


def test_what_others_write_otherwise_is_read(tmp_path: Path) -> None:
    """No time stamps, fractions of seconds, tuples, a scale that is a whole number or a tensor."""
    bare, fractions, other = official("bare"), official("fractions"), official("other")
    del bare["timestamps"]
    fractions["timestamps"] = torch.tensor([0.0, 0.033, 0.066, 0.1], dtype=torch.float64)
    other |= {"images": tuple(other["images"]), "depths": other["images"], "depth_scale": 2}
    other["timestamps"] = other["timestamps"].float()
    tensor = official("tensor") | {"depths": other["depths"], "depth_scale": torch.tensor(0.5)}
    torch.save([bare, fractions, other, tensor], tmp_path / "c.torch")
    chunk = chunks.read_chunk(tmp_path / "c.torch")
    assert not chunk.faults
    assert chunk.scenes["bare"].timestamps.tolist() == [0, 1, 2, 3]
    assert chunk.scenes["fractions"].timestamps.tolist() == [0, 33_000, 66_000, 100_000]
    assert chunk.scenes["other"].depth_scale == 2.0 and chunk.scenes["tensor"].depth_scale == 0.5


def test_entries_without_a_name_and_unknown_fields_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene = official("a") | {"masks": [1], "license": "CC0"}
    torch.save([scene, {"images": []}, 7, official("b")], tmp_path / "c.torch")
    for _ in range(2):
        assert list(chunks.read_chunk(tmp_path / "c.torch").scenes) == ["a", "b"]
    assert caplog.text.count("fields that are not used (license, masks)") == 1
    assert "left out 2 entries that are not a dict with a 'key'" in caplog.text


def test_intrinsics_in_pixels_and_further_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels, more = official("pixels"), official("more")
    pixels["cameras"][:, :4] *= torch.tensor([16, 12, 16, 12]) * 10
    more["cameras"][:, 4] = 0.1
    torch.save([pixels, more], tmp_path / "000000.torch")
    chunk = chunks.read_chunk(tmp_path / "000000.torch")
    assert chunk.faults == {"pixels": "intrinsics in pixels, not divided by width and height"}
    assert "the numbers behind cx and cy" in caplog.text


def test_a_damaged_photo_of_a_scene_is_left_out(tmp_path: Path) -> None:
    scene = official("a")
    whole = [scene["cameras"][i] for i in (0, 1, 3)]
    scene["images"][2] = scene["images"][2][:-40]
    torch.save([scene], tmp_path / "000000.torch")
    found = open_scene(tmp_path / "000000.torch")
    assert found.names == ("000000", "000001", "000003")
    assert [photo.name for photo in found.left_out] == ["000002"]
    torch.testing.assert_close(found.cameras.K[0, :, 0, 0], torch.stack(whole)[:, 0])
    with pytest.raises(UserError, match=r"1 of 4 photos of a cannot be used: 000002"):
        open_scene(tmp_path / "000000.torch", PhotoOptions(strict=True))


def test_unusable_poses_are_kept_apart_with_their_reason(tmp_path: Path) -> None:
    nan, squashed, singular, good = (official(key) for key in ("nan", "squashed", "zero", "good"))
    nan["cameras"][1, 7] = torch.nan
    squashed["cameras"][:, 6:9] *= 0.5
    singular["cameras"][:, 6:] = 0
    negative = official("negative")
    negative["cameras"][:, 0] *= -1
    torch.save([nan, squashed, singular, negative, good], tmp_path / "c.torch")
    chunk = chunks.read_chunk(tmp_path / "c.torch")
    assert list(chunk.scenes) == ["good"]
    assert chunk.faults == {
        "nan": "cameras that are not finite",
        "squashed": "camera rotations that are not orthonormal",
        "zero": "cameras that are not finite",
        "negative": "focal lengths that are not positive",
    }


def test_append_grows_a_split(tmp_path: Path) -> None:
    folder = tmp_path / "test"
    chunks.append(folder, [ours("a"), ours("b")])
    chunks.append(folder, [ours("c")])
    split = chunks.read_split(folder)
    assert split.keys == {"000000.torch": ["a", "b"], "000001.torch": ["c"]}
    assert list(split.chunk("000000.torch").scenes) == ["a", "b"]
    with pytest.raises(UserError, match="already has a scene 'b'"):
        chunks.append(folder, [ours("b")])
    (folder / "index.json").unlink()
    assert chunks.write_index(folder).keys == split.keys


def test_an_interrupted_append_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks.append(tmp_path, [ours("a")])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(entries: list, stream) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        chunks.append(tmp_path, [ours("b")])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_broken_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*index\.json"):
        chunks.read_split(tmp_path)
    chunks.append(tmp_path / "root" / "train", [ours("a")])
    with pytest.raises(UserError, match=r"no split .*test; wanted one beside train; .*convert"):
        chunks.read_split(tmp_path / "root" / "test")
    for content, fault in (
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ("{}", "is empty"),
        (json.dumps({"a": "../../secret.torch"}), "the name of a file beside it"),
        (json.dumps({"a": "000000.torch"}), "lacks 1 of the 1 chunks of its index, 000000.torch"),
    ):
        (tmp_path / "index.json").write_text(content)
        with pytest.raises(UserError, match=fault):
            chunks.read_split(tmp_path)


def test_an_index_that_promises_too_much_is_an_error(tmp_path: Path) -> None:
    chunks.append(tmp_path, [ours("a")])
    (tmp_path / "index.json").write_text(json.dumps({"a": "000000.torch", "x": "000000.torch"}))
    with pytest.raises(UserError, match=r"says that scene 'x' is in 000000\.torch, which lacks it"):
        chunks.read_split(tmp_path).chunk("000000.torch")


def test_two_scenes_of_one_key_are_refused(tmp_path: Path) -> None:
    twins = [ours("a", seed=1), ours("a", seed=2)]
    with pytest.raises(UserError) as caught:
        chunks.append(tmp_path / "new", twins)
    assert "two scenes 'a'" in caught.value.got and not (tmp_path / "new").exists()

    several = [official("a", seed=1), official("a", seed=2), official("a"), official("b")]
    torch.save(several, tmp_path / "000000.torch")
    chunk = chunks.read_chunk(tmp_path / "000000.torch")
    assert list(chunk.scenes) == ["b"]
    assert chunk.faults == {"a": "another scene of the same key in its chunk"}

    for name, scene in zip(("000000.torch", "000001.torch"), twins, strict=True):
        chunks.write_chunk(tmp_path / name, [scene])
    with pytest.raises(UserError) as caught:
        chunks.write_index(tmp_path)
    assert "'a' in 000000.torch and in 000001.torch" in caught.value.got
    assert not (tmp_path / chunks.INDEX).exists()


def test_cameras_of_a_map_are_counted_from_their_midst(tmp_path: Path) -> None:
    """Cameras in float64 lose nothing, though a chunk's usual float32 would."""
    place = torch.tensor([441547.502, 5121946.513, 2345.087], dtype=torch.float64)
    scene = ours("a", 4)
    entry = make_entry(scene)
    c2w = scene.c2w.double()
    c2w[:, :3, 3] += place
    w2c = torch.linalg.inv(c2w)[:, :3].flatten(1)
    entry["cameras"] = torch.cat([entry["cameras"][:, :6].double(), w2c], dim=1)
    torch.save([entry], tmp_path / "000000.torch")
    found = chunks.read_chunk(tmp_path / "000000.torch").scenes["a"]
    shift = torch.tensor(found.origin, dtype=torch.float64) - place
    assert shift.abs().max() < 10
    assert (found.c2w[:, :3, 3] + shift - scene.c2w[:, :3, 3]).abs().max() < 1e-5
    chunks.write_chunk(tmp_path / "again.torch", [found])
    again = chunks.read_chunk(tmp_path / "again.torch").scenes["a"]
    assert again.origin == found.origin and torch.allclose(again.c2w, found.c2w, atol=1e-6)
