"""Depth Anything 3 as a teacher: depth of several views at once, unprojected by their cameras.

Lin et al., "Depth Anything 3: Recovering the Visual Space from Any Views", 2025, run by its
authors' own code (ByteDance-Seed/Depth-Anything-3).

Its cameras are OpenCV world-to-camera with intrinsics in pixels, the principal point of a centered
camera at width/2: ours inverted, and times the size. As its own `inference` does, known poses are
given relative to the first camera, in the median distance from it; what comes back is in a unit of
the network's, which follows from where it places the cameras.
"""

import os
import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import UserError
from ...geometry import camera, se3
from ...geometry.constants import constant
from ...geometry.products import matmul
from ...io.weights import Source
from ...types import Cameras, Pointmap, PosedDepth, Views
from ..imagenet import MEAN, STD
from . import _network

CODE = "depth-anything-3==0.1.1 addict"
NONCOMMERCIAL = "CC BY-NC 4.0: no commercial use (DA3-BASE permits it)"
SOURCES = {
    "DA3-SMALL": Source(
        "depth-anything/DA3-SMALL",
        "e08cab65ca0ec38e7826075418411ab90cab4da3",
        "model.safetensors",
        "364492e38a3a06d221ac75da7f6621ada3f2361cd24fde11ba79091e9f40efcf",
    ),
    "DA3-BASE": Source(
        "depth-anything/DA3-BASE",
        "f4a6c9b3c95e41c82048423d3493a81ec3fa810e",
        "model.safetensors",
        "e01067dc1659613083d9145a9a2547ccdbe6ccbbf83c4fe7b3e8a4e2bdae78b5",
    ),
    "DA3-LARGE-1.1": Source(
        "depth-anything/DA3-LARGE-1.1",
        "0e109ae307c5982f319a67cf6f9f99ccdc0ec97c",
        "model.safetensors",
        "739905c423cf0d6ccaf9e61a8401d82ba1ac32d7f4d3ee6dca8f92b377633f64",
    ),
}
PRESETS = {"DA3-SMALL": "da3-small", "DA3-BASE": "da3-base", "DA3-LARGE-1.1": "da3-large"}
LONGEST = 504  # pixels of the longer side, as in its own code
SHORTEST = 0.1  # of the distance by which poses are divided, in scene units, as in its own code


@dataclass
class Config:
    model: str = "DA3-BASE"  # or DA3-SMALL, or DA3-LARGE-1.1 (not for commercial use)
    posed: bool = True  # whether our cameras are given to it and unproject its depth, or its own


class DepthAnything3:
    """A `Teacher`, and a `PoseTeacher`, which knows no cameras whatever the settings are.

    Images at the multiples of 14 below their size, the answer at its own size.

    `posed` answers in the world; else in a frame of its own. Confidence is that of the depth, 1 and
    more. bf16 on CUDA devices that have it, and float32 on others. The network goes to the device
    of the images.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.name = "depth_anything_3"
        self.posed = config.posed
        commit = SOURCES[config.model].revision
        self.pose_revision = f"{config.model}@{commit[:12]}"
        self.revision = f"{self.pose_revision},posed={config.posed}"

    @cached_property
    def network(self) -> nn.Module:
        """The frozen network."""
        return _network.load(
            _build_network(self.config.model), SOURCES[self.config.model], "model.", ()
        )

    @torch.no_grad()
    def __call__(self, views: Views) -> Pointmap:
        images = _network.reduce_images(views.images)
        known = ()
        if self.posed:
            K = camera.K_px(views.cameras.K, *images.shape[-2:])
            known = (_normalize_poses(views.cameras.c2w), K)
        found = self._run(images, *known)
        cameras = views.cameras
        if not self.posed:
            cameras = Cameras(found.c2w, found.K, near=cameras.near, far=cameras.far)
        points = _network.unproject_depth(found.depth, found.c2w, cameras, *views.size)
        confidence = _network.restore_size(found.confidence[..., None], *views.size)[..., 0]
        return _network.to_pointmap(points, confidence)

    def choose_size(self, aspect: float) -> tuple[int, int]:
        """The (height, width) of images of an aspect ratio (width / height) that it knows best."""
        return _network.choose_size(aspect, LONGEST)

    def prepare(self) -> None:
        """Reads the weights; UserError where they, or the authors' code, cannot be had."""
        _ = self.network

    @torch.no_grad()
    def pose(self, images: Float[Tensor, "batch view 3 height width"]) -> PosedDepth:
        """Cameras and depth of images alone, in its own frame and unit, at the reduced size."""
        found = self._run(_network.reduce_images(images))
        return _network.to_posed_depth(found.c2w, found.K, found.depth, found.confidence)

    def _run(self, images: Tensor, *known: Tensor) -> PosedDepth:
        """What the network finds, as it is: c2w, normalized K, depth, confidence."""
        device, (rows, columns) = images.device, images.shape[-2:]
        network = self.network.to(device)
        mean, std = (constant(value, images)[:, None, None] for value in (MEAN, STD))
        capable = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
        with torch.autocast(device.type, torch.bfloat16, enabled=capable):
            answer = network((images - mean) / std, *known)
        w2c = answer["extrinsics"].float()
        pixels = constant((columns, rows, 1.0), images)
        return PosedDepth(
            c2w=se3.invert(se3.compose(w2c[..., :3, :3], w2c[..., :3, 3])),
            K=answer["intrinsics"].float() / pixels[:, None],
            depth=answer["depth"].float(),
            confidence=answer["depth_conf"].float(),
        )


def _normalize_poses(c2w: Float[Tensor, "batch view 4 4"]) -> Float[Tensor, "batch view 4 4"]:
    """World-to-camera in the frame of the first camera, in the median distance from it."""
    w2c = matmul(se3.invert(c2w), c2w[:, :1])
    far = se3.invert(w2c)[..., :3, 3].norm(dim=-1).median(dim=1).values.clamp(min=SHORTEST)
    return se3.compose(w2c[..., :3, :3], w2c[..., :3, 3] / far[:, None, None])


def _build_network(model: str) -> nn.Module:
    """The network as its authors configure it; UserError where their package is not installed."""
    os.environ.setdefault("DA3_LOG_LEVEL", "WARN")  # else it prints a line at every step
    try:
        from depth_anything_3.cfg import create_object, load_config
        from depth_anything_3.registry import MODEL_REGISTRY

        return create_object(load_config(MODEL_REGISTRY[PRESETS[model]]))
    except ModuleNotFoundError as error:
        raise UserError(
            f"the teacher 'depth_anything_3' needs the module {error.name!r}, which is not "
            "installed",
            "the authors' own code",
            f"pip install --no-deps {CODE}",
        ) from error


def build(config: Config) -> DepthAnything3:
    """The teacher; warns of the license of its weights. Raises UserError for unknown settings."""
    if config.model not in SOURCES:
        raise UserError(
            f"depth_anything_3 model {config.model!r}",
            f"one of {', '.join(SOURCES)}",
            "the default is DA3-BASE",
        )
    if config.model == "DA3-LARGE-1.1":
        warnings.warn(f"the teacher {config.model} is under {NONCOMMERCIAL}", stacklevel=2)
    return DepthAnything3(config)
