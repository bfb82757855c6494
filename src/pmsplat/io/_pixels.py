"""Any picture that Pillow opens -> 8-bit RGB of the right brightness, or a reason why not.

Pillow clips wide pixels where it should scale them. How bright white is follows from the largest
value of the picture, or the one that a TIFF states (TIFF 6.0, MaxSampleValue): cameras and
converters store 10, 12 or 14 bits in 16, and photographs reach nearly to the end of their range.
What is decided so is said, once for every folder and kind.
"""

import logging
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError

log = logging.getLogger(__name__)

Color = tuple[int, int, int]
BLACK: Color = (0, 0, 0)

PHOTOMETRIC, BITS, FORMAT = 262, 258, 339  # tags of TIFF
LARGEST = (341, 281)  # SMaxSampleValue, MaxSampleValue
UNSIGNED = 1  # of FORMAT
DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # bits that counts are found to have
BEYOND = 0.01  # share of float values that may lie outside [0, 1], and are clipped


def to_rgb(image: Image.Image, background: Color, name: str, folder: str) -> Image.Image:
    """The first frame of a picture as 8-bit RGB; transparency is laid over `background`.

    `name` is the picture's in errors, `folder` its folder's in warnings. Raises UserError for
    pixels whose brightness cannot be known.
    """
    if (frames := getattr(image, "n_frames", 1)) > 1:
        image.seek(0)
        text = f"{name} holds {frames} pictures: the first is used"
        _say(folder, "frames", text)
    wide = _is_wide(image)  # known until the pixels are read
    if image.mode == "F":
        return _from_floats(image, name, folder)
    if image.mode.startswith("I"):
        return _from_counts(_counts(image), image, name, folder)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgb = _lay_over(image.convert("RGBA"), background, name, folder)
    else:
        rgb = image.convert("RGB")
    if wide:
        _check_range(image, name)
    return rgb


def _counts(image: Image.Image) -> np.ndarray:
    """Whole numbers of one channel; Pillow shows unsigned ones of 32 bits as signed."""
    counts = np.array(image)
    if counts.dtype == np.int32 and _tag(image, FORMAT, (UNSIGNED,))[0] == UNSIGNED:
        return counts.view(np.uint32)
    return counts


def _from_counts(counts: np.ndarray, image: Image.Image, name: str, folder: str) -> Image.Image:
    """Gray of counts, whose bits are the fewest that hold them all."""
    lowest, largest = int(counts.min()), int(max(counts.max(), _stated_largest(image)))
    if lowest < 0:
        raise _unknown(name, f"whole numbers from {lowest} to {largest}")
    bits = next((bits for bits in DEPTHS if largest < 2**bits), DEPTHS[-1])
    stored = 8 * counts.dtype.itemsize
    if bits < stored and largest > 0:
        text = f"{name} has {stored} bits a pixel and no value beyond {largest}"
        _say(folder, f"{bits} bits", f"{text}: {2**bits - 1} is taken for white")
    return _gray(counts, 2**bits - 1, image)


def _from_floats(image: Image.Image, name: str, folder: str) -> Image.Image:
    """Gray of floats in [0, 1], or of whole numbers that are stored as floats."""
    values = np.array(image)
    if not np.isfinite(values).all():
        raise _unknown(name, "numbers that are not finite")
    lowest, largest = float(values.min()), float(values.max())
    outside = float(((values < 0) | (values > 1)).mean())
    if outside > BEYOND and lowest >= 0 and largest < 2**16 and (values == values.round()).all():
        return _from_counts(values.astype(np.uint16), image, name, folder)
    if outside > BEYOND:
        raise _unknown(name, f"floats from {lowest:.4g} to {largest:.4g}")
    if outside:
        text = f"{name} has floats from {lowest:.4g} to {largest:.4g}: clipped to [0, 1]"
        _say(folder, "floats", text)
    return _gray(values, 1.0, image)


def _gray(values: np.ndarray, white: float, image: Image.Image) -> Image.Image:
    """Values from 0 to `white` as 8-bit RGB; the other way round if the file says so."""
    scaled = values.astype(np.float32) * np.float32(255 / white)
    if _tag(image, PHOTOMETRIC, 1) == 0:  # white is 0: Pillow turns only 8-bit pixels around
        scaled = 255 - scaled
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8)).convert("RGB")


def _lay_over(image: Image.Image, background: Color, name: str, folder: str) -> Image.Image:
    lowest, largest = image.getchannel("A").getextrema()
    colors = image.convert("RGB")
    if lowest == 255:
        return colors
    if largest == 0 and colors.getbbox() is not None:  # nothing would be left of the photo
        _say(folder, "hidden", f"{name} is wholly transparent: its colors are used as they are")
        return colors
    _say(folder, "alpha", f"{name} is transparent in part: it is laid over the color {background}")
    below = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(below, image).convert("RGB")


def _is_wide(image: Image.Image) -> bool:
    """Whether the channels have 16 bits, of which Pillow keeps the upper 8."""
    tiles = getattr(image, "tile", None)
    raw = str(tiles[0][3]) if tiles else ""
    return ";16" in raw or max(_tag(image, BITS, (8,))) == 16


def _check_range(image: Image.Image, name: str) -> None:
    """Raises UserError for 16-bit channels with 12 bits or fewer in them.

    At most 4 of the 8 bits that Pillow keeps would be left of them.
    """
    largest = max(high for _, high in image.convert("RGB").getextrema())  # type: ignore[misc]
    stated = _stated_largest(image)
    if largest < 16 or 0 < stated < 2**14:
        least = int(stated) or 256 * (largest + 1) - 1
        raise _unknown(name, f"16 bits a channel and no value beyond {least}")


def _stated_largest(image: Image.Image) -> float:
    """The largest value that the tags of a TIFF state; 0 if there is none."""
    return max(float(np.max(_tag(image, tag, 0))) for tag in LARGEST)


def _tag(image: Image.Image, tag: int, default: Any) -> Any:
    return getattr(image, "tag_v2", {}).get(tag, default)


def _unknown(name: str, what: str) -> UserError:
    return UserError(
        f"{name} with {what}, so that it is not known how bright white is",
        "a photo of 8 or full 16 bits, or of floats in [0, 1]",
        "export it as 8-bit JPEG or PNG, as bright as it should be",
    )


def _say(folder: str, kind: str, text: str) -> None:
    if unsaid := _unsaid(folder, kind):
        unsaid.clear()
        log.warning("%s", text)


@cache  # a scene has hundreds of photos of one kind
def _unsaid(folder: str, kind: str) -> list[str]:
    return [kind]
