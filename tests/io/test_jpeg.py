"""JPEG files in memory: decoded quickly, to the bit as Pillow does, and refused as it refuses."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmsplat.errors import UserError
from pmsplat.io import _jpeg
from pmsplat.io.images import read_image


def picture(height: int, width: int) -> Image.Image:
    """Colours that change slowly, and some that do not."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x // 7 + y // 5) % 2 * 200], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def encode(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 95, "subsampling": 0},
        {"quality": 75, "subsampling": 1},
        {"quality": 30, "subsampling": 2},
        {"progressive": True},
        {"keep_rgb": True},
        {"restart_marker_blocks": 3},
    ],
    ids=str,
)
def test_the_bits_are_pillows(options: dict[str, object]) -> None:
    data = encode(picture(77, 131), **options)
    assert _jpeg.decode(data) is not None
    assert np.array_equal(read_image(data), by_pillow(data))


def test_real_photographs_too(shared: Path) -> None:
    for path in sorted((shared / "train_scenes").glob("*/images/000.jpg"))[:12]:
        data = path.read_bytes()
        assert _jpeg.decode(data) is not None
        assert np.array_equal(read_image(data), by_pillow(data))


def test_gray_turned_and_cmyk_photos_are_left_to_pillow() -> None:
    image = picture(40, 60)
    for mode in ("L", "CMYK"):
        data = encode(image.convert(mode))
        assert np.array_equal(read_image(data), by_pillow(data))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(encode(image, exif=exif)).shape == (60, 40, 3)


def test_a_truncated_photo_is_refused_as_before() -> None:
    data = encode(picture(200, 300))
    with pytest.raises(UserError, match="cannot be read as an image"):
        read_image(data[: len(data) // 2])


def test_flipped_bytes_give_what_pillow_gives() -> None:
    generator = np.random.default_rng(0)
    whole = np.frombuffer(encode(picture(90, 120)), np.uint8)
    for _ in range(40):
        data = whole.copy()
        data[generator.integers(2, len(data), 3)] = generator.integers(0, 256, 3)
        try:
            wanted = by_pillow(data.tobytes())
        except Exception:  # noqa: BLE001 - Pillow raises many kinds
            with pytest.raises(UserError):
                read_image(data.tobytes())
            continue
        assert np.array_equal(read_image(data.tobytes()), wanted)


def test_scaled_decoding_covers_the_size_asked_for() -> None:
    data = encode(picture(361, 643), quality=95, subsampling=0)
    for least, wanted in [
        ((182, 300), (361, 643)),
        ((180, 320), (181, 322)),
        ((80, 90), (91, 161)),
    ]:
        assert read_image(data, least=least).shape[:2] == wanted
    half = read_image(data, least=(180, 321)).astype(float)
    whole = by_pillow(data)[:360, :642].reshape(180, 2, 321, 2, 3).mean(axis=(1, 3))
    smooth = np.abs(half[:180, :321] - whole)[..., :2]  # of the others there is no one answer
    assert smooth.mean() < 1
