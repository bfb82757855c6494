"""What is measured of a single target, and the hashes by which anyone can tell its pixels again.

Raw results of every view with hashes of prediction and truth follow NerfBaselines (Kulhanek and
Sattler, arXiv 2406.17345).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..io.images import to_uint8
from ..types import Views


@dataclass(frozen=True)
class ViewRow:
    """One target: its name, metrics, and the SHA-256 of its pixels as drawn and as photographed.

    Pixels are 8-bit RGB, height x width x 3, without a header.
    """

    view: str
    values: dict[str, float]
    prediction: str | None = None
    truth: str | None = None


def list_views(target: Views, values: Mapping[str, Sequence[float]]) -> tuple[ViewRow, ...]:
    """A row for each target of one scene, by its name, or its number where it has none."""
    count = target.images.shape[1]
    names = target.names[0] if target.names else [str(i) for i in range(count)]
    return tuple(
        ViewRow(name, {metric: column[i] for metric, column in values.items()})
        for i, name in enumerate(names)
    )


def add_hashes(
    rows: Sequence[ViewRow],
    drawn: Float[Tensor, "target 3 height width"],
    photographed: Float[Tensor, "target 3 height width"],
) -> tuple[ViewRow, ...]:
    """The rows with the hashes of their pixels; a GPU sends those of all targets at once."""
    pairs = zip(rows, hash_pixels(drawn), hash_pixels(photographed), strict=True)
    return tuple(replace(row, prediction=ours, truth=theirs) for row, ours, theirs in pairs)


def hash_pixels(images: Float[Tensor, "view 3 height width"]) -> list[str]:
    """The SHA-256 of each image as 8-bit RGB, height x width x 3: clipped to [0, 1] and rounded."""
    pixels = np.ascontiguousarray(to_uint8(images))
    return [hashlib.sha256(image.data).hexdigest() for image in pixels]
