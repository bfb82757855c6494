"""Images in and out: orientation, modes, damage, depth counts, all or nothing."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pmsplat.errors import UserError
from pmsplat.io import files, images

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (9, 14, 3), dtype=np.uint8)

TURNED = {  # EXIF orientation -> how the stored pixels come to stand upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "photo.png", exif=exif)
    upright = images.read_image(tmp_path / "photo.png")
    assert np.array_equal(upright, TURNED[orientation](PIXELS))
    assert images.image_size(tmp_path / "photo.png") == upright.shape[:2]
    assert np.array_equal(images.read_image(tmp_path / "photo.png", upright=False), PIXELS)
    assert images.image_size(tmp_path / "photo.png", upright=False) == (9, 14)
    assert images.is_turned(tmp_path / "photo.png") == (orientation != 1)


def test_bytes_and_files_are_the_same(tmp_path: Path) -> None:
    images.write_image(tmp_path / "a.png", PIXELS)
    assert np.array_equal(images.read_image(tmp_path / "a.png"), PIXELS)
    assert np.array_equal(images.read_image((tmp_path / "a.png").read_bytes()), PIXELS)


def test_tensors_are_rounded_and_clipped(tmp_path: Path) -> None:
    tensor = torch.tensor([-0.5, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 7.0]).expand(3, 1, 6)
    images.write_image(tmp_path / "a.png", tensor)
    assert images.read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]


def test_jpeg_by_suffix(tmp_path: Path) -> None:
    images.write_image(tmp_path / "a.jpg", PIXELS)
    assert (tmp_path / "a.jpg").read_bytes().startswith(b"\xff\xd8")


def test_other_modes_become_rgb(tmp_path: Path) -> None:
    gray = RNG.integers(0, 256, (5, 6), dtype=np.uint8)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    assert np.array_equal(images.read_image(tmp_path / "gray.png"), np.stack([gray] * 3, -1))
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(images.read_image(tmp_path / "deep.png"), np.stack([gray] * 3, -1))
    alpha = np.dstack([PIXELS, np.full((9, 14), 128, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    over_black = PIXELS.astype(float) * 128 / 255
    assert np.abs(images.read_image(tmp_path / "alpha.png") - over_black).max() <= 1


@pytest.mark.parametrize("format", ["png", "jpeg"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9])
def test_truncated_files_are_named(tmp_path: Path, format: str, share: float) -> None:
    pixels = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = images.encode_image(pixels, format)
    path = tmp_path / f"torn.{format}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=rf"torn\.{format} cannot be read as an image"):
        images.read_image(path)


def test_damaged_bytes_never_escape() -> None:
    for format in ("png", "jpeg"):
        refused = 0
        data = images.encode_image(PIXELS, format)
        for _ in range(300):
            damaged = bytearray(data)
            for at in RNG.integers(0, len(data), 3):
                damaged[at] = RNG.integers(0, 256)
            try:
                found = images.read_image(bytes(damaged))
            except UserError:
                refused += 1
                continue
            assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
        assert refused == 300 if format == "png" else 0 < refused < 300  # a .png has checksums


def test_a_large_photo_is_no_cause_for_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PIXELS[..., 0].size - 1)
    assert np.array_equal(images.read_image(images.encode_image(PIXELS)), PIXELS)


def test_a_bomb_is_refused() -> None:
    data = bytearray(images.encode_image(PIXELS))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    with pytest.raises(UserError, match="cannot be read as an image"):
        images.read_image(bytes(data))


def test_missing_and_foreign_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no image at"):
        images.read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UserError, match=r"text\.png cannot be read"):
        images.read_image(tmp_path / "text.png")


def test_depth_counts_survive(tmp_path: Path) -> None:
    counts = RNG.integers(0, 65536, (7, 8)).astype(np.uint16)
    counts[0, :2] = 0, 65535
    images.write_depth(tmp_path / "d.png", counts)
    assert np.array_equal(images.read_depth(tmp_path / "d.png"), counts)
    with Image.open(tmp_path / "d.png") as image:
        assert image.mode == "I;16"
    images.write_image(tmp_path / "rgb.png", PIXELS)
    with pytest.raises(UserError, match=r"rgb\.png is no depth map: its pixels are of mode RGB"):
        images.read_depth(tmp_path / "rgb.png")


def test_depth_survives_as_counts(tmp_path: Path) -> None:
    depth = RNG.uniform(0.3, 40, (20, 30)).astype(np.float32)
    depth[0, :6] = 0, 0.49e-3, 100, -1, np.nan, 0.51e-3
    images.write_depth(tmp_path / "d.png", images.to_counts(depth, 1e-3))
    back = images.read_depth(tmp_path / "d.png") * 1e-3
    assert back[0, :6].tolist() == [0, 0, 65.535, 0, 0, 1e-3]  # below half a count: none
    assert np.abs(back - depth)[1:].max() <= 0.0005 + 1e-6


@pytest.mark.parametrize(
    ("near", "far", "scale"),
    [
        (0.3, 6.0, 1e-3),
        (0.1, 65.535, 1e-3),
        (0.3, 65.6, 2e-3),
        (1.0, 131.1, 5e-3),
        (1.0, 327.675, 5e-3),
        (1.0, 500.0, 1e-2),
        (1.0, 1e6, 20.0),
        (0.01, 6.0, 1e-4),
        (1e-4, 2e-3, 5e-8),
    ],
)
def test_one_count_is_round_and_holds_the_farthest(near: float, far: float, scale: float) -> None:
    assert images.count_scale(near, far) == scale
    assert far / scale <= 65535 or far / scale == pytest.approx(65535)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images.write_image(tmp_path / "a.png", PIXELS)
    before = (tmp_path / "a.png").read_bytes()

    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as stream:
            stream.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        images.write_image(tmp_path / "a.png", PIXELS[::-1])
    assert (tmp_path / "a.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    files.write_text(tmp_path / "new" / "a.txt", "ä")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "ä"
    (tmp_path / "plain.txt").write_text("")
    assert (tmp_path / "new" / "a.txt").stat().st_mode == (tmp_path / "plain.txt").stat().st_mode
