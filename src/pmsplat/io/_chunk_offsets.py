"""Where the scenes of a chunk lie in its file, kept beside it: NNNNNN.offsets.

Who needs one scene of a chunk would otherwise build every tensor of every scene, thousands, and
check them all. The offsets hold what was found once: cameras as they were parsed, and the place of
each photograph, which is read when it is decoded: of a file on this machine by mapping it into
memory, of one elsewhere by range (`_chunk_file`). They are valid while the chunk has the same
length and the same zip directory, which has the CRC of all its parts.
"""

import json
import logging
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError
from ._chunk_file import ChunkFile, LocalChunk
from ._chunk_scene import Chunk, ChunkScene
from .files import atomic
from .tensors import save_safetensors

log = logging.getLogger(__name__)

SUFFIX = ".offsets"
FORMAT = 2
HEADER = "pmsplat"


@dataclass(frozen=True)
class _Tables:
    """A row for each frame of each scene: cameras, and where its files lie (size 0: none)."""

    c2w: Tensor  # float32 [frame, 4, 4]
    K: Tensor  # float32 [frame, 3, 3]
    timestamps: Tensor  # int64 [frame]
    bounds: Tensor  # float32 [frame, 2]: near and far, NaN where there are none
    images: Tensor  # int64 [frame, 2]: offset and size
    depths: Tensor  # int64 [frame, 2]


class MappedScenes(Mapping[str, ChunkScene]):
    """The scenes of a chunk by key, each made when it is asked for."""

    def __init__(self, file: ChunkFile, tables: _Tables, scenes: dict[str, dict[str, Any]]) -> None:
        self._file, self._tables, self._scenes = file, tables, scenes

    def __len__(self) -> int:
        return len(self._scenes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._scenes)

    def __contains__(self, key: object) -> bool:
        return key in self._scenes

    def __getitem__(self, key: str) -> ChunkScene:
        about, rows = self._scenes[key], self._tables
        start, end = about["frames"]

        def files(places: Tensor) -> Sequence[Tensor]:
            return self._file.files(places[start:end].tolist())

        near, far = rows.bounds[start:end].unbind(dim=1)
        ranged = bool(near.isfinite().all())
        return ChunkScene(
            key=key,
            c2w=rows.c2w[start:end],
            K=rows.K[start:end],
            images=files(rows.images),
            timestamps=rows.timestamps[start:end],
            url=about["url"],
            near=near if ranged else None,
            far=far if ranged else None,
            depths=files(rows.depths) if about["depth_scale"] is not None else None,
            depth_scale=1.0 if about["depth_scale"] is None else about["depth_scale"],
            origin=tuple(about["origin"]),
        )


def read_offsets(file: ChunkFile, place: Path) -> Chunk | None:
    """A chunk whose offsets are at `place`; None where they are missing or not valid."""
    if not place.is_file():
        return None
    try:
        with safe_open(place, "pt") as offsets:
            about = json.loads((offsets.metadata() or {})[HEADER])
            names = _Tables.__dataclass_fields__
            tables = _Tables(**{name: offsets.get_tensor(name) for name in names})
        if about["format"] != FORMAT or about["chunk"] != _identify(file, about["directory"]):
            log.info("the chunk of %s has changed since: it is renewed", place)
            return None
        _check(tables, about["scenes"], file.size)
        scenes = MappedScenes(file, tables, about["scenes"])
        unused = tuple(map(str, about["unused"]))
        return Chunk(scenes, about["faults"], int(about["nameless"]), unused)
    except UserError:  # of a store: a ValueError too
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError):
        log.info("%s is damaged and is renewed", place)
        return None


def write_offsets(path: Path, chunk: Chunk) -> None:
    """Writes the offsets of a chunk whose scenes are mapped, if that is possible.

    It is not where a file is laid out in another way, or the folder cannot be written.
    """
    scenes = chunk.scenes
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
    places = _Places.of(path, scenes)
    if places is None:
        return
    frames, about = 0, {}
    parts: dict[str, list[Tensor]] = {name: [] for name in _Tables.__dataclass_fields__}
    for key, scene in scenes.items():
        rows = _rows(scene, places)
        for name, part in parts.items():
            part.append(getattr(rows, name))
        about[key] = {
            "frames": (frames, frames + len(scene)),
            "url": scene.url,
            "depth_scale": None if scene.depths is None else scene.depth_scale,
            "origin": scene.origin,
        }
        frames += len(scene)
    header = {
        "format": FORMAT,
        "chunk": _identify(LocalChunk(path), directory),
        "directory": directory,
        "scenes": about,
        "faults": chunk.faults,
        "nameless": chunk.nameless,
        "unused": chunk.unused,
    }
    tables = {name: torch.cat(part).contiguous() for name, part in parts.items() if part}
    if not tables:
        return
    try:
        with atomic(path.with_suffix(SUFFIX)) as temporary:
            save_safetensors(tables, temporary, {HEADER: json.dumps(header)})
    except OSError as error:
        log.info("%s: scenes are found slowly, since no file can be written (%s)", path, error)


@dataclass(frozen=True)
class _Places:
    """Where the memory of a mapped file begins."""

    base: int

    @staticmethod
    def of(path: Path, scenes: Mapping[str, ChunkScene]) -> "_Places | None":
        """None where the files of the scenes are not parts of the chunk as it lies on disk."""
        files = [
            file for scene in scenes.values() for file in (*scene.images, *(scene.depths or ()))
        ]
        if not files or not all(file.is_contiguous() for file in files):
            return None
        storages = {file.untyped_storage().data_ptr() for file in files}
        with zipfile.ZipFile(path) as archive, path.open("rb") as chunk:
            size = files[0].untyped_storage().nbytes()
            for part in archive.infolist():
                if part.file_size != size or part.compress_type != zipfile.ZIP_STORED:
                    continue
                chunk.seek(part.header_offset + 26)
                name, extra = (int.from_bytes(chunk.read(2), "little") for _ in range(2))
                base = files[0].untyped_storage().data_ptr() - (
                    part.header_offset + 30 + name + extra
                )
                found = _Places(base)
                if min(storages) >= base and all(found.holds(file, chunk) for file in files[::50]):
                    return found
        return None

    def at(self, file: Tensor) -> int:
        """The offset of a file's first byte."""
        return file.data_ptr() - self.base

    def holds(self, file: Tensor, chunk: Any) -> bool:
        """Whether the chunk has these bytes there."""
        chunk.seek(self.at(file))
        return chunk.read(len(file)) == file.numpy().tobytes()


def _rows(scene: ChunkScene, places: _Places) -> _Tables:
    def table(files: Sequence[Tensor] | None) -> Tensor:
        if files is None:
            return torch.zeros(len(scene), 2, dtype=torch.int64)
        return torch.tensor([(places.at(file), len(file)) for file in files])

    none = torch.full((len(scene),), torch.nan)
    bounds = [none if bound is None else bound for bound in (scene.near, scene.far)]
    return _Tables(
        scene.c2w, scene.K, scene.timestamps, torch.stack(bounds, dim=1),
        table(scene.images), table(scene.depths),
    )  # fmt: skip


def _identify(file: ChunkFile, directory: int) -> list[Any]:
    """Length of a chunk, and the digest of its zip directory, which begins there."""
    return [file.size, file.identify(directory)]


def _check(tables: _Tables, scenes: dict[str, Any], size: int) -> None:
    """Raises ValueError for tables that do not fit the file or each other."""
    frames = len(tables.timestamps)
    shapes = {"c2w": (4, 4), "K": (3, 3), "timestamps": (), "bounds": (2,)}
    shapes |= {"images": (2,), "depths": (2,)}
    for name, shape in shapes.items():
        if getattr(tables, name).shape != (frames, *shape):
            raise ValueError(f"{name} of another shape")
    for places in (tables.images, tables.depths):
        at, length = places.unbind(dim=1)
        if frames and not bool(((at >= 0) & (length >= 0) & (at <= size - length)).all()):
            raise ValueError("places outside of the file")
    for about in scenes.values():
        start, end = about["frames"]
        if not 0 <= start < end <= frames:
            raise ValueError("frames that there are not")
