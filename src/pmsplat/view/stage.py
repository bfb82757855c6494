"""Scenes placed beside each other and drawn by our rasteriser, at the pace that the machine has."""

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
from ..types import Cameras, Gaussians, Rendering
from . import figures, trajectory

KINDS: tuple[str, ...] = ("Colour", "Depth", "Alpha")
COLOR, DEPTH, ALPHA = KINDS
EXTENT = 8.0  # radius to which scenes are scaled: browsers hold covariances in 16 bits
INSIDE = 0.95  # share of the Gaussians within that radius
SAMPLE = 100_000  # Gaussians that tell where a scene is
SURE = 0.5  # alpha from which a pixel shows a surface that has a depth
WIDEST = 6e4  # variance that 16 bits hold, in the scaled unit
LEAST_PIXELS = 96 * 128  # of a picture, however slow the machine
LEARNING = 0.25, 4.0  # how much smaller or larger a picture may be than the one before it
RANGE_HEIGHT = 90  # pixels of the pictures that tell the depths of a video


@dataclass(frozen=True)
class Exhibit:
    """One scene to show: Gaussians (batch 1), and the cameras and pictures that belong to it.

    `names`, `sizes` (height, width) and `thumbnails` (None: none is at hand) are those of the
    cameras, batch 1 too.
    """

    name: str
    gaussians: Gaussians
    cameras: Cameras | None = None
    names: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    thumbnails: tuple[UInt8[np.ndarray, "height width 3"] | None, ...] = ()

    def scaled(self, factor: float) -> "Exhibit":
        """The same scene in a world `factor` times as large."""
        cameras = None if self.cameras is None else self.cameras.scaled(factor)
        return replace(self, gaussians=self.gaussians.scaled(factor), cameras=cameras)


class Stage:
    """Scenes with a pose and a visibility each, drawn together.

    Scenes are scaled to a radius of about EXTENT, so nothing that looks at them needs to know their
    unit; `unit` is the length that 1 stands for, a power of two, so pictures stay the same to the
    bit. Depths that leave this class are in the unit of the scenes. All methods may be called from
    several threads; one picture is drawn at a time.
    """

    def __init__(
        self,
        exhibits: list[Exhibit],
        backend: str = "auto",
        device: torch.device | str = "cpu",
    ) -> None:
        centres = torch.cat([_some(exhibit.gaussians) for exhibit in exhibits])
        middle = centres.median(dim=0).values
        radius = (centres - middle).norm(dim=-1).quantile(INSIDE).item()
        self.unit = 2.0 ** round(math.log2(radius / EXTENT)) if radius > 0 else 1.0
        self.exhibits = [exhibit.scaled(1 / self.unit) for exhibit in exhibits]
        self.middles = [_some(exhibit.gaussians).median(dim=0).values for exhibit in self.exhibits]
        self.poses: list[Float[Tensor, "4 4"]] = [torch.eye(4) for _ in exhibits]
        self.visible = [True for _ in exhibits]
        self._backend, self._device = backend, torch.device(device)
        self._together: tuple[object, Gaussians] | None = None
        self._drawing = threading.Lock()

    def place(self, index: int, pose: Float[Tensor, "4 4"]) -> None:
        """Moves a scene: a rigid motion from its own world to the common one."""
        self.poses = [pose if i == index else old for i, old in enumerate(self.poses)]

    def show(self, index: int, visible: bool) -> None:
        """Shows or hides a scene."""
        self.visible = [visible if i == index else old for i, old in enumerate(self.visible)]

    @torch.no_grad()
    def rendering(self, camera: Cameras, size: tuple[int, int]) -> Rendering:
        """What a camera (batch 1, view 1) sees of the visible scenes, on the CPU; scaled unit."""
        with self._drawing:
            gaussians = self._gaussians()
            seen = camera.to(gaussians.means.device)
            return rasterize(gaussians, seen, size, self._backend).to("cpu")

    @torch.no_grad()
    def thumbnail(self, index: int, view: int, height: int) -> UInt8[np.ndarray, "height width 3"]:
        """What one of the cameras of a scene sees of that scene alone."""
        exhibit = self.exhibits[index]
        assert exhibit.cameras is not None
        tall, wide = exhibit.sizes[view]
        size = (height, max(1, round(height * wide / tall)))
        with self._drawing:
            gaussians = exhibit.gaussians.to(self._device)
            seen = exhibit.cameras.at([view]).to(self._device)
            return to_uint8(rasterize(gaussians, seen, size, self._backend).color[0, 0])

    def picture(
        self,
        camera: Cameras,
        size: tuple[int, int],
        kind: str,
        depths: tuple[float, float] | None = None,
    ) -> tuple[UInt8[np.ndarray, "height width 3"], tuple[float, float]]:
        """A picture for people, and the (near, far) of its depth colours, in the scenes' unit.

        The colour is over black; alpha is black to white; depth, where alpha is one half or more,
        is coloured as `figures.colorize_depth` does from near to far: `depths`, or those of this
        picture.
        """
        rendering = self.rendering(camera, size)
        alpha = rendering.alpha[0, 0]
        surface = torch.where(alpha >= SURE, rendering.depth[0, 0] * self.unit, 0)
        near, far = depths or figures.color_range(surface)
        if kind == DEPTH:
            return to_uint8(figures.colorize_depth(surface, near, far)), (near, far)
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
        """Writes a video of the way through `stops`; `watch(i)` is called before every frame.

        Depth has one range of colours, that of the stops. What `watch` raises stops the recording,
        and then there is no file.
        """
        way = trajectory.through(stops, frames)
        depths = self._depths(stops, size) if kind == DEPTH else None

        def drawn() -> Iterator[np.ndarray]:
            for i in range(frames):
                watch(i)
                yield self.picture(way.at([i]), size, kind, depths)[0]

        write_video(path, drawn(), fps)

    def _depths(self, stops: Cameras, size: tuple[int, int]) -> tuple[float, float]:
        small = (RANGE_HEIGHT, max(1, round(RANGE_HEIGHT * size[1] / size[0])))
        drawn = [self.rendering(stops.at([i]), small) for i in range(stops.c2w.shape[1])]
        depth = torch.cat([torch.where(one.alpha >= SURE, one.depth, 0) for one in drawn])
        return figures.color_range(depth * self.unit)

    def _gaussians(self) -> Gaussians:
        """All visible scenes where they stand, kept until one of them moves."""
        state = tuple(
            (i, tuple(self.poses[i].flatten().tolist()))
            for i in range(len(self.exhibits))
            if self.visible[i]
        )
        if self._together is None or self._together[0] != state:
            parts = [self._placed(i) for i, _ in state]
            self._together = state, Gaussians.joined(parts or [self._nothing()])
        return self._together[1]

    def _nothing(self) -> Gaussians:
        return self.exhibits[0].gaussians.map(lambda tensor: tensor[:, :0]).to(self._device)

    def _placed(self, index: int) -> Gaussians:
        gaussians, pose = self.exhibits[index].gaussians.to(self._device), self.poses[index]
        return gaussians if torch.equal(pose, torch.eye(4)) else gaussians.transformed(pose)


class Pace:
    """How large a picture may be so that it is drawn in about so many seconds, as measured."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._pixels = seconds, float(LEAST_PIXELS)

    def size(self, most: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in the shape of `most` and not larger."""
        factor = min(1.0, math.sqrt(self._pixels / (most[0] * most[1])))
        return max(1, round(most[0] * factor)), max(1, round(most[1] * factor))

    def measured(self, size: tuple[int, int], seconds: float) -> None:
        """Learns from a picture that was drawn."""
        least, most = LEARNING
        change = min(max(self._seconds / max(seconds, 1e-6), least), most)
        self._pixels = max(size[0] * size[1] * change, LEAST_PIXELS)

    def timed(self, size: tuple[int, int], draw: Callable[[], object]) -> None:
        """Draws, and learns from how long it took."""
        start = time.perf_counter()
        draw()
        self.measured(size, time.perf_counter() - start)


@dataclass(frozen=True)
class Splats:
    """Gaussians as a browser draws them: from every side in their mean colour, in numpy."""

    centers: Float[np.ndarray, "gaussian 3"]
    covariances: Float[np.ndarray, "gaussian 3 3"]
    rgbs: Float[np.ndarray, "gaussian 3"]
    opacities: Float[np.ndarray, "gaussian 1"]


@torch.no_grad()
def for_browser(gaussians: Gaussians, most: int) -> Splats:
    """At most so many of the Gaussians, those that cover most: opacity times their largest face.

    Gaussians with a NaN or an infinity are left out, as `rasterize` does; their order is kept.
    """
    parts = (gaussians.means, gaussians.scales, gaussians.quats_wxyz, gaussians.sh.flatten(2))
    finite = torch.cat([*parts, gaussians.opacities[..., None]], dim=-1).isfinite().all(dim=-1)[0]
    chosen = finite.nonzero()[:, 0]
    if len(chosen) > most:
        face = gaussians.scales[0, chosen].sort(dim=-1).values[:, 1:].prod(dim=-1)
        strongest = (gaussians.opacities[0, chosen] * face).topk(most).indices
        chosen = chosen[strongest].sort().values
    few = gaussians.map(lambda tensor: tensor[:, chosen])
    still = sh.color(few.sh[0, :, :1], torch.zeros_like(few.means[0]))
    return Splats(
        centers=few.means[0].numpy(),
        covariances=few.covariances[0].clamp(-WIDEST, WIDEST).numpy(),
        rgbs=still.clamp(0, 1).numpy(),
        opacities=few.opacities[0, :, None].clamp(0, 1).numpy(),
    )


def lens(field_of_view: float, size: tuple[int, int]) -> Float[Tensor, "3 3"]:
    """Intrinsics of a picture with so much of a vertical field of view, in radians."""
    focal = 0.5 / math.tan(field_of_view / 2)
    K = torch.tensor([[focal * size[0] / size[1], 0, 0.5], [0, focal, 0.5], [0, 0, 1]])
    return K.float()


def looking(
    c2w: Float[Tensor, "4 4"], field_of_view: float, size: tuple[int, int], near: float
) -> Cameras:
    """One camera (batch 1, view 1) for a picture of that size."""
    at = torch.full((1, 1), near)
    return Cameras(c2w[None, None].float(), lens(field_of_view, size)[None, None], at, 1e4 * at)


def _some(gaussians: Gaussians) -> Float[Tensor, "gaussian 3"]:
    """Centres of Gaussians from all over a scene."""
    means = gaussians.means[0].float()
    means = means[means.isfinite().all(dim=-1)]
    return means[:: max(1, len(means) // SAMPLE)]
