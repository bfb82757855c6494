"""A chunk, one scene of it, and its entry in the file: see `chunks`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from ..geometry import se3
from ..geometry.origin import local_origin
from ..types import NO_OFFSET, Origin, as_triple
from . import images
from ._chunk_file import RemoteFiles

FIELDS = {
    "key", "url", "timestamps", "cameras", "images", "near", "far", "depths", "depth_scale",
    "origin",
}  # fmt: skip


@dataclass(frozen=True)
class ChunkScene:
    """One scene of a chunk: cameras and encoded photographs.

    `origin` is where the zero of the cameras lies in the world that they came from.
    """

    key: str
    c2w: Float[Tensor, "frame 4 4"]
    K: Float[Tensor, "frame 3 3"]
    images: Sequence[UInt8[Tensor, " byte"]]
    timestamps: Int64[Tensor, " frame"]
    url: str = ""
    near: Float[Tensor, " frame"] | None = None
    far: Float[Tensor, " frame"] | None = None
    depths: Sequence[UInt8[Tensor, " byte"]] | None = None
    depth_scale: float = 1.0
    origin: Origin = NO_OFFSET

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, frames: Iterable[int]) -> None:
        """Brings the files of some frames here together, where they lie elsewhere.

        Raises UserError where that is not possible.
        """
        wanted = list(frames)
        for files in (self.images, self.depths):
            if isinstance(files, RemoteFiles):
                files.fetch(wanted)

    def image(self, frame: int) -> UInt8[np.ndarray, "height width 3"]:
        """Decodes one photo; raises UserError if it is damaged."""
        return images.read_image(self.images[frame].numpy().tobytes())

    def depth(self, frame: int) -> Float[np.ndarray, "height width"] | None:
        """Decodes one depth map in scene units, 0 = none; None if the scene has no depth."""
        if self.depths is None:
            return None
        counts = images.read_depth(self.depths[frame].numpy().tobytes())
        return counts.astype(np.float32) * np.float32(self.depth_scale)


@dataclass(frozen=True)
class Chunk:
    """The usable scenes of a chunk by key, and the fault of each other scene.

    `nameless` counts entries without a key, `unused` names what scenes have that is not used.
    """

    scenes: Mapping[str, ChunkScene] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    nameless: int = 0
    unused: tuple[str, ...] = ()


_OUTSIDE = 10  # sides of a picture: farther out no principal point lies


class Fault(str):
    """Why a scene of a chunk cannot be used, in words that follow "it has"."""


def pose_fault(c2w: Float[Tensor, "frame 4 4"], K: Float[Tensor, "frame 3 3"]) -> str | None:
    """Returns why cameras cannot be used, in a few words; None if they can."""
    if not (c2w.isfinite().all() and K.isfinite().all()):
        return "cameras that are not finite"
    if not se3.is_rigid(c2w, tolerance=1e-2).all():
        return "camera rotations that are not orthonormal"
    if not (K[:, [0, 1], [0, 1]] > 0).all():
        return "focal lengths that are not positive"
    if K[:, :2, 2].abs().max() > _OUTSIDE:
        return "intrinsics in pixels, not divided by width and height"
    return None


def parse_entry(entry: dict[str, Any]) -> ChunkScene | Fault:
    """Returns the scene of one entry of a chunk, or what is wrong with it."""
    # Photos, cameras and timestamps.
    photos = _get_files(entry.get("images"))
    if not photos:
        return Fault("no list 'images' of encoded photos (1-D uint8 tensors)")
    count = len(photos)
    cameras = entry.get("cameras")
    if not _is_tensor(cameras, (count, 18)):
        return Fault("no 'cameras' with 18 numbers for each image")
    timestamps = _get_times(entry.get("timestamps", torch.arange(count)), count)
    if timestamps is None:
        return Fault("no finite 'timestamps' for each image")
    # Optional near and far, and depth maps.
    near, far = entry.get("near"), entry.get("far")
    if near is not None or far is not None:
        if not (_is_tensor(near, (count,)) and _is_tensor(far, (count,))):
            return Fault("no 'near' and 'far' for each image")
        if not bool(((near > 0) & (far > near) & far.isfinite()).all()):
            return Fault("'near' and 'far' that are not 0 < near < far")
    depths, fault = _get_depths(entry, count)
    if fault:
        return fault
    origin = entry.get("origin", torch.zeros(3))
    if not _is_tensor(origin, (3,)) or not origin.isfinite().all():
        return Fault("an 'origin' that is not three finite numbers")
    c2w, K, place = _parse_cameras(cameras)
    if fault := pose_fault(c2w, K):
        return Fault(fault)
    return ChunkScene(
        key=entry["key"],
        c2w=c2w,
        K=K,
        images=photos,
        timestamps=timestamps,
        url=str(entry.get("url", "")),
        near=None if near is None else near.float(),
        far=None if far is None else far.float(),
        depths=depths,
        depth_scale=1.0 if depths is None else float(entry.get("depth_scale", 1.0)),
        origin=as_triple(origin.double() + place),
    )


def _get_depths(
    entry: dict[str, Any], count: int
) -> tuple[tuple[Tensor, ...] | None, Fault | None]:
    """Returns the depth files of an entry, if it has some, and what is wrong with them."""
    if entry.get("depths") is None:
        return None, None
    depths, scale = _get_files(entry["depths"]), entry.get("depth_scale", 1.0)
    if depths is None:
        kinds = "'depths' that are not a list of encoded PNG files (1-D uint8 tensors)"
        return None, Fault(kinds)
    if len(depths) != count:
        return None, Fault("another number of 'depths' than of images")
    if not _is_scale(scale):
        return None, Fault(f"a 'depth_scale' of {scale!r}")
    return depths, None


def _is_scale(value: Any) -> bool:
    if isinstance(value, Tensor):
        return _is_tensor(value, ()) and _is_scale(value.item())
    return isinstance(value, int | float) and 0 < value < float("inf")


def _get_times(value: Any, count: int) -> Tensor | None:
    """Returns time stamps as whole numbers; fractions become millionths, so that none is lost."""
    if not _is_tensor(value, (count,)) or not value.double().isfinite().all():
        return None
    times = value.double()
    if not value.is_floating_point() or bool((times == times.round()).all()):
        return value.long()
    return (times * 1_000_000).round().long()


def _get_files(value: Any) -> tuple[Tensor, ...] | None:
    def is_file(item: Any) -> TypeGuard[Tensor]:
        return _is_ordinary(item) and item.dtype == torch.uint8 and item.ndim == 1

    return tuple(value) if isinstance(value, list | tuple) and all(map(is_file, value)) else None


def _is_tensor(value: Any, shape: tuple[int, ...]) -> TypeGuard[Tensor]:
    return _is_ordinary(value) and not value.is_complex() and tuple(value.shape) == shape


def _is_ordinary(value: Any) -> TypeGuard[Tensor]:
    dense = isinstance(value, Tensor) and value.layout is torch.strided
    return dense and value.device.type == "cpu" and not value.is_quantized


def _parse_cameras(rows: Float[Tensor, "frame 18"]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns c2w and K of camera rows, and the place from which c2w counts if it lies far off.

    A pose that cannot be inverted becomes NaN.
    """
    rows = rows.double()
    K = torch.eye(3, dtype=rows.dtype).repeat(len(rows), 1, 1)
    K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2] = rows[:, :4].unbind(dim=1)
    w2c = torch.eye(4, dtype=rows.dtype).repeat(len(rows), 1, 1)
    w2c[:, :3] = rows[:, 6:].reshape(-1, 3, 4)
    c2w, failed = torch.linalg.inv_ex(w2c)
    c2w[failed != 0] = torch.nan
    place = local_origin(c2w[:, :3, 3])
    c2w[:, :3, 3] -= place
    return c2w.float(), K.float(), place


def make_entry(scene: ChunkScene) -> dict[str, Any]:
    w2c = torch.linalg.inv(scene.c2w.double())[:, :3]
    center = scene.K[:, :2, 2]
    focal = scene.K[:, [0, 1], [0, 1]]
    rows = torch.cat([focal, center, torch.zeros_like(focal), w2c.flatten(1)], dim=1)
    entry = {
        "url": scene.url,
        "timestamps": scene.timestamps,
        "cameras": rows.float(),
        "images": list(scene.images),
        "key": scene.key,
    }
    if scene.near is not None:
        entry |= {"near": scene.near, "far": scene.far}
    if scene.depths is not None:
        entry |= {"depths": list(scene.depths), "depth_scale": float(scene.depth_scale)}
    if scene.origin != NO_OFFSET:
        entry |= {"origin": torch.tensor(scene.origin, dtype=torch.float64)}
    return entry
