"""What `render` writes: colour, depth, alpha, normals, attributes; then a sheet and a video."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...evaluate.metrics import psnr
from ...geometry import camera
from ...io.cameras.ours import DepthFiles, write_cameras
from ...io.files import write_array, write_text
from ...io.images import FULL_SCALE, count_scale, read_image, to_counts, write_depth, write_image
from ...io.video import write_video
from ...progress import Track
from ...scene.fit import fit_image, to_tensor
from ...types import Cameras, Rendering
from ...view import figures
from ..cameras import Picture
from .folder import MARK

SHEET_COLUMNS, SHEET_HEIGHT = 6, 200  # pictures of the sheet, and their height in pixels
SAMPLE = 10_000  # depths of each picture from which the range of colours is found
SURE = 0.5  # alpha from which a pixel shows a surface: for normals, coloured depth and PSNR inside


@dataclass(frozen=True)
class Summary:
    """What metrics.json says.

    `size` is (height, width); `depth_scale` is one count of depth/*.png and depth_median/*.png and
    `colors` near and far of the coloured ones, in the unit of the scene. `views` holds of each
    picture its mean alpha (`covered`) and, where there is a photo, `psnr`, and `psnr_inside`: over
    the pixels with an alpha of at least one half (absent where there are none). `means` are theirs.
    """

    gaussians: int
    size: tuple[int, int]
    depth_scale: float
    colors: tuple[float, float]
    views: dict[str, dict[str, float]]
    means: dict[str, float]


@dataclass(frozen=True)
class Drawing:
    """A picture that was drawn: its files are called `stem`.

    `sample` are depths from all over its surfaces, `ends` the nearest and the farthest depth of
    any pixel; both are empty where nothing is seen.
    """

    picture: Picture
    stem: str
    sample: Float[Tensor, " sample"]
    ends: Float[Tensor, " end"]
    metrics: dict[str, float]

    def surface(self, folder: Path) -> Float[Tensor, "height width"]:
        """Expected depth where the picture shows a surface, elsewhere 0."""
        depth = torch.from_numpy(np.load(folder / "depth" / f"{self.stem}.npy"))
        alpha = torch.from_numpy(np.load(folder / "alpha" / f"{self.stem}.npy"))
        return torch.where(alpha >= SURE, depth, 0)

    def pixels(self, folder: Path, kind: str) -> np.ndarray:
        return read_image(folder / kind / f"{self.stem}.png")


def keep(folder: Path, picture: Picture, stem: str, rendering: Rendering) -> Drawing:
    """Writes what one rendering (batch 1, target 1) shows, as numbers and as pictures."""
    assert rendering.depth_median is not None
    color, depth, alpha = rendering.color[0, 0], rendering.depth[0, 0], rendering.alpha[0, 0]
    surface = torch.where(alpha >= SURE, depth, 0)
    normals = camera.normals(surface, picture.camera.K[0, 0])
    median = rendering.depth_median[0, 0]
    write_image(folder / "color" / f"{stem}.png", color)
    write_image(folder / "normals" / f"{stem}.png", figures.colorize_normals(normals))
    write_depth(folder / "alpha" / f"{stem}.png", to_counts(alpha.numpy(), 1 / FULL_SCALE))
    arrays = {"depth": depth, "depth_median": median, "alpha": alpha, "normals": normals.half()}
    for kind, values in arrays.items():
        write_array(folder / kind / f"{stem}.npy", values.numpy())
    known, some = torch.cat([depth[depth > 0], median[median > 0]]), surface[surface > 0]
    metrics = {"covered": alpha.mean().item()}
    if picture.photo is not None:
        photo = to_tensor([fit_image(picture.photo.pixels(), picture.size)])[0, 0]
        metrics |= _compare(color, photo, alpha)
    return Drawing(
        picture,
        stem,
        sample=some[:: max(1, len(some) // SAMPLE)],
        ends=torch.stack([known.min(), known.max()]) if len(known) else known,
        metrics=metrics,
    )


def write(
    folder: Path, drawings: list[Drawing], gaussians: int, fps: float, track: Track
) -> Summary:
    """Everything that is made of the kept numbers; no video where `fps` is 0."""
    size = drawings[0].picture.size
    ends = torch.cat([drawing.ends for drawing in drawings])
    depth_scale = count_scale(ends.min().item(), ends.max().item())
    near, far = figures.color_range(torch.cat([drawing.sample for drawing in drawings]))
    for drawing in track(drawings, "writing depth", len(drawings)):
        name = f"{drawing.stem}.png"
        for kind in ("depth", "depth_median"):
            depth = np.load((folder / kind / name).with_suffix(".npy"))
            write_depth(folder / kind / name, to_counts(depth, depth_scale))
        colored = figures.colorize_depth(drawing.surface(folder), near, far)
        write_image(folder / "depth_color" / name, figures.beside_bar(colored, near, far))
    _write_sheet(folder, drawings, (near, far))
    if fps:
        write_video(folder / "video.mp4", _frames(folder, drawings, track), fps)
    write_cameras(
        folder / "cameras.json",
        Cameras.joined([drawing.picture.camera for drawing in drawings]),
        [f"color/{drawing.stem}.png" for drawing in drawings],
        size,
        depth=DepthFiles(tuple(f"depth/{drawing.stem}.png" for drawing in drawings), depth_scale),
    )
    summary = Summary(
        gaussians=gaussians,
        size=size,
        depth_scale=depth_scale,
        colors=(near, far),
        views={drawing.picture.name: drawing.metrics for drawing in drawings},
        means=_means([drawing.metrics for drawing in drawings]),
    )
    write_text(folder / MARK, json.dumps(asdict(summary), indent=1) + "\n")
    return summary


def _compare(color: Tensor, photo: Tensor, alpha: Tensor) -> dict[str, float]:
    found = {"psnr": psnr(color, photo).item()}
    inside = alpha >= SURE
    if inside.any():
        columns = [image[:, inside][:, None] for image in (color, photo)]
        found["psnr_inside"] = psnr(*columns).item()
    return found


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in columns.items()}


def _write_sheet(folder: Path, drawings: list[Drawing], colors: tuple[float, float]) -> None:
    """A few of the pictures, spread over all, above what else is known of them."""
    count = min(SHEET_COLUMNS, len(drawings))
    spread = torch.linspace(0, len(drawings) - 1, count).round().int().tolist()
    shown = [drawings[i] for i in spread]
    photos = [
        fit_image(drawing.picture.photo.pixels(), drawing.picture.size)
        for drawing in shown
        if drawing.picture.photo is not None
    ]
    near, far = colors
    depths = [figures.colorize_depth(drawing.surface(folder), near, far) for drawing in shown]
    drawn = [[drawing.pixels(folder, kind) for drawing in shown] for kind in ("color", "normals")]
    rows = [
        (f"{count} of {len(drawings)} pictures", list(to_tensor(drawn[0])[0])),
        (
            f"expected depth, {near:.3g} to {far:.3g}",
            [*depths, figures.color_bar(near, far, SHEET_HEIGHT)],
        ),
        ("normals of that depth", list(to_tensor(drawn[1])[0])),
    ]
    if photos:
        rows.insert(0, ("photos", list(to_tensor(photos)[0])))
    figures.contact_sheet(rows, folder / "sheet.png", height=SHEET_HEIGHT)


def _frames(folder: Path, drawings: list[Drawing], track: Track) -> Iterator[np.ndarray]:
    """Colour beside coloured depth, with its legend."""
    for drawing in track(drawings, "writing the video", len(drawings)):
        both = [drawing.pixels(folder, kind) for kind in ("color", "depth_color")]
        yield np.concatenate(both, axis=1)
