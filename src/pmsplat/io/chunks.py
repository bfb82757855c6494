"""The chunk files that RealEstate10K and DL3DV are published in (pixelSplat's layout).

A split is a folder of `NNNNNN.torch` files and an `index.json` {scene key: file name}. A chunk is a
list of scenes, each a dict of `key`, `url`, `timestamps` int64 [n], `cameras` float32 [n, 18]
(fx, fy, cx, cy divided by width and height, two zeros, world-to-camera 3x4 row-major, OpenCV) and
`images`, n uint8 tensors holding encoded JPEG or PNG files. Ours may also hold `near` and `far`
float32 [n], and `depths` (16-bit PNG files) with `depth_scale` (scene units of one count), which
other readers ignore.
"""

import json
import pickle
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from ..errors import UserError
from ..geometry import se3
from . import images
from .files import atomic, check_folder, write_text

INDEX = "index.json"

_DAMAGED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    MemoryError,
    OverflowError,
)
"""Exceptions that torch.load raises on damaged files."""


@dataclass(frozen=True)
class ChunkScene:
    """One scene of a chunk: cameras and encoded photographs."""

    key: str
    c2w: Float[Tensor, "frame 4 4"]
    K: Float[Tensor, "frame 3 3"]
    images: tuple[UInt8[Tensor, " byte"], ...]
    timestamps: Int64[Tensor, " frame"]
    url: str = ""
    near: Float[Tensor, " frame"] | None = None
    far: Float[Tensor, " frame"] | None = None
    depths: tuple[UInt8[Tensor, " byte"], ...] | None = None
    depth_scale: float = 1.0

    def __len__(self) -> int:
        return len(self.images)

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
    """The usable scenes of a chunk by key, and the fault of each other scene."""

    scenes: dict[str, ChunkScene] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """A folder of chunks: the keys of the scenes in each file, in the order of its index."""

    folder: Path
    keys: dict[str, list[str]]

    @property
    def chunk_of(self) -> dict[str, str]:
        """The chunk file of every scene."""
        return {key: chunk for chunk, keys in self.keys.items() for key in keys}

    def chunk(self, name: str) -> Chunk:
        """Reads one chunk; raises UserError if it lacks a scene of the index."""
        chunk = read_chunk(self.folder / name)
        for key in self.keys[name]:
            if key not in chunk.scenes and key not in chunk.faults:
                raise UserError(
                    f"{self.folder / INDEX} says that scene {key!r} is in {name}, which lacks it",
                    "an index that fits its chunks",
                    f"write a new index with `pmsplat data info {self.folder} --write-index`",
                )
        return chunk


def read_split(folder: str | Path) -> Split:
    """Reads the index of a split folder; opens no chunk.

    Raises UserError if the folder, its index.json or a chunk of the index is missing.
    """
    folder = Path(folder)
    path = folder / INDEX
    if not path.is_file():
        raise UserError(
            f"there is no {path}",
            "a folder of NNNNNN.torch chunks with an index.json",
            "check dataset.root, or write the index of existing chunks with "
            f"`pmsplat data info {folder} --write-index`",
        )
    # Group the scenes of the index by chunk.
    keys: dict[str, list[str]] = {}
    for key, chunk in _read_json(path).items():
        if not isinstance(chunk, str) or Path(chunk).name != chunk:
            raise UserError(
                f"{path} names {chunk!r} as the chunk of {key!r}",
                "the name of a file beside it",
                f"write a new index with `pmsplat data info {folder} --write-index`",
            )
        keys.setdefault(chunk, []).append(key)
    # Check that the chunks are there.
    missing = [chunk for chunk in keys if not (folder / chunk).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the {len(keys)} chunks of its index, "
            f"{missing[0]} first",
            "all of them",
            "finish the download, or write a new index with "
            f"`pmsplat data info {folder} --write-index`",
        )
    if not keys:
        raise UserError(f"{path} is empty", "at least one scene", "check dataset.root")
    return Split(folder, keys)


def read_chunk(path: str | Path) -> Chunk:
    """Reads all scenes of one chunk file; images stay on disk until they are decoded.

    Raises UserError if the file is truncated or not in this format, or has two scenes of one key.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no chunk {path}", "a .torch file", "check the path")
    try:
        mapped = zipfile.is_zipfile(path)  # files of torch < 1.6 cannot be mapped
        entries = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the chunk {path} cannot be read ({type(error).__name__}: {reason})",
            "a whole .torch file of scenes",
            "it is truncated or damaged: download or convert it again",
        ) from error
    if not isinstance(entries, list):
        raise _format_error(path, f"it holds a {type(entries).__name__}, not a list of scenes")
    chunk = Chunk()
    for entry in entries:
        scene = _parse(entry, path)
        if scene.key in chunk.scenes or scene.key in chunk.faults:
            raise _format_error(path, f"it has two scenes {scene.key!r}")
        fault = pose_fault(scene.c2w, scene.K)
        if fault:
            chunk.faults[scene.key] = fault
        else:
            chunk.scenes[scene.key] = scene
    return chunk


def write_chunk(path: str | Path, scenes: Iterable[ChunkScene]) -> None:
    """Writes scenes as one chunk file, whole or not at all; equal scenes give equal bytes.

    Raises UserError if two scenes have the same key.
    """
    entries: dict[str, dict[str, Any]] = {}
    for scene in scenes:
        if scene.key in entries:
            raise UserError(
                f"two scenes {scene.key!r} for {path}",
                "a key of its own for each scene",
                "choose another key for one of them",
            )
        entries[scene.key] = _make_entry(scene)
    with atomic(path) as temporary, temporary.open("wb") as stream:
        torch.save(list(entries.values()), stream)


def append(folder: str | Path, scenes: list[ChunkScene]) -> Path:
    """Adds a chunk to a split folder, which is created if missing; returns the chunk's path.

    Raises UserError if the split already has one of the scenes, or two of them have the same key.
    """
    folder = Path(folder)
    index = check_new(folder, [scene.key for scene in scenes])
    numbers = [int(path.stem) for path in folder.glob("*.torch") if path.stem.isdecimal()]
    path = folder / f"{max(numbers, default=-1) + 1:06d}.torch"
    write_chunk(path, scenes)
    _write_index(folder, index | {scene.key: path.name for scene in scenes})
    return path


def check_new(folder: str | Path, keys: list[str]) -> dict[str, str]:
    """Returns the index of a split folder, empty if it has none yet.

    Raises UserError if one of the keys is already in it, or if a file is in the folder's place.
    """
    check_folder(folder)
    path = Path(folder) / INDEX
    index = _read_json(path) if path.is_file() else {}
    for key in keys:
        if key in index:
            raise UserError(
                f"{folder} already has a scene {key!r}",
                "a new name",
                "choose another name for the scene, or another output folder",
            )
    return index


def write_index(folder: str | Path) -> Split:
    """Writes index.json for all chunks of a folder and returns the split.

    Raises UserError if the folder holds no chunk, or two chunks have a scene of the same key.
    """
    folder = Path(folder)
    index: dict[str, str] = {}
    for path in sorted(folder.glob("*.torch")):
        chunk = read_chunk(path)
        for key in [*chunk.scenes, *chunk.faults]:
            if key in index:
                raise UserError(
                    f"{folder} has a scene {key!r} in {index[key]} and in {path.name}",
                    "each scene in one chunk",
                    "remove one of the two chunks, or convert its scene again under another name",
                )
            index[key] = path.name
    if not index:
        raise UserError(f"{folder} holds no chunk", "NNNNNN.torch files", "check the path")
    _write_index(folder, index)
    return read_split(folder)


def pose_fault(c2w: Float[Tensor, "frame 4 4"], K: Float[Tensor, "frame 3 3"]) -> str | None:
    """Returns why cameras cannot be used, in a few words; None if they can."""
    if not (c2w.isfinite().all() and K.isfinite().all()):
        return "cameras that are not finite"
    if not se3.is_rigid(c2w, tolerance=1e-2).all():
        return "camera rotations that are not orthonormal"
    if not (K[:, [0, 1], [0, 1]] > 0).all():
        return "focal lengths that are not positive"
    return None


def _parse(entry: Any, path: Path) -> ChunkScene:
    """Returns the scene of one entry of a chunk; raises UserError if its format is wrong."""
    if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
        raise _format_error(path, "an entry is not a dict with a 'key'")
    key = entry["key"]

    def error(fault: str) -> UserError:
        return _format_error(path, f"scene {key!r} has {fault}")

    # Photos, cameras and timestamps.
    photos = _get_files(entry.get("images"))
    if not photos:
        raise error("no list 'images' of 1-D uint8 tensors")
    count = len(photos)
    cameras = entry.get("cameras")
    if not _is_tensor(cameras, (count, 18)):
        raise error(f"no 'cameras' of shape [{count}, 18] for its {count} images")
    timestamps = entry.get("timestamps", torch.arange(count))
    if not _is_tensor(timestamps, (count,)):
        raise error(f"no 'timestamps' of shape [{count}]")
    # Optional near and far, and depth maps.
    near, far = entry.get("near"), entry.get("far")
    if near is not None or far is not None:
        if not (_is_tensor(near, (count,)) and _is_tensor(far, (count,))):
            raise error(f"no 'near' and 'far' of shape [{count}]")
        if not bool(((near > 0) & (far > near) & far.isfinite()).all()):
            raise error("'near' and 'far' that are not 0 < near < far")
    depths, depth_scale = None, entry.get("depth_scale", 1.0)
    if "depths" in entry:
        depths = _get_files(entry["depths"])
        if depths is None or len(depths) != count:
            raise error(f"no 'depths' for its {count} images")
        if not isinstance(depth_scale, float) or not 0 < depth_scale < float("inf"):
            raise error(f"a 'depth_scale' of {depth_scale!r}")
    c2w, K = _parse_cameras(cameras)
    return ChunkScene(
        key=key,
        c2w=c2w,
        K=K,
        images=photos,
        timestamps=timestamps.long(),
        url=str(entry.get("url", "")),
        near=None if near is None else near.float(),
        far=None if far is None else far.float(),
        depths=depths,
        depth_scale=depth_scale,
    )


def _get_files(value: Any) -> tuple[Tensor, ...] | None:
    def is_file(item: Any) -> TypeGuard[Tensor]:
        return isinstance(item, Tensor) and item.dtype == torch.uint8 and item.ndim == 1

    return tuple(value) if isinstance(value, list) and all(map(is_file, value)) else None


def _is_tensor(value: Any, shape: tuple[int, ...]) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and not value.is_complex() and tuple(value.shape) == shape


def _parse_cameras(rows: Float[Tensor, "frame 18"]) -> tuple[Tensor, Tensor]:
    """Returns (c2w, K) of camera rows; a pose that cannot be inverted becomes NaN."""
    rows = rows.double()
    K = torch.eye(3, dtype=rows.dtype).repeat(len(rows), 1, 1)
    K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2] = rows[:, :4].unbind(dim=1)
    w2c = torch.eye(4, dtype=rows.dtype).repeat(len(rows), 1, 1)
    w2c[:, :3] = rows[:, 6:].reshape(-1, 3, 4)
    c2w, failed = torch.linalg.inv_ex(w2c)
    c2w[failed != 0] = torch.nan
    return c2w.float(), K.float()


def _make_entry(scene: ChunkScene) -> dict[str, Any]:
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
    return entry


def _read_json(path: Path) -> dict[str, Any]:
    remedy = f"write a new index with `pmsplat data info {path.parent} --write-index`"
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not JSON ({error})", "an object {scene: chunk}", remedy
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object", "an object {scene: chunk}", remedy)
    return content


def _write_index(folder: Path, index: dict[str, str]) -> None:
    write_text(folder / INDEX, json.dumps(index, indent=1) + "\n")


def _format_error(path: Path, fault: str) -> UserError:
    return UserError(
        f"the chunk {path} is not in the RE10K/DL3DV format: {fault}",
        "a list of scenes {key, url, timestamps, cameras, images}",
        "see datasets/README.md for the format, or convert photos with `pmsplat data convert`",
    )
