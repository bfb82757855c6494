"""VGGT as a teacher: the pointmap of a transformer that is given photographs alone.

Wang et al., "VGGT: Visual Geometry Grounded Transformer", CVPR 2025, run by its authors' own code
(facebookresearch/vggt). `head: point` is the teacher of the published PM-Loss: Shi et al.,
"Revisiting Depth Representations for Feed-Forward 3D Gaussian Splatting", 3DV 2026.

Its frame: OpenCV axes of the first camera, and a unit of its own, in which its points lie about 1
from that camera. Its intrinsics have the principal point at width/2, which is ours with pixel
centers at index + 0.5; its own unprojection counts whole pixels and is half a pixel off.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import UserError
from ...geometry import se3
from ...geometry.constants import constant
from ...io.weights import Source
from ...types import Pointmap, PosedDepth, Views
from . import _network

CODE = "git+https://github.com/facebookresearch/vggt@e56963328b7476e615ce8dda9164d381f8dc07a3"
SOURCES = {
    "VGGT-1B": Source(
        "facebook/VGGT-1B",
        "860abec7937da0a4c03c41d3c269c366e82abdf9",
        "model.safetensors",
        "f164acf60724910d8fe1578bb499d800850c7bb0948db7555c413f9fbe60467e",
    ),
    "VGGT-1B-Commercial": Source(
        "facebook/VGGT-1B-Commercial",
        "ebb29a532abe92960eeb6903a5530f16990ef4ab",
        "model.safetensors",
        "2b766b284359bc47ce26be107254621f685b758a0282082ff109f3ff02788b53",
    ),
}
LICENSES = {
    "VGGT-1B": "is under CC BY-NC 4.0: no commercial use (VGGT-1B-Commercial permits it)",
    "VGGT-1B-Commercial": "is under the VGGT License: no military use; access is asked for at "
    "huggingface.co/facebook/VGGT-1B-Commercial",
}
LONGEST = 518  # pixels of the longer side of a photograph, as in its own code
HEADS = {"point": ("point_head.",), "depth": ("depth_head.", "camera_head.")}


@dataclass
class Config:
    model: str = "VGGT-1B"  # or VGGT-1B-Commercial, as good, under another license
    head: str = "point"  # "point", as published; or "depth", unprojected by the known cameras


class Vggt:
    """A `Teacher`; with `head: depth` also a `PoseTeacher`.

    Images at the multiples of 14 below their size, the answer at its own size.

    `head: point` knows nothing of our cameras: its points are in its own frame. Those of `head:
    depth` are in the world; their unit follows from its own guess of how far the cameras are apart.
    Confidence is the head's, 1 and more. bf16 on CUDA devices that have it, as published, and
    float32 on others. The network goes to the device of the images.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.name = "vggt"
        self.posed = config.head == "depth"
        commit = SOURCES[config.model].revision
        self.pose_revision = f"{config.model}@{commit[:12]}"
        self.revision = f"{self.pose_revision},head={config.head}"

    @cached_property
    def network(self) -> nn.Module:
        """The frozen network, with the heads that the settings need and no others."""
        build = _import_network()
        kept = HEADS[self.config.head]
        parts = {part: f"{part}_head." in kept for part in ("camera", "point", "depth", "track")}
        network = build(**{f"enable_{part}": on for part, on in parts.items()})
        unused = tuple(f"{part}_head." for part, on in parts.items() if not on)
        return _network.load(network, SOURCES[self.config.model], "", unused)

    @torch.no_grad()
    def __call__(self, views: Views) -> Pointmap:
        images = _network.reduce_images(views.images)
        tokens, start = self._encode(images)
        with torch.autocast(images.device.type, enabled=False):
            if self.posed:
                found = _find_depth(self.network, tokens, images, start)
                points = _network.unproject_depth(
                    found.depth, found.c2w, views.cameras, *views.size
                )
                confidence = found.confidence
            else:
                head = self.network.get_submodule("point_head")
                points, confidence = head(tokens, images=images, patch_start_idx=start)
                points = _network.restore_size(points, *views.size, floor=True)
        floor = not self.posed
        confidence = _network.restore_size(confidence[..., None], *views.size, floor)[..., 0]
        return _network.to_pointmap(points, confidence)

    def choose_size(self, aspect: float) -> tuple[int, int]:
        """The (height, width) of images of an aspect ratio (width / height) that it knows best."""
        return _network.choose_size(aspect, LONGEST)

    def prepare(self) -> None:
        """Reads the weights; UserError where they, or the authors' code, cannot be had."""
        if not self.posed:
            raise UserError(
                "the teacher 'vggt' with `head=point`, which finds no cameras",
                "`head=depth`",
                "set it, or choose another teacher",
            )
        _ = self.network

    @torch.no_grad()
    def pose(self, images: Float[Tensor, "batch view 3 height width"]) -> PosedDepth:
        """Cameras and depth of images alone, in its own frame and unit, at the reduced size."""
        images = _network.reduce_images(images)
        tokens, start = self._encode(images)
        with torch.autocast(images.device.type, enabled=False):
            found = _find_depth(self.network, tokens, images, start)
        return _network.to_posed_depth(found.c2w, found.K, found.depth, found.confidence)

    def _encode(self, images: Tensor) -> tuple[list[Tensor], int]:
        """The tokens of the trunk, and at which of them those of the pixels start."""
        device = images.device
        network = self.network.to(device)
        capable = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
        with torch.autocast(device.type, torch.bfloat16, enabled=capable):
            return network.get_submodule("aggregator")(images)


def _find_depth(network: nn.Module, tokens: list[Tensor], images: Tensor, start: int) -> PosedDepth:
    """What its heads of depth and cameras find, as it is, at the size of the images."""
    from vggt.utils.pose_enc import pose_encoding_to_extri_intri

    head = network.get_submodule("depth_head")
    depth, confidence = head(tokens, images=images, patch_start_idx=start)
    poses = network.get_submodule("camera_head")(tokens)[-1]
    rows, columns = images.shape[-2:]
    w2c, K = pose_encoding_to_extri_intri(poses, (rows, columns))
    return PosedDepth(
        c2w=se3.invert(se3.compose(w2c[..., :3], w2c[..., 3])),
        K=K / constant((columns, rows, 1.0), images)[:, None],
        depth=depth[..., 0],
        confidence=confidence,
    )


def _import_network() -> type[nn.Module]:
    """The class of the network; UserError where its package is not installed."""
    try:
        from vggt.models.vggt import VGGT
    except ModuleNotFoundError as error:
        raise UserError(
            f"the teacher 'vggt' needs the module {error.name!r}, which is not installed",
            "the authors' own code",
            f"pip install --no-deps {CODE}",
        ) from error
    return VGGT


def build(config: Config) -> Vggt:
    """The teacher; warns of the license of its weights. Raises UserError for unknown settings."""
    if config.model not in SOURCES:
        raise UserError(
            f"vggt model {config.model!r}", f"one of {', '.join(SOURCES)}", "the default is VGGT-1B"
        )
    if config.head not in HEADS:
        raise UserError(
            f"vggt head {config.head!r}", f"one of {', '.join(HEADS)}", "the default is point"
        )
    warnings.warn(f"the teacher {config.model} {LICENSES[config.model]}", stacklevel=2)
    return Vggt(config)
