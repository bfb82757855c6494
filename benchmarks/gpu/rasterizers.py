"""The renderers on Gaussians of a room, forward and with gradients, beside gsplat itself."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pmsplat import render
from pmsplat.types import Cameras, Gaussians

from .. import rasterizers
from . import room
from .clock import measured
from .process import Case, Run, Skipped

OURS = ("triton", "gsplat")
BARE = "bare gsplat"  # the package itself, without what our door adds
PASSES = ("forward", "f+b rgb", "f+b rgb+depth")


@dataclass(frozen=True)
class Scene:
    """Gaussians of `views` source views of `size`, drawn into `targets` cameras."""

    scenes: int
    views: int
    targets: int
    size: tuple[int, int]
    passes: tuple[str, ...] = PASSES


SCENES = {  # those of the peers' figures: 131,072 Gaussians; 688,128; 5,898,240
    "a1": Scene(1, 2, 4, (256, 256)),
    "a8": Scene(8, 2, 4, (256, 256)),
    "b": Scene(1, 6, 8, (256, 448)),
    "c": Scene(1, 12, 1, (512, 960), ("forward",)),
}
TINY = {"a1": Scene(1, 2, 1, (16, 16)), "c": Scene(1, 2, 1, (16, 16), ("forward",))}


def cases(run: Run) -> Iterator[Case]:
    """Errors beside the reference first, then times."""
    for backend in OURS:
        yield Case(f"{backend} errors", lambda backend=backend: errors(backend, run))
    for name, scene in (TINY if run.tiny else SCENES).items():
        for way in scene.passes:
            for backend in (*OURS, BARE):

                def measure(
                    backend: str = backend, scene: Scene = scene, way: str = way
                ) -> dict[str, Any]:
                    return times(backend, scene, way, run)

                yield Case(f"{name} {backend} {way}", measure)


def require(backend: str, device: str) -> None:
    """Skipped with what stands in the way of a renderer."""
    if backend == BARE:
        if importlib.util.find_spec("gsplat") is None:
            raise Skipped("gsplat is not installed")
        backend = "gsplat"
    if backend not in render.backends():
        raise Skipped(f"this version has no renderer {backend!r}")
    problem = render.obstacle(backend, torch.device(device))
    if problem is not None:
        raise Skipped(f"{problem.got}; wanted {problem.wanted}")


def errors(backend: str, run: Run) -> dict[str, Any]:
    """Relative errors of images and gradients beside the reference in float64, on a small scene."""
    require(backend, run.device)
    size, views = (16, 1) if run.tiny else (64, 2)
    found = rasterizers.errors(backend, torch.device(run.device), size, views)
    return {name: float(f"{value:.2e}") for name, value in found.items()}


def times(backend: str, scene: Scene, way: str, run: Run) -> dict[str, Any]:
    """One pass: all scenes into all of their targets."""
    call = _pass(backend, scene, way, run)
    found = measured(lambda _: call(), kernels=True)
    if way == "forward":
        found["coverage"] = round(float(call().mean()), 3)
    return found


def draw_once(backend: str, scene: Scene, way: str, run: Run) -> None:
    """The same without measuring."""
    _pass(backend, scene, way, run)()


def _pass(backend: str, scene: Scene, way: str, run: Run) -> Callable[[], Tensor]:
    """A function that draws, with gradients where the way has them, and gives alpha."""
    require(backend, run.device)
    gaussians = room.gaussians(scene.scenes, scene.views, *scene.size, run.device)
    targets = room.cameras(scene.targets, *scene.size, run.device, between=True)
    targets = targets.map(lambda one: one.repeat(scene.scenes, *[1] * (one.dim() - 1)))
    with_depth = way.endswith("depth")
    draw = _bare if backend == BARE else _door(backend)

    def forward() -> Tensor:
        with torch.no_grad():
            return draw(gaussians, targets, scene.size, True)[2]

    if way == "forward":
        return forward
    leaves = gaussians.map(lambda one: one.requires_grad_())

    def step() -> Tensor:
        leaves.map(_forget)
        color, depth, alpha = draw(leaves, targets, scene.size, with_depth)
        loss = color.square().mean()
        if with_depth:
            loss = loss + 0.1 * depth.mean()
        loss.backward()
        return alpha

    return step


def _forget(leaf: Tensor) -> Tensor:
    leaf.grad = None
    return leaf


Draw = Callable[[Gaussians, Cameras, tuple[int, int], bool], tuple[Tensor, Tensor, Tensor]]


def _door(backend: str) -> Draw:
    """Color, depth and alpha through `rasterize`, which always blends all three."""

    def draw(
        gaussians: Gaussians, targets: Cameras, size: tuple[int, int], _: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        drawn = render.rasterize(gaussians, targets, size, backend)
        return drawn.color, drawn.depth, drawn.alpha

    return draw


def _bare(
    gaussians: Gaussians, targets: Cameras, size: tuple[int, int], with_depth: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by the call that gsplat's own users write."""
    from pmsplat.geometry import camera, se3

    gsplat: Any = importlib.import_module("gsplat")
    height, width = size
    drawn, alpha, _ = gsplat.rasterization(
        gaussians.means, gaussians.quats_wxyz, gaussians.scales, gaussians.opacities,
        gaussians.sh, se3.invert(targets.c2w), camera.K_px(targets.K, height, width),
        width, height, near_plane=0.1, sh_degree=gaussians.sh_degree, packed=False,
        render_mode="RGB+ED" if with_depth else "RGB",
    )  # fmt: skip
    return drawn[..., :3], drawn[..., -1], alpha
