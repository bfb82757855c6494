"""What visitors bring: too much, too large, dangerous, or fine."""

import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmsplat.errors import UserError
from pmsplat.io.video import describe_video, write_video
from pmsplat.scene import open_scene
from pmsplat.tasks.app import Limits
from pmsplat.tasks.app._intake import check_inside, describe_uploads, take_in

LIMITS = Limits(photos=3, megabytes=1, megapixels=1, seconds=1, files=8)


def make_photo(path: Path, size: tuple[int, int] = (24, 16), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def make_zip(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> bytes:
    return make_photo(tmp_path / "some.png").read_bytes()


def take(files: list[Path], tmp_path: Path, limits: Limits = LIMITS) -> tuple[Path, list[str]]:
    said: list[str] = []
    return take_in(files, tmp_path / "upload", limits, said.append), said


def test_photos_of_one_name_stay_apart(tmp_path: Path) -> None:
    files = [make_photo(tmp_path / name / "a.png", seed=i) for i, name in enumerate("xy")]
    files.append(make_photo(tmp_path / "z" / "A.png", seed=2))
    source, _ = take(files, tmp_path)
    found = sorted(path.name for path in source.iterdir())
    assert found == ["A-3.png", "a-2.png", "a.png"]
    assert len({path.read_bytes() for path in source.iterdir()}) == 3
    assert describe_uploads(files, LIMITS).startswith("3 photos, ")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "no photos"),
        (["a.png"], "1 photo; wanted two or more"),
        (["a.png", "b.png", "c.png", "d.png"], "4 photos; wanted at most 3"),
        (["a.png", "b.png", "c.exe"], "c.exe"),
        (["a.png", "b.mp4"], "one of which is b.mp4"),
        (["a.zip", "b.zip"], "one of which is a.zip"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, names: list[str], said: str) -> None:
    files = []
    for name in names:
        is_photo = name.endswith(".png")
        files.append(make_photo(tmp_path / name) if is_photo else tmp_path / name)
        files[-1].touch()
    with pytest.raises(UserError, match=said):
        describe_uploads(files, LIMITS)
    with pytest.raises(UserError, match=said):
        take(files, tmp_path)


def test_sizes_are_limited(tmp_path: Path) -> None:
    small = make_photo(tmp_path / "a.png")
    Image.new("1", (1200, 900)).save(tmp_path / "b.png")  # of few bytes
    with pytest.raises(UserError, match=r"b.png of 1 megapixels; wanted at most 1"):
        take([small, tmp_path / "b.png"], tmp_path)
    big = tmp_path / "c.png"
    big.write_bytes(small.read_bytes() + bytes(1_100_000))
    with pytest.raises(UserError, match=r"1.1 MB in all; wanted at most 1 MB"):
        describe_uploads([small, big], LIMITS)
    small.unlink()
    with pytest.raises(UserError, match="no longer here"):
        describe_uploads([small, big], LIMITS)


def test_videos_are_limited(tmp_path: Path) -> None:
    path = tmp_path / "walk.mp4"
    write_video(path, [np.zeros((32, 48, 3), np.uint8)] * 20, 10)
    found = describe_video(path)
    assert found.seconds == pytest.approx(2.0, abs=0.11) and found.size == (32, 48)
    with pytest.raises(UserError, match="a video of 2 seconds; wanted at most 1"):
        take([path], tmp_path)
    source, _ = take([path], tmp_path / "again", Limits())
    assert source.name == "walk.mp4" and source.read_bytes() == path.read_bytes()
    path.write_bytes(b"no video")
    with pytest.raises(UserError, match=r"walk.mp4 holds no frame"):
        describe_video(path)


def test_a_zip_is_unpacked_from_its_only_folder(tmp_path: Path, photo: bytes) -> None:
    entries = {"kitchen/images/a.png": photo, "kitchen/images/b.png": photo, "kitchen/x.py": b"x"}
    entries |= {"kitchen/transforms.json": b"{}", "__MACOSX/kitchen/._a.png": b"x"}
    source, said = take([make_zip(tmp_path / "k.zip", entries)], tmp_path)
    assert source == tmp_path / "upload" / "kitchen"
    found = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert found == {"images/a.png", "images/b.png", "transforms.json"}
    assert len(said) == 1 and "x.py" in said[0] and "2 in all" in said[0]


@pytest.mark.parametrize(
    "name", ["../a.png", "x/../../a.png", "/tmp/a.png", "C:/a.png", "x\\..\\a.png"]
)
def test_a_zip_cannot_leave_its_folder(tmp_path: Path, photo: bytes, name: str) -> None:
    archive = make_zip(tmp_path / "k.zip", {"ok.png": photo, name: photo})
    with pytest.raises(UserError, match="names inside of its folder"):
        take([archive], tmp_path)
    assert not [*(tmp_path / "upload").iterdir()]


def test_a_zip_that_grows_is_stopped(tmp_path: Path, photo: bytes) -> None:
    bomb = make_zip(tmp_path / "bomb.zip", {"a.png": photo, "b.bin": bytes(2_000_000)})
    assert bomb.stat().st_size < 10_000
    with pytest.raises(UserError, match="unpacks to more than it may"):
        take([bomb], tmp_path)
    # One that lies about its sizes is no better
    data = bomb.read_bytes()
    true, lie = (2_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    assert data.count(true) == 2
    bomb.write_bytes(data.replace(true, lie))
    with pytest.raises(UserError, match=r"unpacks to more than it may|damaged"):
        take([bomb], tmp_path / "again")
    written = sum(p.stat().st_size for p in (tmp_path / "again").rglob("*") if p.is_file())
    assert written < 1.1e6


def make_link(path: Path) -> Path:
    entry = zipfile.ZipInfo("a.png")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    return path


def make_broken(path: Path) -> Path:
    path.write_bytes(b"PK\x03\x04 and no more")
    return path


def make_locked(path: Path) -> Path:
    make_zip(path, {"a.png": b"x"})
    data = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + flags] |= 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (make_link, "is a link"),
        (make_broken, "damaged"),
        (make_locked, "password"),
        (lambda path: make_zip(path, {"a.txt": b"x"}), "without photos"),
        (lambda path: make_zip(path, {f"{i}.png": b"x" for i in range(9)}), "9 files"),
        (lambda path: make_zip(path, {f"{i}.png": b"x" for i in range(4)}), "4 photos"),
        (lambda path: make_zip(path, {"a.png": b"x", "a.png/b.png": b"x"}), "one name twice"),
    ],
)
def test_what_a_zip_must_not_be(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    with pytest.raises(UserError, match=said):
        take([make(tmp_path / "k.zip")], tmp_path)


def test_cameras_cannot_name_photos_from_elsewhere(tmp_path: Path) -> None:
    secret = make_photo(tmp_path / "private" / "a.png")
    upload = tmp_path / "upload"
    make_photo(upload / "b.png", seed=1)
    frames = []
    for i, path in enumerate([secret, upload / "b.png"]):
        c2w = np.eye(4)
        c2w[0, 3] = i
        frames.append({"file_path": str(path), "transform_matrix": c2w.tolist()})
    cameras = {"w": 24, "h": 16, "fl_x": 20.0, "frames": frames, "near": 1.0, "far": 9.0}
    (upload / "transforms.json").write_text(json.dumps(cameras))
    scene = open_scene(upload)
    with pytest.raises(UserError, match="names 1 file that you did not bring"):
        check_inside(scene, upload)
    check_inside(scene, tmp_path)


def test_limits_make_sense() -> None:
    assert "40 photos of up to 50 megapixels" in Limits().describe()
    with pytest.raises(UserError, match="limit of 1 photos; wanted at least 2"):
        Limits(photos=1)
    with pytest.raises(UserError, match="limit of 0 minutes"):
        Limits(minutes=0)
