"""What `predict` writes: Gaussians, depth and confidence, renderings, metrics, a sheet, a video."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...evaluate.depth import depth_metrics
from ...evaluate.metrics import psnr, ssim
from ...io.cameras.ours import Refinement, write_cameras
from ...io.gaussians.ply import save_ply
from ...io.images import to_uint8, write_image
from ...io.video import write_video
from ...progress import Track
from ...render import rasterize
from ...types import NO_OFFSET, Cameras, Gaussians, Origin, Rendering, Views
from ...view import trajectory
from ...view.figures import color_range, colorize_depth
from .depth_files import CAMERAS, write_confidence, write_numbers
from .folder import name_files
from .report import Report
from .sheet import make_confidence_row, make_depth_row, write_sheet
from .summary import average, write_summary

SHEET_COLUMNS, SHEET_HEIGHT = 4, 240  # images per row of the sheet, and their height in pixels
LEAST_SECONDS = 3.0  # of video
LEAST_SIDE = 240  # pixels of the video's shorter side: small predictions are drawn larger
STEADY = 0.5  # seconds over which a stabilized path is averaged


@dataclass(frozen=True)
class Result:
    """One reconstructed scene, in the unit of its input; `confidence` None: not known.

    `shown`: which of the context views have depth and Gaussians of their own, in their order.
    """

    context: Views
    shown: tuple[int, ...]
    held_out: Views | None
    depth: Float[Tensor, "batch view height width"]
    confidence: Float[Tensor, "batch view height width"] | None
    gaussians: Gaussians
    scale: float
    report: Report
    model: str
    steps: int | None
    most_anchors: int | None = None
    fusion: "Fusion | None" = None
    refined: Refinement | None = None
    precision: str = "float32"


@dataclass(frozen=True)
class Fusion:
    """What became of the Gaussians of groups of views, by the names of their photos.

    `fuse` is how: see `pmsplat.fuse`; None of one group, of which a budget alone left less. Of
    `given`, `floaters` that other groups see through were left out; `full` were left before
    `budget` made them fewer (None: there was none).
    """

    groups: tuple[tuple[str, ...], ...]
    fuse: str | None
    given: int
    floaters: int
    full: int
    budget: int | None


@dataclass(frozen=True)
class Summary:
    """What metrics.json says.

    `size` is (height, width); `scale` by how much larger the network saw the world; `held_out` the
    metrics of each photo that it was not shown, `means` theirs, and those of the context's depth
    where a sensor knows it; `report` whether the context views fit each other and the model.
    `origin` is where zero lies in the world of the input. `model` is as it was given; `steps` how
    many it took, None of one that predicts in a single pass; `most_anchors` in how many views it
    gathered all of a pass, at most, None of one in which each speaks for itself; `anchors` the
    context views that have depth and Gaussians of their own, None where all have. `fusion` is None
    where all views went through the network together and all Gaussians stayed. `refined` is how the
    cameras of the context were refined, None where they are as they were found; `precision` is that
    of the network.
    """

    context: tuple[str, ...]
    size: tuple[int, int]
    scale: float
    gaussians: int
    held_out: dict[str, dict[str, float]]
    means: dict[str, float]
    report: Report
    model: str
    steps: int | None = None
    origin: Origin = NO_OFFSET
    most_anchors: int | None = None
    anchors: tuple[str, ...] | None = None
    fusion: Fusion | None = None
    refined: Refinement | None = None
    precision: str = "float32"


def write_results(folder: Path, result: Result, track: Track) -> Summary:
    """Everything but the video, into a folder that exists."""
    # The context: Gaussians, depth, how sure that is
    colors = color_range(result.depth)
    depths = colorize_depth(result.depth[0], *colors).cpu()
    names = name_files(_names(result.context) + _names(result.held_out))
    count = result.context.images.shape[1]
    context, others = [names[i] for i in result.shown], names[count:]
    save_ply(result.gaussians, folder / "gaussians.ply")
    for name, colored, depth in zip(context, depths, result.depth[0].cpu(), strict=True):
        write_image(folder / "depth" / f"{name}.png", colored)
        write_numbers(folder / "depth", name, depth)
    if result.confidence is not None:
        for name, sure in zip(context, result.confidence[0], strict=True):
            write_confidence(folder, name, sure)
    # The other photos: what the Gaussians look like from there
    drawn, held_out = [], {}
    for i, name in enumerate(track(others, "rendering held-out photos", len(others))):
        assert result.held_out is not None
        rendering = draw(result, result.held_out.cameras.at([i]))
        photo = result.held_out.images[0, i]
        held_out[_names(result.held_out)[i]] = _compare(rendering, photo)
        write_image(folder / "render" / f"{name}.png", rendering.color[0, 0])
        rendered_depth = colorize_depth(rendering.depth[0, 0].cpu(), *colors)
        drawn.append([photo, rendering.color[0, 0].cpu(), rendered_depth])
    # All of it at a glance, and as numbers
    _write_sheet(folder, result, list(depths), drawn, colors)
    summary = Summary(
        context=tuple(_names(result.context)),
        size=result.context.size,
        scale=result.scale,
        gaussians=result.gaussians.means.shape[1],
        held_out=held_out,
        means=_means(result, held_out),
        report=result.report,
        model=result.model,
        steps=result.steps,
        origin=result.gaussians.origin,
        most_anchors=result.most_anchors,
        anchors=tuple(_names(_with_depth(result))) if len(context) < count else None,
        fusion=result.fusion,
        refined=result.refined,
        precision=result.precision,
    )
    shown = [views.cameras for views in (result.context, result.held_out) if views is not None]
    write_cameras(
        folder / CAMERAS,
        Cameras.joined(shown),
        _names(result.context) + _names(result.held_out),
        result.context.size,
        result.scale,
        origin=result.gaussians.origin,
        poses=result.report.poses,
        refined=result.refined,
    )
    write_summary(folder, summary)
    return summary


def draw(result: Result, cameras: Cameras, larger: int = 1) -> Rendering:
    """The Gaussians seen by `cameras`, `larger` times the size of the context, no gradients."""
    height, width = result.context.size
    with torch.no_grad():
        seen = cameras.to(result.gaussians.means.device)
        return rasterize(result.gaussians, seen, (height * larger, width * larger))


def video_path(cameras: Cameras, fps: int, seconds: float, stabilize: bool) -> Cameras:
    """A path through the cameras, `seconds` from each to the next."""
    legs = cameras.c2w.shape[1] - 1
    path = trajectory.through(cameras, round(fps * max(legs * seconds, LEAST_SECONDS)))
    return trajectory.stabilize(path, STEADY * fps) if stabilize else path


def write_video_along(path: Path, result: Result, cameras: Cameras, fps: int, track: Track) -> None:
    """The video that a camera on the path would take."""
    count = cameras.c2w.shape[1]
    larger = -(-LEAST_SIDE // min(result.context.size))

    def frames() -> Iterator[np.ndarray]:
        for i in track(range(count), "rendering the video", count):
            yield to_uint8(draw(result, cameras.at([i]), larger).color[0, 0])

    write_video(path, frames(), fps)


def _names(views: Views | None) -> list[str]:
    if views is None:
        return []
    assert views.names is not None, "photos of a scene have names"
    return list(views.names[0])


def _with_depth(result: Result) -> Views:
    """The context views that have depth."""
    return result.context.at(list(result.shown))


def _compare(rendering: Rendering, photo: Tensor) -> dict[str, float]:
    image = rendering.color[0, 0].cpu()
    return {
        "psnr": psnr(image, photo).item(),
        "ssim": ssim(image, photo).item(),
        "covered": rendering.alpha.mean().item(),
    }


def _means(result: Result, held_out: dict[str, dict[str, float]]) -> dict[str, float]:
    means = average(list(held_out.values()))
    known = _with_depth(result).depth
    if known is not None:
        depth = depth_metrics(result.depth.cpu(), known)
        if depth.pixels:
            means |= {"abs_rel": depth.abs_rel, "rmse": depth.rmse, "delta1": depth.delta1}
    return means


def _write_sheet(
    folder: Path,
    result: Result,
    depths: list[Tensor],
    drawn: list[list[Tensor]],
    colors: tuple[float, float],
) -> None:
    few = slice(0, SHEET_COLUMNS)
    images = _with_depth(result).images[0]
    label = "context" + f", {SHEET_COLUMNS} of {len(images)}" * (len(images) > SHEET_COLUMNS)
    rows = [
        (label, list(images[few])),
        make_depth_row("predicted depth", depths[few], colors, SHEET_HEIGHT),
    ]
    if result.confidence is not None:
        rows.append(make_confidence_row(result.confidence[0, few].cpu()))
    if drawn:
        step = -(-len(drawn) // SHEET_COLUMNS)
        columns = list(zip(*drawn[::step], strict=True))
        labels = ("held-out photo", "rendered", "rendered depth")
        rows += [(label, list(images)) for label, images in zip(labels, columns, strict=True)]
    write_sheet(folder, rows, SHEET_HEIGHT)
