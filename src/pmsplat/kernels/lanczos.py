"""Scaling of 8-bit photographs as by Pillow's LANCZOS, and cutting of the part that is kept."""

from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Size = tuple[int, int]
"""(height, width)"""
Path = Literal["pillow", "compiled"]


def resize(
    image: UInt8[np.ndarray, "height width 3"],
    size: Size,
    start: Size,
    window: Size,
    path: Path = "pillow",
) -> UInt8[np.ndarray, "h w 3"]:
    """What is inside a window, its upper left corner at `start`, of a photo scaled to `size`.

    `path`: "pillow" scales all of it, and is the definition. "compiled" gives the same bits in a
    third to a sixth of the time, but takes a second to load: for many photos. It is compared with
    Pillow once for each size, and where they differ (Pillow scales columns first where a photo is
    high and narrow) Pillow is used.
    """
    before = image.shape[0], image.shape[1]
    if size == before:
        return _cut(image, start, window)
    if path == "compiled" and _is_equal(before, size):
        from ._lanczos_cpu import resize as resize_compiled

        return resize_compiled(image, size, start, window).transpose(1, 2, 0)
    return _cut(_resize_pillow(image, size), start, window)


@lru_cache(maxsize=256)
def _is_equal(before: Size, size: Size) -> bool:
    """Whether both ways give the same bits, by a picture of noise, in which every pixel counts."""
    from ._lanczos_cpu import resize as resize_compiled

    noise = np.random.default_rng(0).integers(0, 256, (*before, 3), dtype=np.uint8)
    compiled = resize_compiled(noise, size, (0, 0), size)
    return np.array_equal(compiled.transpose(1, 2, 0), _resize_pillow(noise, size))


def _resize_pillow(image: np.ndarray, size: Size) -> np.ndarray:
    scaled = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.array(scaled)


def _cut(image: np.ndarray, start: Size, window: Size) -> np.ndarray:
    return image[start[0] : start[0] + window[0], start[1] : start[1] + window[1]]
