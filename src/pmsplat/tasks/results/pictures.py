"""What `render` writes: colour, depth, alpha, normals, attributes; then a sheet and a video."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...evaluate.metrics import psnr
from ...geometry import camera
from ...io.files import write_array
from ...io.images import FULL_SCALE, read_image, to_counts, write_depth, write_image
from ...io.video import write_video
from ...progress import Track
from ...scene.fit import fit_image, to_tensor
from ...types import NO_OFFSET, Cameras, Origin, Rendering
from ...view import figures
from ..cameras import Picture
from .depth_files import (
    Scale,
    Spread,
    measure_spread,
    read_numbers,
    write_colors,
    write_counts,
    write_depth_cameras,
    write_numbers,
)
from .sheet import choose_columns, make_depth_row, write_sheet
from .summary import average, write_summary

DEPTHS = ("depth", "depth_median")  # folders; the second only if it was wanted
SURE = 0.5  # alpha from which a pixel shows a surface: for normals, coloured depth and PSNR inside


@dataclass(frozen=True)
class Summary:
    """What metrics.json says.

    `size` is (height, width); `depth_scale` is one count of depth/*.png and depth_median/*.png and
    `colors` near and far of the coloured ones, in the unit of the scene. `views` holds of each
    picture its mean alpha (`covered`) and, where there is a photo, `psnr`, and `psnr_inside`: over
    the pixels with an alpha of at least one half (absent where there are none). `means` are theirs.
    `origin` is where zero lies in the world of the scene.
    """

    gaussians: int
    size: tuple[int, int]
    depth_scale: float
    colors: tuple[float, float]
    views: dict[str, dict[str, float]]
    means: dict[str, float]
    origin: Origin = NO_OFFSET


@dataclass(frozen=True)
class Drawing:
    """A picture that was drawn: its files are called `stem`.

    The sample of `spread` is of its surfaces, the ends are of any pixel.
    """

    picture: Picture
    stem: str
    spread: Spread
    metrics: dict[str, float]

    def surface(self, folder: Path) -> Float[Tensor, "height width"]:
        """Expected depth where the picture shows a surface, elsewhere 0."""
        depth, alpha = (read_numbers(folder / kind, self.stem) for kind in ("depth", "alpha"))
        return torch.where(alpha >= SURE, depth, 0)

    def pixels(self, folder: Path, kind: str) -> np.ndarray:
        return read_image(folder / kind / f"{self.stem}.png")


def write_drawing(folder: Path, picture: Picture, stem: str, rendering: Rendering) -> Drawing:
    """Writes what one rendering (batch 1, target 1) shows, as numbers and as pictures."""
    color, depth, alpha = rendering.color[0, 0], rendering.depth[0, 0], rendering.alpha[0, 0]
    surface = torch.where(alpha >= SURE, depth, 0)
    normals = camera.normals(surface, picture.camera.K[0, 0])
    write_image(folder / "color" / f"{stem}.png", color)
    write_image(folder / "normals" / f"{stem}.png", figures.colorize_normals(normals))
    write_array(folder / "normals" / f"{stem}.npy", normals.half().numpy())
    write_depth(folder / "alpha" / f"{stem}.png", to_counts(alpha.numpy(), 1 / FULL_SCALE))
    write_numbers(folder / "alpha", stem, alpha)
    depths = [depth, *(() if rendering.depth_median is None else rendering.depth_median[0])]
    for kind, values in zip(DEPTHS, depths, strict=False):
        write_numbers(folder / kind, stem, values)
    metrics = {"covered": alpha.mean().item()}
    if picture.photo is not None:
        photo = to_tensor([fit_image(picture.photo.pixels(), picture.size)])[0, 0]
        metrics |= _compare(color, photo, alpha)
    return Drawing(picture, stem, measure_spread(surface, *depths), metrics)


def write_results(
    folder: Path,
    drawings: list[Drawing],
    gaussians: int,
    fps: float,
    track: Track,
    origin: Origin = NO_OFFSET,
) -> Summary:
    """Everything that is made of the numbers on disk; no video where `fps` is 0.

    `origin` is where the zero of the pictures' cameras lies in the world of the scene.
    """
    scale = Scale.fit([drawing.spread for drawing in drawings])
    stems = [drawing.stem for drawing in drawings]
    for drawing in track(drawings, "writing depth", len(drawings)):
        for kind in DEPTHS:
            if (folder / kind).is_dir():
                write_counts(folder / kind, drawing.stem, scale)
        path = folder / "depth_color" / f"{drawing.stem}.png"
        write_colors(path, drawing.surface(folder), scale)
    _write_sheet(folder, drawings, scale.colors)
    if fps:
        write_video(folder / "video.mp4", _read_frames(folder, drawings, track), fps)
    size = drawings[0].picture.size
    cameras = Cameras.joined([drawing.picture.camera for drawing in drawings])
    names = [f"color/{stem}.png" for stem in stems]
    write_depth_cameras(folder, cameras, names, stems, size, scale, origin=origin)
    summary = Summary(
        gaussians=gaussians,
        size=size,
        depth_scale=scale.count,
        colors=scale.colors,
        views={drawing.picture.name: drawing.metrics for drawing in drawings},
        means=average([drawing.metrics for drawing in drawings]),
        origin=origin,
    )
    write_summary(folder, summary)
    return summary


def _compare(color: Tensor, photo: Tensor, alpha: Tensor) -> dict[str, float]:
    found = {"psnr": psnr(color, photo).item()}
    inside = alpha >= SURE
    if inside.any():
        columns = [image[:, inside][:, None] for image in (color, photo)]
        found["psnr_inside"] = psnr(*columns).item()
    return found


def _write_sheet(folder: Path, drawings: list[Drawing], colors: tuple[float, float]) -> None:
    """A few of the pictures, above what else is known of them."""
    shown = [drawings[i] for i in choose_columns(len(drawings))]
    photos = [
        fit_image(drawing.picture.photo.pixels(), drawing.picture.size)
        for drawing in shown
        if drawing.picture.photo is not None
    ]
    depths = [figures.colorize_depth(drawing.surface(folder), *colors) for drawing in shown]
    drawn = [[drawing.pixels(folder, kind) for drawing in shown] for kind in ("color", "normals")]
    rows = [
        (f"{len(shown)} of {len(drawings)} pictures", list(to_tensor(drawn[0])[0])),
        make_depth_row("expected depth", depths, colors),
        ("normals of that depth", list(to_tensor(drawn[1])[0])),
    ]
    if photos:
        rows.insert(0, ("photos", list(to_tensor(photos)[0])))
    write_sheet(folder, rows)


def _read_frames(folder: Path, drawings: list[Drawing], track: Track) -> Iterator[np.ndarray]:
    """Colour beside coloured depth, with its legend."""
    for drawing in track(drawings, "writing the video", len(drawings)):
        both = [drawing.pixels(folder, kind) for kind in ("color", "depth_color")]
        yield np.concatenate(both, axis=1)
