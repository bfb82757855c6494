"""Reads the .spz streams that glTF files hold: KHR_gaussian_splatting_compression_spz and _spz_2.

Drafts of Khronos and Cesium, 2025: https://github.com/KhronosGroup/glTF/pull/2531, and #2490 for
the earlier KHR_spz_gaussian_splats_compression. A bufferView holds a whole .spz file, whose values
replace the attributes of the primitive. The drafts want it unpacked to the axes left, up, front,
which turns it half about y; Cesium's engines and converters store and draw the numbers as they are.
The bounds that the POSITION accessor must give decide which of the two a file means.
"""

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...types import Gaussians
from . import spz
from ._gltf_document import HALF_TURN, Document

log = logging.getLogger(__name__)

SPZ_EXTENSIONS = (
    "KHR_gaussian_splatting_compression_spz_2",
    "KHR_gaussian_splatting_compression_spz",
    "KHR_spz_gaussian_splats_compression",
)
ABOUT_Y = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64))


def find_stream(document: Document, extensions: dict[str, Any], base: str) -> np.ndarray | None:
    """Returns the bytes of the .spz that a primitive holds, in its extension `base` or beside it.

    None where it holds none.
    """
    inner = document.get_object(document.get_object(extensions, base), "extensions")
    for name in SPZ_EXTENSIONS:
        for place in (inner, extensions):
            if name in place:
                return document.load_view(document.get_object(place, name).get("bufferView"))
    return None


def read_stream(document: Document, stream: np.ndarray, attributes: dict[str, Any]) -> Gaussians:
    """Reads the Gaussians of a primitive in the axes of glTF, from its stream."""
    gaussians = spz.decode_bytes(document.path, stream.tobytes(), placed=False)
    gaussians = gaussians.transformed(HALF_TURN)
    if "POSITION" not in attributes:
        return gaussians
    accessor = document.get_entry("accessors", attributes["POSITION"])
    count = document.get_count(accessor, "count")
    if count < gaussians.means.shape[1]:  # fewer are there where some cannot be drawn
        raise document.damage_error(
            f"{gaussians.means.shape[1]} Gaussians in the .spz of a primitive of {count}"
        )
    if {"min", "max"} <= accessor.keys() and gaussians.means.shape[1]:
        bounds = torch.stack(
            [document.get_numbers(accessor, key, [0.0] * 3) for key in ("min", "max")]
        )
        origin = torch.tensor(gaussians.origin, dtype=torch.float64)
        if _is_turned(document, gaussians.means[0] + origin, bounds):
            return gaussians.transformed(ABOUT_Y)
    return gaussians


def _is_turned(document: Document, means: Tensor, bounds: Tensor) -> bool:
    """Returns whether `bounds` [2, 3] are those of the means after half a turn about y."""
    low, high = means.amin(dim=0), means.amax(dim=0)
    stored = torch.stack([low, high])
    turned = torch.stack([low, high]).where(
        torch.tensor([False, True, False]), torch.stack([-high, -low])
    )
    misses = [float((bounds - guess).abs().max()) for guess in (stored, turned)]
    if min(misses) > 0.05 * float((high - low).max()) + 1e-3:
        log.warning(
            "%s: the bounds of POSITION are not those of its .spz, whose axes are taken as stored",
            document.path,
        )
        return False
    return misses[1] < misses[0]
