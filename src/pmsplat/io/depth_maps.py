"""Depth maps of any kind that photographs come with: images of counts or floats, and arrays."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from ..errors import UserError
from . import images
from .files import UNREADABLE_ARRAY

_ARRAYS = (".npy", ".npz")


@dataclass(frozen=True)
class Header:
    """(height, width) of a depth map, and whether its numbers have fractions: are no counts."""

    size: tuple[int, int]
    has_fractions: bool


def read_header(source: Path) -> Header:
    """What a depth map is; its numbers are not read.

    Raises UserError for what is missing, ends early, or is no depth map that is read here.
    """
    if source.suffix.lower() in _ARRAYS:
        depth = _load(source)
        return Header((depth.shape[0], depth.shape[1]), depth.dtype.kind == "f")
    if source.suffix.lower() == ".exr":
        raise UserError(
            f"{source} is OpenEXR, which is not read here",
            "16-bit PNG, .npy, .npz, or TIFF",
            "write it as one of these",
        )
    has_fractions = images.check_depth(source)
    return Header(images.image_size(source, upright=False), has_fractions)


def has_counts(source: Path | bytes) -> bool:
    """Whether a depth map is an image of counts, not of floats, and no array."""
    if isinstance(source, Path) and source.suffix.lower() in _ARRAYS:
        return False
    return not images.check_depth(source)


def read_depth(source: Path | bytes) -> Float[np.ndarray, "height width"]:
    """The numbers of a depth map, float32; 0 where they are none: negative or not finite.

    Errors as `read_header`.
    """
    if isinstance(source, Path) and source.suffix.lower() in _ARRAYS:
        depth = _load(source)
    else:
        depth = images.read_depth(source)
    depth = depth.astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def _load(source: Path) -> Shaped[np.ndarray, "height width"]:
    """The only array in a .npy or .npz file, with or without an axis of one channel."""
    try:
        depth = np.load(source, mmap_mode="r", allow_pickle=False)
        if not isinstance(depth, np.ndarray):
            with depth as arrays:
                (depth,) = arrays.values()
    except UNREADABLE_ARRAY as error:
        raise UserError(
            f"{source} cannot be read as depth ({error})",
            "one 2-D array",
            "write it with numpy.save, or leave it out of the camera file",
        ) from error
    if depth.ndim == 3 and 1 in (depth.shape[0], depth.shape[2]):
        depth = depth.reshape([side for side in depth.shape if side > 1])
    if depth.ndim != 2 or depth.dtype.kind not in "fui" or 0 in depth.shape:
        raise UserError(
            f"{source} has shape {list(depth.shape)} and type {depth.dtype}",
            "a 2-D array of numbers",
            "write one number per pixel, [height, width]",
        )
    return depth
