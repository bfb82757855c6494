"""What `depth` writes: depth maps as numbers, counts and colours, their errors, a sheet.

How sure the network is of them was written by then; the sheet shows it.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ...evaluate.depth import DepthMetrics, depth_metrics, median_scale
from ...progress import Track
from ...scene import Scene
from ...types import NO_OFFSET, Cameras, Origin, Views
from ...view import figures
from .depth_files import (
    CONFIDENCE,
    Scale,
    Spread,
    check_depth,
    measure_spread,
    read_confidence,
    read_numbers,
    write_colors,
    write_counts,
    write_depth_cameras,
    write_numbers,
)
from .report import Report
from .sheet import choose_columns, make_confidence_row, make_depth_row, write_sheet
from .summary import average, write_summary

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
    the sensor's. Both are None where no photo has sensor depth. `report`: whether the views fit
    each other and the model. `origin` is where the zero of cameras.json lies in the world of the
    input.
    """

    photos: tuple[str, ...]
    size: tuple[int, int]
    scale: float
    depth_scale: float
    colors: tuple[float, float]
    as_predicted: Accuracy | None
    median_scaled: Accuracy | None
    report: Report
    origin: Origin = NO_OFFSET
    precision: str = "float32"


@dataclass(frozen=True)
class DepthMap:
    """The depth of photo `index` of a scene; its numbers are in `folder`, under the name `stem`.

    The metrics are None where no sensor knows better.
    """

    index: int
    name: str
    stem: str
    camera: Cameras
    spread: Spread
    as_predicted: DepthMetrics | None
    median_scaled: DepthMetrics | None

    def read(self, folder: Path) -> Float[Tensor, "height width"]:
        return read_numbers(folder / "depth", self.stem)


def write_map(
    folder: Path, photo: Views, depth: Float[Tensor, "height width"], index: int, stem: str
) -> DepthMap:
    """Writes the numbers of one photo's depth (`photo`: batch 1, view 1), and measures them.

    Raises UserError where the network gave none.
    """
    assert photo.names is not None, "photos of a scene have names"
    name = photo.names[0][0]
    check_depth(depth, name)
    write_numbers(folder / "depth", stem, depth)
    spread = measure_spread(depth)
    spread = replace(spread, sample=torch.cat([spread.sample, spread.ends]))
    as_predicted = median_scaled = None
    if photo.depth is not None and (photo.depth > 0).any():
        truth = photo.depth[0, 0]
        as_predicted = depth_metrics(depth, truth)
        median_scaled = depth_metrics(depth * median_scale(depth, truth), truth)
    return DepthMap(index, name, stem, photo.cameras, spread, as_predicted, median_scaled)


def write_results(
    folder: Path,
    scene: Scene,
    size: tuple[int, int],
    maps: list[DepthMap],
    model_scale: float,
    report: Report,
    track: Track,
    precision: str = "float32",
) -> Summary:
    """Everything that is made of the numbers on disk."""
    scale = Scale.fit([found.spread for found in maps])
    for found in track(maps, "writing depth", len(maps)):
        write_counts(folder / "depth", found.stem, scale)
        write_colors(folder / "color" / f"{found.stem}.png", found.read(folder), scale)
    _write_sheet(folder, scene, size, maps, scale.colors)
    names, stems = [found.name for found in maps], [found.stem for found in maps]
    cameras = Cameras.joined([found.camera for found in maps])
    write_depth_cameras(
        folder, cameras, names, stems, size, scale, model_scale, scene.origin, scene.poses
    )
    summary = Summary(
        photos=tuple(names),
        size=size,
        scale=model_scale,
        depth_scale=scale.count,
        colors=scale.colors,
        as_predicted=_average({found.name: found.as_predicted for found in maps}),
        median_scaled=_average({found.name: found.median_scaled for found in maps}),
        report=report,
        origin=scene.origin,
        precision=precision,
    )
    write_summary(folder, summary)
    return summary


def _average(found: dict[str, DepthMetrics | None]) -> Accuracy | None:
    photos = {name: metrics for name, metrics in found.items() if metrics is not None}
    if not photos:
        return None
    mean = average([asdict(metrics) for metrics in photos.values()])
    pixels = sum(metrics.pixels for metrics in photos.values())
    return Accuracy(photos, DepthMetrics(mean["abs_rel"], mean["rmse"], mean["delta1"], pixels))


def _write_sheet(
    folder: Path,
    scene: Scene,
    size: tuple[int, int],
    maps: list[DepthMap],
    colors: tuple[float, float],
) -> None:
    """A few of the photos, above what is known of them."""
    shown = [maps[i] for i in choose_columns(len(maps))]
    photos = scene.views([found.index for found in shown], size)
    depths = torch.stack([found.read(folder) for found in shown])
    rows = [
        (f"{len(shown)} of {len(maps)} photos", list(photos.images[0])),
        make_depth_row("predicted depth", figures.colorize_depth(depths, *colors), colors),
    ]
    if (folder / CONFIDENCE).is_dir():
        sure = torch.stack([read_confidence(folder, found.stem) for found in shown])
        rows.append(make_confidence_row(sure))
    if photos.depth is not None:
        truth = photos.depth[0]
        rows += [
            ("sensor depth, in the same colours", list(figures.colorize_depth(truth, *colors))),
            (
                f"relative error of the prediction, from 0 (white) to {WORST:.0%} or more (red)",
                list(figures.colorize_error(depths, truth, WORST)),
            ),
        ]
    write_sheet(folder, rows)
