"""Brightness of every kind of pixel, transparency, several pictures in a file, HEIC."""

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from pmsplat.errors import UserError
from pmsplat.io import images
from pmsplat.scene.posing import copy_upright

RAMP = np.linspace(0, 1, 12 * 20).reshape(12, 20)  # brightness, 0 to 1
GRAY = (255 * RAMP).round()
COLORS = np.random.default_rng(0).integers(1, 256, (9, 14, 3), dtype=np.uint8)


def saved(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def error_of(path: Path, wanted: np.ndarray = GRAY) -> float:
    found = images.read_image(path)
    assert found.shape == (*wanted.shape[:2], 3) and found.dtype == np.uint8
    return float(np.abs(found - wanted.reshape(*wanted.shape[:2], -1).astype(float)).max())


def tiff(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    """A TIFF of a kind that Pillow reads and does not write."""
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(path, pixels, **options)
    return path


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_counts_of_any_bits_in_16(
    bits: int, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts = (RAMP * (2**bits - 1)).round().astype(np.uint16)
    for number in range(3):
        assert error_of(saved(tmp_path / f"{number}{suffix}", counts)) <= 1
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (bits < 16)  # once for the folder
    assert all(f"{2**bits - 1} is taken for white" in text for text in said)


def test_a_picture_below_the_end_of_its_range_stays_darker(tmp_path: Path) -> None:
    counts = (0.9 * RAMP * 4095).round().astype(np.uint16)
    assert error_of(saved(tmp_path / "a.tif", counts), 0.9 * 255 * RAMP) <= 1
    half = (0.5 * RAMP * 65535).round().astype(np.uint16)
    assert error_of(saved(tmp_path / "b.tif", half), 0.5 * 255 * RAMP) <= 1


def test_a_stated_range_decides(tmp_path: Path) -> None:
    dark = (0.1 * RAMP * 4095).round().astype(np.uint16)  # looks like 10 bits
    path = tiff(tmp_path / "a.tif", dark, extratags=[(281, "H", 1, 4095, True)])
    assert error_of(path, 0.1 * 255 * RAMP) <= 1


def test_32_bits_and_white_as_zero(tmp_path: Path) -> None:
    wide = (RAMP * (2**32 - 1)).astype(np.uint32)  # Pillow shows them as negative
    assert error_of(tiff(tmp_path / "wide.tif", wide)) <= 1
    deep = (RAMP * 65535).round().astype(np.uint16)
    assert error_of(tiff(tmp_path / "w.tif", deep, photometric="miniswhite"), 255 - GRAY) <= 1
    assert error_of(saved(tmp_path / "i.tif", deep.astype(np.int32))) <= 1
    signed = deep.astype(np.int32) - 30_000
    with pytest.raises(UserError, match="with whole numbers from -30000 to 35535"):
        images.read_image(tiff(tmp_path / "signed.tif", signed))


def test_floats(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = RAMP.astype(np.float32)
    assert error_of(saved(tmp_path / "unit.tif", values)) <= 1
    assert error_of(saved(tmp_path / "dim.tif", 0.3 * values), 0.3 * 255 * RAMP) <= 1
    assert not caplog.records
    assert error_of(saved(tmp_path / "counts.tif", GRAY.astype(np.float32))) <= 1
    spark = values.copy()
    spark[0, 0] = 7.5
    wanted = GRAY.copy()
    wanted[0, 0] = 255
    assert error_of(saved(tmp_path / "spark.tif", spark), wanted) <= 1
    assert "floats from 0.004184 to 7.5: clipped to [0, 1]" in caplog.text
    for name, bad in (("hdr", 9.3 * values), ("below", values - 0.5)):
        with pytest.raises(UserError, match=f"{name}.tif with floats from .* how bright white is"):
            images.read_image(saved(tmp_path / f"{name}.tif", bad))
    values[3, 3] = np.nan
    with pytest.raises(UserError, match="numbers that are not finite"):
        images.read_image(saved(tmp_path / "nan.tif", values))
    with pytest.raises(UserError, match="cannot be read as an image"):
        images.read_image(
            tiff(tmp_path / "rgb.tif", (COLORS / 255).astype(np.float32), photometric="rgb")
        )


def test_colors_of_16_bits(tmp_path: Path) -> None:
    full = COLORS.astype(np.uint16) * 257
    assert error_of(tiff(tmp_path / "full.tif", full, photometric="rgb"), COLORS) <= 1
    alpha = np.dstack([full, np.full(full.shape[:2], 65535, np.uint16)])
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    assert error_of(tiff(tmp_path / "alpha.tif", alpha, **options), COLORS) <= 1
    for bits in (8, 10, 12):
        dark = full >> (16 - bits)
        with pytest.raises(UserError, match=r"16 bits a channel and no value beyond \d+"):
            images.read_image(tiff(tmp_path / f"{bits}.tif", dark, photometric="rgb"))


def png_of_16_bits(path: Path, pixels: np.ndarray) -> Path:
    """An RGB or RGBA picture of 16 bits a channel, which Pillow does not write (RFC 2083)."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def test_png_of_16_bits(tmp_path: Path) -> None:
    full = COLORS.astype(np.uint16) * 257
    alpha = np.full((*full.shape[:2], 1), 65535, np.uint16)
    for name, pixels in (("rgb", full), ("rgba", np.concatenate([full, alpha], -1))):
        assert error_of(png_of_16_bits(tmp_path / f"{name}.png", pixels), COLORS) <= 1
    with pytest.raises(UserError, match="16 bits a channel and no value beyond 4095"):
        images.read_image(png_of_16_bits(tmp_path / "dim.png", full >> 4))


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr"])
def test_other_color_spaces(mode: str, tmp_path: Path) -> None:
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) == 12:
        pytest.skip("Pillow 12 does not read such files of its own")
    smooth = np.stack([RAMP, RAMP[::-1], 0.5 + 0 * RAMP], -1)
    picture = Image.fromarray((255 * smooth).round().astype(np.uint8))
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        other = ImageCms.profileToProfile(picture, *profiles, outputMode="LAB")
        assert other is not None
    else:
        other = picture.convert(mode)
    other.save(tmp_path / "a.tif")
    found = images.read_image(tmp_path / "a.tif")
    assert np.abs(found - 255 * smooth).mean() < 3  # saturated colors lose most


def test_one_bit_and_palettes(tmp_path: Path) -> None:
    bits = RAMP > 0.5
    assert error_of(saved(tmp_path / "bits.png", bits), 255.0 * bits) == 0
    picture = Image.fromarray(COLORS).quantize(200)
    picture.save(tmp_path / "palette.png")
    assert error_of(tmp_path / "palette.png", np.array(picture.convert("RGB"))) == 0
    picture.save(tmp_path / "clear.png", transparency=3)
    index = np.array(picture)
    wanted = np.array(picture.convert("RGB"))
    wanted[index == 3] = 255
    found = images.read_image(tmp_path / "clear.png", background=(255, 255, 255))
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), (10, 200, 30)])
def test_transparency_is_laid_over_the_background(
    background: tuple[int, int, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alpha = np.random.default_rng(1).integers(0, 256, COLORS.shape[:2], dtype=np.uint8)
    share = alpha[..., None] / 255
    wanted = share * COLORS + (1 - share) * np.array(background)
    for number in range(2):
        path = saved(tmp_path / f"{number}.png", np.dstack([COLORS, alpha]))
        assert np.abs(images.read_image(path, background=background) - wanted).max() <= 1
    assert [f"laid over the color {background}" in it.getMessage() for it in caplog.records] == [
        True
    ]
    gray = saved(tmp_path / "gray.png", np.dstack([COLORS[..., 0], alpha]))
    wanted = share * COLORS[..., :1] + (1 - share) * np.array(background)
    assert np.abs(images.read_image(gray, background=background) - wanted).max() <= 1


def test_what_is_wholly_transparent_or_opaque_keeps_its_colors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for alpha in (255, 0):
        layer = np.full(COLORS.shape[:2], alpha, np.uint8)
        path = saved(tmp_path / f"{alpha}.png", np.dstack([COLORS, layer]))
        assert np.array_equal(images.read_image(path), COLORS)
        assert ("wholly transparent: its colors are used" in caplog.text) == (alpha == 0)
    nothing = saved(tmp_path / "nothing.png", np.zeros((4, 5, 4), np.uint8))
    assert (images.read_image(nothing, background=(9, 9, 9)) == 9).all()


def test_premultiplied_colors(tmp_path: Path) -> None:
    alpha = np.full(COLORS.shape[:2], 128, np.uint8)
    stored = np.dstack([(COLORS * (128 / 255)).round().astype(np.uint8), alpha])
    path = tiff(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=["assocalpha"])
    found = images.read_image(path, background=(0, 0, 0))
    assert np.abs(found - COLORS * (128 / 255)).max() <= 2


@pytest.mark.parametrize("format", ["GIF", "TIFF", "MPO", "PNG"])
def test_the_first_of_several_pictures_is_used_and_said(
    format: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = np.kron(np.eye(2, dtype=np.uint8)[..., None] * 200, np.ones((16, 24, 3), np.uint8))
    second = Image.fromarray(255 - first)
    path = tmp_path / f"a.{format.lower()}"
    Image.fromarray(first).save(path, format, save_all=True, append_images=[second])
    assert np.abs(images.read_image(path).astype(int) - first).mean() < 3
    assert f"{path} holds 2 pictures: the first is used" in caplog.text


ORIENTATIONS = {
    1: lambda a: a, 3: lambda a: a[::-1, ::-1], 6: lambda a: np.rot90(a, -1),
    8: lambda a: np.rot90(a),
}  # fmt: skip


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("format", ["HEIF", "AVIF"])
def test_heic_and_avif_are_turned_once(orientation: int, format: str, tmp_path: Path) -> None:
    if format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    elif format not in Image.SAVE and ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow has no AVIF")
    blocks = np.kron(np.array([[[250, 0, 0], [0, 0, 0]], [[0, 90, 0], [0, 0, 200]]], np.uint8),
                     np.ones((32, 48, 1), np.uint8))  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{format.lower()}"
    Image.fromarray(blocks).save(path, format, exif=exif.tobytes(), quality=95)
    upright = ORIENTATIONS[orientation](blocks)
    assert images.image_size(path) == upright.shape[:2]
    found = images.read_image(path).astype(int)
    assert np.abs(found - upright).mean() < 6
    assert np.array_equal(images.read_image(path.read_bytes()), found)


def test_heic_is_read_when_it_is_met_or_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    stream = io.BytesIO()
    Image.fromarray(np.full((32, 48, 3), 120, np.uint8)).save(stream, "HEIF")
    path = tmp_path / "a.heic"
    path.write_bytes(stream.getvalue())
    monkeypatch.delitem(Image.OPEN, "HEIF")
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        for source in (path, path.read_bytes()):
            with pytest.raises(UserError, match=r'pip install "pmsplat\[heic\]"'):
                images.read_image(source)
    assert np.abs(images.read_image(path).astype(int) - 120).max() < 4
    with pytest.raises(UserError, match="cannot be read as an image"):
        images.read_image(path.read_bytes()[:60])


def test_copies_for_other_programs_are_common_and_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    source, folder = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    folder.mkdir()
    deep = saved(source / "deep.tif", (RAMP * 4095).round().astype(np.uint16))
    turned = saved(source / "turned.png", COLORS, exif=exif)
    plain = saved(source / "plain.png", COLORS)
    heic = source / "b.heic"
    pytest.importorskip("pillow_heif").register_heif_opener()
    Image.fromarray(COLORS).save(heic, "HEIF", exif=exif.tobytes())
    for photo in (deep, turned, plain, heic):
        copy_upright(photo, folder)
    copies = sorted(path.name for path in folder.iterdir())
    assert copies == ["b.heic.jpg", "deep.tif.jpg", "plain.png", "turned.png"]
    assert (folder / "plain.png").read_bytes() == plain.read_bytes()
    assert all(images.is_common(path) and not images.is_turned(path) for path in folder.iterdir())
    assert error_of(folder / "deep.tif.jpg") <= 4
    for name in ("b.heic.jpg", "turned.png"):
        assert images.image_size(folder / name) == (14, 9)
