"""Scenes placed beside each other and drawn by `rasterize`, at a size that suits the machine."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..geometry import sh
from ..io.images import to_uint8
from ..io.video import write_video
from ..render import rasterize
from ..types import CLASSIC, Cameras, DrawingRules, Gaussians, Rendering
from . import figures, trajectory

KINDS: tuple[str, ...] = ("Colour", "Depth", "Alpha", "Confidence")
COLOR, DEPTH, ALPHA, CONFIDENCE = KINDS
EXTENT = 8.0  # radius to which scenes are scaled: browsers store covariances in 16 bits
INSIDE = 0.95  # share of the Gaussians within that radius
SAMPLE = 100_000  # number of Gaussians that determine where a scene is
MIN_ALPHA = 0.5  # least alpha of a pixel with a depth, or a confidence
MAX_VARIANCE = 6e4  # largest variance that 16 bits can hold, in the scaled unit
MIN_PIXELS = 96 * 128  # least pixels of a picture, however slow the machine
CHANGE = 0.25, 4.0  # least and greatest ratio of pixels from one picture to the next
RANGE_HEIGHT = 90  # pixels: height of the pictures that give the depth range of a video


@dataclass(frozen=True)
class Exhibit:
    """One scene to show: Gaussians (batch 1), and its cameras (batch 1) with their pictures.

    `names`, `sizes` (height, width) and `thumbnails` (None if there is none) have one entry for
    each camera.
    """

    name: str
    gaussians: Gaussians
    cameras: Cameras | None = None
    names: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    thumbnails: tuple[UInt8[np.ndarray, "height width 3"] | None, ...] = ()

    def scaled(self, factor: float) -> "Exhibit":
        """Returns the scene in a world `factor` times as large."""
        cameras = None if self.cameras is None else self.cameras.scaled(factor)
        return replace(self, gaussians=self.gaussians.scaled(factor), cameras=cameras)


class Stage:
    """Draws several scenes together, each with a pose and a visibility.

    Scenes are scaled to a radius of about EXTENT, which makes the page independent of their unit.
    `unit` is the length of 1 scaled unit in the unit of the scenes; it is a power of two, so that
    scaling does not change any pixel. Depths that methods return are in the unit of the scenes. All
    methods may be called from several threads; one picture is drawn at a time.
    """

    def __init__(
        self,
        exhibits: list[Exhibit],
        backend: str = "auto",
        device: torch.device | str = "cpu",
    ) -> None:
        centers = torch.cat([_sample_centers(exhibit.gaussians) for exhibit in exhibits])
        middle = centers.median(dim=0).values
        radius = (centers - middle).norm(dim=-1).quantile(INSIDE).item()
        self.unit = 2.0 ** round(math.log2(radius / EXTENT)) if radius > 0 else 1.0
        self.exhibits = [exhibit.scaled(1 / self.unit) for exhibit in exhibits]
        self.middles = [
            _sample_centers(exhibit.gaussians).median(dim=0).values for exhibit in self.exhibits
        ]
        self.poses: list[Float[Tensor, "4 4"]] = [torch.eye(4) for _ in exhibits]
        self.visible = [True for _ in exhibits]
        self._backend, self._device = backend, torch.device(device)
        self._joined: tuple[object, Gaussians] | None = None
        self._lock = threading.Lock()

    def place(self, index: int, pose: Float[Tensor, "4 4"]) -> None:
        """Moves a scene; `pose` is a rigid motion from its own world to the common one."""
        self.poses = [pose if i == index else old for i, old in enumerate(self.poses)]

    def show(self, index: int, visible: bool) -> None:
        """Shows or hides a scene."""
        self.visible = [visible if i == index else old for i, old in enumerate(self.visible)]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of pictures that can be drawn: of confidence where all scenes have it."""
        sure = all(exhibit.gaussians.confidence is not None for exhibit in self.exhibits)
        return KINDS if sure else tuple(kind for kind in KINDS if kind != CONFIDENCE)

    @torch.no_grad()
    def render(self, camera: Cameras, size: tuple[int, int], kind: str = COLOR) -> Rendering:
        """Renders the visible scenes for a camera (batch 1, view 1) to the CPU, in scaled units.

        With what `kind` needs besides colour, depth and alpha: confidence as an attribute.
        """
        with self._lock:
            gaussians = self._join_visible()
            camera = camera.to(gaussians.means.device)
            rules = _without_planes(gaussians.rules)
            blended = None
            if kind == CONFIDENCE:
                assert gaussians.confidence is not None, "it is one of `kinds`"
                blended = gaussians.confidence[..., None]
            return rasterize(
                gaussians, camera, size, self._backend, rules=rules, attributes=blended
            ).to("cpu")

    @torch.no_grad()
    def draw_thumbnail(
        self, index: int, view: int, height: int
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Draws a scene alone, as one of its cameras sees it."""
        exhibit = self.exhibits[index]
        assert exhibit.cameras is not None
        tall, wide = exhibit.sizes[view]
        size = (height, max(1, round(height * wide / tall)))
        with self._lock:
            gaussians = exhibit.gaussians.to(self._device)
            camera = exhibit.cameras.at([view]).to(self._device)
            return to_uint8(rasterize(gaussians, camera, size, self._backend).color[0, 0])

    def draw_picture(
        self,
        camera: Cameras,
        size: tuple[int, int],
        kind: str,
        depths: tuple[float, float] | None = None,
    ) -> tuple[UInt8[np.ndarray, "height width 3"], tuple[float, float]]:
        """Draws a kind of picture; also returns (near, far) of its depths, in the scenes' unit.

        Colour is over black; alpha is black to white. Depth is coloured by
        `figures.colorize_depth`, where alpha is MIN_ALPHA or more, from near to far: `depths`, or
        those of this picture; there, confidence, the mean by weight, by `colorize_confidence`.
        """
        rendering = self.render(camera, size, kind)
        alpha = rendering.alpha[0, 0]
        surface = torch.where(alpha >= MIN_ALPHA, rendering.depth[0, 0] * self.unit, 0)
        near, far = depths or figures.color_range(surface)
        if kind == DEPTH:
            return to_uint8(figures.colorize_depth(surface, near, far)), (near, far)
        if kind == CONFIDENCE:
            assert rendering.attributes is not None
            sure = torch.where(alpha >= MIN_ALPHA, rendering.attributes[0, 0, 0] / alpha, torch.nan)
            return to_uint8(figures.colorize_confidence(sure)), (near, far)
        image = rendering.color[0, 0] if kind == COLOR else alpha.expand(3, -1, -1)
        return to_uint8(image), (near, far)

    def record(
        self,
        path: Path,
        stops: Cameras,
        frames: int,
        fps: float,
        size: tuple[int, int],
        kind: str,
        watch: Callable[[int], None],
    ) -> None:
        """Writes a video of the path through `stops`; calls `watch(i)` before each frame.

        All frames share one range of depth colours, that of the stops. An exception from `watch`
        stops the recording and leaves no file.
        """
        way = trajectory.through(stops, frames)
        depths = self._find_depth_range(stops, size) if kind == DEPTH else None

        def draw_frames() -> Iterator[np.ndarray]:
            for i in range(frames):
                watch(i)
                yield self.draw_picture(way.at([i]), size, kind, depths)[0]

        write_video(path, draw_frames(), fps)

    def _find_depth_range(self, stops: Cameras, size: tuple[int, int]) -> tuple[float, float]:
        small = (RANGE_HEIGHT, max(1, round(RANGE_HEIGHT * size[1] / size[0])))
        renderings = [self.render(stops.at([i]), small) for i in range(stops.c2w.shape[1])]
        depth = torch.cat([torch.where(r.alpha >= MIN_ALPHA, r.depth, 0) for r in renderings])
        return figures.color_range(depth * self.unit)

    def _join_visible(self) -> Gaussians:
        """Returns all visible scenes at their poses; cached until one of them changes."""
        state = tuple(
            (i, tuple(self.poses[i].flatten().tolist()))
            for i in range(len(self.exhibits))
            if self.visible[i]
        )
        if self._joined is None or self._joined[0] != state:
            parts = [self._transform(i) for i, _ in state]
            self._joined = state, Gaussians.joined(parts or [self._make_empty()])
        return self._joined[1]

    def _make_empty(self) -> Gaussians:
        return self.exhibits[0].gaussians.map(lambda tensor: tensor[:, :0]).to(self._device)

    def _transform(self, index: int) -> Gaussians:
        gaussians, pose = self.exhibits[index].gaussians.to(self._device), self.poses[index]
        return gaussians if torch.equal(pose, torch.eye(4)) else gaussians.transformed(pose)


class Pace:
    """Chooses the size of pictures so that each is drawn in about `seconds`, as measured."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._pixels = seconds, float(MIN_PIXELS)

    def size(self, largest: tuple[int, int]) -> tuple[int, int]:
        """Returns a (height, width) with the aspect ratio of `largest`, and no larger."""
        factor = min(1.0, math.sqrt(self._pixels / (largest[0] * largest[1])))
        return max(1, round(largest[0] * factor)), max(1, round(largest[1] * factor))

    def update(self, size: tuple[int, int], seconds: float) -> None:
        """Adapts the size to the time that a picture took."""
        least, most = CHANGE
        change = min(max(self._seconds / max(seconds, 1e-6), least), most)
        self._pixels = max(size[0] * size[1] * change, MIN_PIXELS)

    def measure(self, size: tuple[int, int], draw: Callable[[], object]) -> None:
        """Calls `draw` for a picture of a size, and adapts to the time that it took."""
        start = time.perf_counter()
        draw()
        self.update(size, time.perf_counter() - start)


@dataclass(frozen=True)
class BrowserSplats:
    """Gaussians as a browser draws them, in numpy: one colour from all directions."""

    centers: Float[np.ndarray, "gaussian 3"]
    covariances: Float[np.ndarray, "gaussian 3 3"]
    rgbs: Float[np.ndarray, "gaussian 3"]
    opacities: Float[np.ndarray, "gaussian 1"]


@torch.no_grad()
def select_for_browser(gaussians: Gaussians, most: int) -> BrowserSplats:
    """Selects the `most` Gaussians that cover most: opacity times their largest cross section.

    Leaves out Gaussians with a NaN or an infinity, as `rasterize` does; keeps their order.
    """
    parts = (gaussians.means, gaussians.scales, gaussians.quats_wxyz, gaussians.sh.flatten(2))
    finite = torch.cat([*parts, gaussians.opacities[..., None]], dim=-1).isfinite().all(dim=-1)[0]
    chosen = finite.nonzero()[:, 0]
    if len(chosen) > most:
        face = gaussians.scales[0, chosen].sort(dim=-1).values[:, 1:].prod(dim=-1)
        strongest = (gaussians.opacities[0, chosen] * face).topk(most).indices
        chosen = chosen[strongest].sort().values
    few = gaussians.map(lambda tensor: tensor[:, chosen])
    rgbs = sh.color(few.sh[0, :, :1], torch.zeros_like(few.means[0]))
    return BrowserSplats(
        centers=few.means[0].numpy(),
        covariances=few.covariances[0].clamp(-MAX_VARIANCE, MAX_VARIANCE).numpy(),
        rgbs=rgbs.clamp(0, 1).numpy(),
        opacities=few.opacities[0, :, None].clamp(0, 1).numpy(),
    )


def make_intrinsics(field_of_view: float, size: tuple[int, int]) -> Float[Tensor, "3 3"]:
    """Returns K for a vertical field of view in radians and square pixels."""
    focal = 0.5 / math.tan(field_of_view / 2)
    K = torch.tensor([[focal * size[0] / size[1], 0, 0.5], [0, focal, 0.5], [0, 0, 1]])
    return K.float()


def _without_planes(rules: DrawingRules) -> DrawingRules:
    """Returns the rules for cameras that anyone may move, whose near and far no training had."""
    return replace(rules, near=min(rules.near, CLASSIC.near), far=math.inf)


def make_camera(
    c2w: Float[Tensor, "4 4"], field_of_view: float, size: tuple[int, int], near: float
) -> Cameras:
    """Returns a camera (batch 1, view 1) for a picture of that size; far is 10,000 times near."""
    K = make_intrinsics(field_of_view, size)
    nears = torch.full((1, 1), near)
    return Cameras(c2w[None, None].float(), K[None, None], nears, 1e4 * nears)


def _sample_centers(gaussians: Gaussians) -> Float[Tensor, "gaussian 3"]:
    """Returns the centres of about SAMPLE Gaussians from all over a scene."""
    means = gaussians.means[0].float()
    means = means[means.isfinite().all(dim=-1)]
    return means[:: max(1, len(means) // SAMPLE)]
