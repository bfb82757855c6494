"""Depth on disk: numbers, 16-bit counts, colours with a legend, and the cameras that name them.

Beside it lies how sure the network is of it, as 16-bit counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import UserError
from ...io.cameras.ours import DepthFiles, write_cameras
from ...io.files import write_array
from ...io.images import (
    FULL_SCALE,
    count_scale,
    read_depth,
    to_counts,
    write_depth,
    write_image,
)
from ...types import NO_OFFSET, Cameras, Origin
from ...view import figures

CAMERAS, CONFIDENCE = "cameras.json", "confidence"
SAMPLE = 10_000  # depths of each picture from which the range of colours is found


@dataclass(frozen=True)
class Spread:
    """Which depths a picture has: some from all over it, the nearest and the farthest.

    The sample decides the range of colours, the ends the unit of the counts; both are empty where
    there is no depth.
    """

    sample: Float[Tensor, " sample"]
    ends: Float[Tensor, " end"]


@dataclass(frozen=True)
class Scale:
    """How the depth of a folder becomes pictures, in the unit of its cameras.

    Depth is `count` times a value of the 16-bit files; `colors` are near and far of the colours.
    """

    count: float
    colors: tuple[float, float]

    @staticmethod
    def fit(spreads: Sequence[Spread]) -> "Scale":
        """The scale that all pictures fit into; at least one has depth."""
        ends = torch.cat([spread.ends for spread in spreads])
        colors = figures.color_range(torch.cat([spread.sample for spread in spreads]))
        return Scale(count_scale(ends.min().item(), ends.max().item()), colors)


def measure_spread(shown: Float[Tensor, "*shape"], *others: Float[Tensor, "*shape"]) -> Spread:
    """The spread of the depth that is shown in colours, and of other depth that is only counted."""
    colored = shown[shown > 0]
    known = torch.cat([colored, *(depth[depth > 0] for depth in others)])
    ends = torch.stack([known.min(), known.max()]) if len(known) else known
    return Spread(colored[:: max(1, len(colored) // SAMPLE)], ends)


def check_depth(depth: Float[Tensor, "*shape"], name: str) -> None:
    """Raises UserError where the depth of the photo `name` is no depth, or there is none."""
    if not (depth.isfinite() & (depth >= 0)).all() or not (depth > 0).any():
        raise UserError(
            f"the model's depth of {name} is negative, not a number, or nowhere",
            "a model that gives depth",
            "use another checkpoint: this one's training has failed, or its file is damaged",
        )


def write_numbers(folder: Path, stem: str, depth: Float[Tensor, "height width"]) -> None:
    """STEM.npy of a folder: the depth itself, float32, 0 = none."""
    write_array(folder / f"{stem}.npy", depth.cpu().numpy())


def read_numbers(folder: Path, stem: str) -> Float[Tensor, "height width"]:
    """What `write_numbers` wrote."""
    return torch.from_numpy(np.load(folder / f"{stem}.npy"))


def write_counts(folder: Path, stem: str, scale: Scale) -> None:
    """STEM.png beside the numbers: 16 bits, depth = value * `scale.count`, 0 = none."""
    counts = to_counts(read_numbers(folder, stem).numpy(), scale.count)
    write_depth(folder / f"{stem}.png", counts)


def write_confidence(folder: Path, stem: str, confidence: Float[Tensor, "height width"]) -> None:
    """confidence/STEM.png of a folder of results: 16 bits, confidence = value / 65535."""
    counts = to_counts(confidence.float().cpu().numpy(), 1 / FULL_SCALE)
    write_depth(folder / CONFIDENCE / f"{stem}.png", counts)


def read_confidence(folder: Path, stem: str) -> Float[Tensor, "height width"]:
    """What `write_confidence` wrote, to half a count."""
    counts = read_depth(folder / CONFIDENCE / f"{stem}.png")
    return torch.from_numpy(counts.astype(np.float32)) / FULL_SCALE


def write_colors(path: Path, depth: Float[Tensor, "height width"], scale: Scale) -> None:
    """The depth in colours, with their legend at the right side."""
    colored = figures.colorize_depth(depth, *scale.colors)
    write_image(path, figures.beside_bar(colored, *scale.colors))


def write_depth_cameras(
    folder: Path,
    cameras: Cameras,
    names: Sequence[str],
    stems: Sequence[str],
    size: tuple[int, int],
    scale: Scale,
    model_scale: float = 1.0,
    origin: Origin = NO_OFFSET,
    poses: str | None = None,
) -> None:
    """cameras.json of pictures called `names`, whose counts are depth/STEM.png."""
    files = DepthFiles(tuple(f"depth/{stem}.png" for stem in stems), scale.count)
    write_cameras(folder / CAMERAS, cameras, names, size, model_scale, files, origin, poses)
