"""A scene to move in: its Gaussians for the viewer of a page, and a video between its views.

They lie beside the pictures of the scene (see `pictures`):

scene.compressed.ply    the Gaussians that a viewer draws, 16 bytes each
start.webp              its start: what it draws there
between.mp4             from the first context view through all to the last, and back
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..geometry.pruning import choose_opaque
from ..io.files import write_bytes
from ..io.images import encode_image, to_uint8
from ..io.video import write_video
from ..render import rasterize
from ..types import Cameras, Gaussians, StepOutput, Views
from ..view.orbit import upward
from ..view.pages.splats import Start, flatten, pack
from ..view.trajectory import through
from .metrics import psnr

SCENE, START, VIDEO = "scene.compressed.ply", "start.webp", "between.mp4"
BUDGET = 80_000  # Gaussians that a viewer gets: 1.7 MB on a page
FRAMES, FPS = 40, 20  # of a video, one way
QUALITY, PICTURE_QUALITY = 23, 90  # of H.264, of WebP
MOST = 99.0  # dB, also of pictures that do not differ


@dataclass(frozen=True)
class Drawing:
    """How a model's Gaussians are drawn (see `protocol.pipeline`)."""

    backend: str = "auto"
    background: Sequence[float] | None = None
    keep: float = 1.0


@dataclass(frozen=True)
class Tour:
    """What a page needs to turn a scene and to fly through it.

    The viewer starts at the target `view` with `gaussians` of the `of` that the model draws; `psnr`
    compares both there. `seconds` is how long the video lasts, 0 for none, where there is but one
    context view.
    """

    view: str
    start: Start
    gaussians: int
    of: int
    psnr: float
    seconds: float

    @property
    def files(self) -> tuple[str, ...]:
        return (SCENE, START, VIDEO) if self.seconds else (SCENE, START)


def write_tour(folder: Path, step: StepOutput, target: int, drawing: Drawing) -> Tour | None:
    """Writes the files of one scene (batch 1) into a folder; None for a prediction without
    Gaussians. The viewer starts at this target."""
    if not step.prediction.gaussians:
        return None
    gaussians, views = step.prediction.gaussians[-1], step.batch.target
    if drawing.keep < 1:
        gaussians = gaussians.take(choose_opaque(gaussians.opacities, drawing.keep, None))
    start = _find_start(step, target, drawing)
    cameras = views.cameras.at([target])

    # Reduce the Gaussians to what a viewer draws, and say what that changes.
    flat = flatten(gaussians, start, BUDGET)
    drawn = _draw(flat, cameras, views.size, drawing)[0]
    whole = _draw(gaussians, cameras, views.size, drawing)[0]
    write_bytes(folder / SCENE, pack(flat.to("cpu")))
    picture = np.ascontiguousarray(to_uint8(drawn))
    write_bytes(folder / START, encode_image(picture, "webp", PICTURE_QUALITY))
    loss = psnr(drawn.clamp(0, 1), whole.clamp(0, 1)).item()

    seconds = _write_video(folder / VIDEO, gaussians, step.batch.context, views.size, drawing)
    names = views.names[0] if views.names is not None else None
    return Tour(
        view=names[target] if names else str(target),
        start=start,
        gaussians=flat.means.shape[1],
        of=gaussians.means.shape[1],
        psnr=min(loss, MOST),
        seconds=seconds,
    )


def parse_tour(content: Mapping[str, Any]) -> Tour:
    """A tour as JSON has it; ValueError, TypeError or KeyError for what is none."""
    start = content["start"]
    height, width = map(int, start["size"])
    return Tour(
        view=str(content["view"]),
        start=Start(
            c2w=_read_matrix(start["c2w"], 4),
            K=_read_matrix(start["K"], 3),
            size=(height, width),
            near=float(start["near"]),
            focus=float(start["focus"]),
            up=_read_row(start["up"], 3),
            background=_read_row(start["background"], 3),
        ),
        gaussians=int(content["gaussians"]),
        of=int(content["of"]),
        psnr=float(content["psnr"]),
        seconds=float(content["seconds"]),
    )


def _find_start(step: StepOutput, target: int, drawing: Drawing) -> Start:
    """At a target, turning about what is in the middle of its depths."""
    cameras = step.batch.target.cameras
    drawn, behind = step.rendering.depth[0, target], step.rendering.alpha[0, target] > 0.5
    near, far = cameras.near[0, target].item(), cameras.far[0, target].item()
    focus = drawn[behind].median().item() if behind.any() else math.sqrt(near * far)
    return Start(
        c2w=_list(cameras.c2w[0, target]),
        K=_list(cameras.K[0, target]),
        size=step.batch.target.size,
        near=near,
        focus=focus,
        up=tuple(upward(step.batch.context.cameras.c2w[0]).tolist()),
        background=tuple(drawing.background or (0.0, 0.0, 0.0)),
    )


def _draw(
    gaussians: Gaussians, cameras: Cameras, size: tuple[int, int], drawing: Drawing
) -> Tensor:
    """Colors [view, 3, height, width]."""
    background = drawing.background
    behind = None if background is None else gaussians.means.new_tensor(list(background))
    return rasterize(gaussians, cameras, size, drawing.backend, behind).color[0]


def _write_video(
    path: Path, gaussians: Gaussians, context: Views, size: tuple[int, int], drawing: Drawing
) -> float:
    """Its seconds; 0 where there is no way to go."""
    count = context.images.shape[1]
    if count < 2:
        return 0.0
    way = through(context.cameras.at(_order(context)), FRAMES)
    frames = []
    for i in range(FRAMES):  # one by one: memory for many Gaussians and large pictures
        frames.append(to_uint8(_draw(gaussians, way.at([i]), size, drawing)[0].cpu()))
    frames += frames[-2:0:-1]
    write_video(path, frames, FPS, QUALITY)
    return len(frames) / FPS


def _order(context: Views) -> list[int]:
    """By the numbers of the frames, where names are numbers."""
    names = context.names[0] if context.names is not None else ()
    count = context.images.shape[1]
    if not names or not all(map(str.isdecimal, names)):
        return list(range(count))
    return sorted(range(count), key=lambda i: int(names[i]))


def _list(matrix: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, matrix.detach().cpu().double().tolist()))


def _read_row(values: Sequence[float], count: int) -> tuple[float, ...]:
    row = tuple(map(float, values))
    if len(row) != count or not all(map(math.isfinite, row)):
        raise ValueError(f"{values} are not {count} numbers")
    return row


def _read_matrix(rows: Sequence[Sequence[float]], size: int) -> tuple[tuple[float, ...], ...]:
    if len(rows) != size:
        raise ValueError(f"{len(rows)} rows, not {size}")
    return tuple(_read_row(row, size) for row in rows)
