"""What `depth` writes: depth maps as numbers, counts and colours, their errors, a sheet."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import UserError
from ...evaluate.depth import DepthMetrics, depth_metrics, median_scale
from ...io.cameras.ours import DepthFiles, write_cameras
from ...io.files import write_array, write_text
from ...io.images import count_scale, to_counts, write_depth, write_image
from ...progress import Track
from ...scene import Scene
from ...types import Cameras, Views
from ...view import figures
from .folder import MARK

SHEET_COLUMNS, SHEET_HEIGHT = 6, 200  # photos of the sheet, and their height in pixels
SAMPLE = 10_000  # depths of each photo from which the range of colours is found
WORST = 0.25  # relative error: the darkest of the sheet


@dataclass(frozen=True)
class Accuracy:
    """How far depth is from the sensor's: of each photo that has it, and the mean over those."""

    photos: dict[str, DepthMetrics]
    mean: DepthMetrics


@dataclass(frozen=True)
class Summary:
    """What metrics.json says.

    `size` is (height, width); `scale` by how much larger the network saw the world; `depth_scale`
    is one count of the PNG files and `colors` near and far of the coloured ones, in the unit of the
    cameras. `median_scaled` compares after each photo's depth was multiplied until its median was
    the sensor's. Both are None where no photo has sensor depth.
    """

    photos: tuple[str, ...]
    size: tuple[int, int]
    scale: float
    depth_scale: float
    colors: tuple[float, float]
    as_predicted: Accuracy | None
    median_scaled: Accuracy | None


@dataclass(frozen=True)
class DepthMap:
    """The depth of photo `index` of a scene; its numbers are in `folder`, under the name `stem`.

    `sample` holds depths from all over it, the nearest and the farthest among them; the metrics are
    None where no sensor knows better.
    """

    index: int
    name: str
    stem: str
    camera: Cameras
    sample: Float[Tensor, " sample"]
    as_predicted: DepthMetrics | None
    median_scaled: DepthMetrics | None

    def read(self, folder: Path) -> Float[Tensor, "height width"]:
        return torch.from_numpy(np.load(folder / "depth" / f"{self.stem}.npy"))


def keep(
    folder: Path, photo: Views, depth: Float[Tensor, "height width"], index: int, stem: str
) -> DepthMap:
    """Writes the numbers of one photo's depth (`photo`: batch 1, view 1); says what else counts.

    Raises UserError where the network gave none.
    """
    assert photo.names is not None, "photos of a scene have names"
    name = photo.names[0][0]
    if not (depth.isfinite() & (depth >= 0)).all() or not (depth > 0).any():
        raise UserError(
            f"the model's depth of {name} is negative, not a number, or nowhere",
            "a model that gives depth",
            "use another checkpoint: this one's training has failed, or its file is damaged",
        )
    write_array(folder / "depth" / f"{stem}.npy", depth.numpy())
    known = depth[depth > 0]
    some = known[:: max(1, len(known) // SAMPLE)]
    as_predicted = median_scaled = None
    if photo.depth is not None and (photo.depth > 0).any():
        truth = photo.depth[0, 0]
        as_predicted = depth_metrics(depth, truth)
        median_scaled = depth_metrics(depth * median_scale(depth, truth), truth)
    sample = torch.cat([some, known.min()[None], known.max()[None]])
    return DepthMap(index, name, stem, photo.cameras, sample, as_predicted, median_scaled)


def write(
    folder: Path,
    scene: Scene,
    size: tuple[int, int],
    maps: list[DepthMap],
    scale: float,
    track: Track,
) -> Summary:
    """Everything that is made of the kept numbers."""
    sample = torch.cat([found.sample for found in maps])
    depth_scale = count_scale(sample.min().item(), sample.max().item())
    near, far = figures.color_range(sample)
    for found in track(maps, "writing depth", len(maps)):
        depth = found.read(folder)
        counts = to_counts(depth.numpy(), depth_scale)
        write_depth(folder / "depth" / f"{found.stem}.png", counts)
        colored = figures.colorize_depth(depth, near, far)
        legend = figures.beside_bar(colored, near, far)
        write_image(folder / "color" / f"{found.stem}.png", legend)
    _write_sheet(folder, scene, size, maps, (near, far))
    parts = [
        [getattr(found.camera, name) for found in maps] for name in ("c2w", "K", "near", "far")
    ]
    write_cameras(
        folder / "cameras.json",
        Cameras(*(torch.cat(part, dim=1) for part in parts)),
        [found.name for found in maps],
        size,
        scale,
        DepthFiles(tuple(f"depth/{found.stem}.png" for found in maps), depth_scale),
    )
    summary = Summary(
        photos=tuple(found.name for found in maps),
        size=size,
        scale=scale,
        depth_scale=depth_scale,
        colors=(near, far),
        as_predicted=_accuracy({found.name: found.as_predicted for found in maps}),
        median_scaled=_accuracy({found.name: found.median_scaled for found in maps}),
    )
    write_text(folder / MARK, json.dumps(asdict(summary), indent=1) + "\n")
    return summary


def _accuracy(found: dict[str, DepthMetrics | None]) -> Accuracy | None:
    photos = {name: metrics for name, metrics in found.items() if metrics is not None}
    if not photos:
        return None
    rows = list(photos.values())
    mean = DepthMetrics(
        abs_rel=sum(row.abs_rel for row in rows) / len(rows),
        rmse=sum(row.rmse for row in rows) / len(rows),
        delta1=sum(row.delta1 for row in rows) / len(rows),
        pixels=sum(row.pixels for row in rows),
    )
    return Accuracy(photos, mean)


def _write_sheet(
    folder: Path,
    scene: Scene,
    size: tuple[int, int],
    maps: list[DepthMap],
    colors: tuple[float, float],
) -> None:
    """A few of the photos, spread over all, above what is known of them."""
    columns = torch.linspace(0, len(maps) - 1, min(SHEET_COLUMNS, len(maps))).round().int().tolist()
    shown = [maps[i] for i in columns]
    photos = scene.views([found.index for found in shown], size)
    depths = torch.stack([found.read(folder) for found in shown])
    near, far = colors
    bar = figures.color_bar(near, far, SHEET_HEIGHT)
    rows = [
        (f"{len(shown)} of {len(maps)} photos", list(photos.images[0])),
        (
            f"predicted depth, {near:.3g} to {far:.3g}",
            [*figures.colorize_depth(depths, near, far), bar],
        ),
    ]
    if photos.depth is not None:
        truth = photos.depth[0]
        rows += [
            ("sensor depth, in the same colours", list(figures.colorize_depth(truth, near, far))),
            (
                f"relative error of the prediction, from 0 (white) to {WORST:.0%} or more (red)",
                list(figures.colorize_error(depths, truth, WORST)),
            ),
        ]
    figures.contact_sheet(rows, folder / "sheet.png", height=SHEET_HEIGHT)
