"""Photographs and depth maps, in and out of files.

A colour image is a uint8 array [height, width, 3], RGB, upright (EXIF orientation applied). A depth
map is a uint16 array [height, width] of counts; the caller knows the depth of one count.
"""

import io
import math
import os
import struct
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped, UInt8, UInt16
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import UserError
from . import _jpeg
from ._pixels import BLACK as BLACK
from ._pixels import Color as Color
from ._pixels import to_rgb
from .files import write_bytes

Source = str | Path | bytes

FULL_SCALE = 65535  # the largest count of a depth map
MILLIMETER = 1e-3  # of one count, where the unit is a metre: what sensors and readers expect

COMMON_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP")
HEIC = {
    b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
}
TURNS = {  # how stored pixels come to stand upright, by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_TAIL = 256  # bytes in which the end of a file is looked for
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, RuntimeError,
    TypeError, MemoryError, OverflowError,
)  # fmt: skip
"""What Pillow raises on damaged files of various formats."""


def read_image(
    source: Source,
    upright: bool = True,
    background: Color = BLACK,
    least: tuple[int, int] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """An image file, or its bytes, as 8-bit RGB; transparency is laid over `background`.

    `upright=False` leaves the pixels as they are stored, whatever EXIF says of their orientation
    (HEIC has its own way to turn pixels, which always applies). Whole numbers of 10 to 32 bits and
    floats in [0, 1] are scaled. A warning, once for every folder, names transparency, further
    pictures in a file, and a range that was guessed. With `least`, (height, width), a JPEG in
    memory of twice that size or more may come smaller, but not below it. Raises UserError for what
    is missing, truncated, not an image, of more than 178 megapixels, or of a brightness that is not
    known.
    """
    with _open(source) as image:
        try:
            turn = TURNS.get(_orientation(image)) if upright else None
            if isinstance(source, bytes) and _is_plain(image) and turn is None:
                pixels = _jpeg.decode(source, least)
                if pixels is not None:
                    return pixels
            rgb = to_rgb(image, background, _name(source), _folder(source))
            return np.array(rgb if turn is None else rgb.transpose(turn))
        except UserError:  # a ValueError too
            raise
        except _UNREADABLE as error:
            raise _unreadable(source, error) from error


def image_size(source: Source, upright: bool = True) -> tuple[int, int]:
    """(height, width) of an image file, from its header alone; errors as `read_image`."""
    with _open(source) as image:
        width, height = image.size
        turned = upright and _read_orientation(source, image) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def is_turned(source: Source) -> bool:
    """Whether EXIF asks for the stored pixels to be turned or mirrored before they are shown."""
    with _open(source) as image:
        return _read_orientation(source, image) != 1


def is_panorama(source: Source) -> bool:
    """Whether a photo's XMP says that it is a panorama (GPano, as cameras and stitchers write).

    https://developers.google.com/streetview/spherical-metadata
    """
    with _open(source) as image:
        xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    text = xmp if isinstance(xmp, bytes) else str(xmp).encode()
    return b"GPano:ProjectionType" in text


def is_common(source: Source) -> bool:
    """Whether other programs read an image as `read_image` does: 8-bit gray, RGB, with alpha."""
    with _open(source) as image:
        return image.format in COMMON_FORMATS and image.mode in ("L", "LA", "P", "RGB", "RGBA")


def check_whole(source: Source) -> None:
    """Raises UserError for an image file that ends before its pixels do.

    The last bytes of JPEG and PNG show that they are whole; where they do not, as before the
    trailers of some cameras, the pixels are decoded, small. Other formats are not looked into.
    """
    with _open(source) as image:
        try:
            if image.format in _ENDS and not _tail(source).endswith(_ENDS[image.format]):
                image.draft(None, (1, 1))
                image.load()
        except _UNREADABLE as error:
            raise _unreadable(source, error) from error


def _tail(source: Source) -> bytes:
    """The end of a file, without what it was filled up with."""
    if isinstance(source, bytes):
        end = source[-_TAIL:]
    else:
        with Path(source).open("rb") as file:
            file.seek(-min(_TAIL, os.fstat(file.fileno()).st_size), os.SEEK_END)
            end = file.read()
    return end.rstrip(b"\0\r\n ")


def check_depth(source: Source) -> bool:
    """Whether the numbers of a depth map, an image file, have fractions; they are not read yet.

    Raises UserError for what is missing, damaged, or has more than one channel.
    """
    with _open(source) as image:
        mode = image.mode
    if len(Image.new(mode, (1, 1)).getbands()) != 1:
        raise _no_depth(source, mode)
    check_whole(source)
    return mode == "F"


def _no_depth(source: Source, mode: str) -> UserError:
    return UserError(
        f"{_name(source)} is no depth map: its pixels are of mode {mode}",
        "one channel of 16-bit counts, or of floats",
        "write depth as 16-bit grayscale PNG",
    )


def read_depth(source: Source) -> Shaped[np.ndarray, "height width"]:
    """A depth map from a single-channel 8- or 16-bit PNG (or the like), as uint16 counts, 0 = none.

    A TIFF of floats gives float32 as it is. Raises UserError for what is missing, damaged, or has
    more than one channel.
    """
    with _open(source) as image:
        try:
            counts = np.array(image)
        except _UNREADABLE as error:
            raise _unreadable(source, error) from error
        mode = image.mode
    if mode == "F":
        return counts
    if (
        counts.ndim != 2
        or counts.dtype.kind not in "ui"
        or counts.min() < 0
        or counts.max() > 65535
    ):
        raise _no_depth(source, mode)
    return counts.astype(np.uint16)


def encode_image(
    image: UInt8[np.ndarray, "height width 3"], format: str = "png", quality: int = 95
) -> bytes:
    """An image as the bytes of a PNG (lossless), JPEG or WebP file; PNG has no `quality`."""
    stream = io.BytesIO()
    if format == "png":
        Image.fromarray(image).save(stream, "PNG", compress_level=1)
    elif format == "webp":
        Image.fromarray(image).save(stream, "WEBP", quality=quality)
    else:
        Image.fromarray(image).save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def encode_depth(counts: UInt16[np.ndarray, "height width"]) -> bytes:
    """A depth map as the bytes of a 16-bit grayscale PNG."""
    stream = io.BytesIO()
    Image.fromarray(counts).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def write_image(
    path: str | Path, image: UInt8[np.ndarray, "height width 3"] | Float[Tensor, "3 height width"]
) -> None:
    """An image as a file, PNG or JPEG by its suffix, whole or not at all.

    An array is 8-bit RGB, channels last; a tensor is [0, 1], channels first, clipped and rounded.
    """
    if isinstance(image, Tensor):
        image = to_uint8(image)
    format = "jpeg" if Path(path).suffix.lower() in (".jpg", ".jpeg") else "png"
    write_bytes(path, encode_image(np.ascontiguousarray(image), format))


def write_depth(path: str | Path, counts: UInt16[np.ndarray, "height width"]) -> None:
    """A depth map as a 16-bit PNG file, whole or not at all."""
    write_bytes(path, encode_depth(counts))


def to_counts(
    depth: Float[np.ndarray, "height width"], scale: float
) -> UInt16[np.ndarray, "height width"]:
    """Depth as counts of `scale`, rounded to the nearest; 0 is none.

    A depth below half a count becomes none: one whole count would be a wrong depth. Depth beyond
    the largest count is clipped to it; `count_scale` finds a scale with which none is. What is
    negative or not a number is none.
    """
    counts = np.round(depth.astype(np.float64) / scale).clip(0, FULL_SCALE)
    return np.where(depth > 0, counts, 0).astype(np.uint16)


def count_scale(near: float, far: float) -> float:
    """A round number for one count, with which depths from `near` to `far` are kept.

    A thousandth, if the farthest fits and the nearest has 100 counts or more; else the smallest
    of 1, 2 or 5 times a power of ten with which the farthest fits.
    """
    if far <= MILLIMETER * FULL_SCALE and near >= 100 * MILLIMETER:
        return MILLIMETER
    exponent = math.floor(math.log10(far / FULL_SCALE))
    steps = (float(f"{digit}e{exponent}") for digit in (1, 2, 5, 10))
    return next(step for step in steps if far <= step * FULL_SCALE)


def to_uint8(
    image: Float[Tensor, "*batch 3 height width"],
) -> UInt8[np.ndarray, "*batch height width 3"]:
    """A [0, 1] tensor, channels first, as 8-bit pixels, channels last; clipped and rounded.

    Of a GPU all of it comes in one transfer.
    """
    pixels = image.detach().float().clamp(0, 1).mul(255).round()
    return pixels.movedim(-3, -1).byte().cpu().numpy()


def _is_plain(image: Image.Image) -> bool:
    """Whether it is a JPEG of 8-bit colours."""
    return image.format == "JPEG" and image.mode == "RGB"


def _open(source: Source) -> Image.Image:
    try:
        with warnings.catch_warnings():  # cameras of today reach the size that is warned of
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except FileNotFoundError as error:
        raise UserError(
            f"there is no image at {source!s}", "an image file", "check the path"
        ) from error
    except UnidentifiedImageError as error:
        if _is_heic(source) and _register_heic(source):
            return _open(source)
        raise _unreadable(source, error) from error
    except (Image.DecompressionBombError, *_UNREADABLE) as error:
        raise _unreadable(source, error) from error


def _is_heic(source: Source) -> bool:
    """Whether a file begins as HEIC or HEIF does (ISO 23008-12, brands of the first box)."""
    if isinstance(source, bytes):
        return source[4:12] in HEIC
    with Path(source).open("rb") as file:
        return file.read(12)[4:] in HEIC


def _register_heic(source: Source) -> bool:
    """Makes Pillow read HEIC; False if it does already. Raises UserError without pillow-heif."""
    if "HEIF" in Image.OPEN:
        return False
    try:
        import pillow_heif
    except ImportError as error:
        raise UserError(
            f"{_name(source)}, an HEIC photo, without the package that reads them",
            "pillow-heif",
            'run pip install "pmsplat[heic]", or export the photos as JPEG',
        ) from error
    pillow_heif.register_heif_opener()
    return True


def _read_orientation(source: Source, image: Image.Image) -> int:
    try:
        return _orientation(image)
    except _UNREADABLE as error:
        raise _unreadable(source, error) from error


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 1: as stored.

    Of a PNG only what stands before its pixels is looked at: Pillow would decode them to look
    behind.
    """
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    if image.format == "HEIF":  # its reader has turned the pixels
        return 1
    found = image.getexif().get(0x0112, 1)
    return found if found in range(1, 9) else 1


def _unreadable(source: Source, error: Exception) -> UserError:
    return UserError(
        f"{_name(source)} cannot be read as an image ({error})",
        "a whole JPEG, PNG or other common image file",
        "copy or export it again, or leave it out",
    )


def _name(source: Source) -> str:
    return f"an image of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def _folder(source: Source) -> str:
    return "" if isinstance(source, bytes) else str(Path(source).parent)
