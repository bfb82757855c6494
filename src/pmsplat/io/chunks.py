"""The chunk files that RealEstate10K and DL3DV are published in (pixelSplat's layout).

A split is a folder of `NNNNNN.torch` files and an `index.json` {scene key: file name}. A chunk is a
list of scenes, each a dict of `key`, `url`, `timestamps` int64 [n], `cameras` float32 [n, 18]
(fx, fy, cx, cy divided by width and height, two zeros, world-to-camera 3x4 row-major, OpenCV) and
`images`, n uint8 tensors holding encoded JPEG or PNG files. Ours may also hold `near` and `far`
float32 [n], `depths` (16-bit PNG files) with `depth_scale` (scene units of one count), and `origin`
float64 [3] (see `types.Gaussians`), which other readers ignore.
"""

import json
import logging
import pickle
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ._checkpoints import first_line
from ._checksums import Damage, find_damage
from ._chunk_file import LocalChunk
from ._chunk_offsets import SUFFIX, read_offsets, write_offsets
from ._chunk_scene import FIELDS, Chunk, ChunkScene, Fault, make_entry, parse_entry, pose_fault
from ._objects import RemoteFolder, Unreachable, is_remote, read_file
from ._quarantine import (
    QUARANTINE,
    Quarantine,
    parse_quarantine,
    read_quarantine,
    write_quarantine,
)
from ._remote_chunks import mirror_of, open_remote_chunk
from .files import atomic, check_folder, locked, write_text
from .tensors import save_torch

log = logging.getLogger(__name__)

__all__ = [
    "INDEX",
    "QUARANTINE",
    "RECORDS",
    "Chunk",
    "ChunkScene",
    "Damage",
    "Quarantine",
    "Split",
    "Unreachable",
    "append",
    "check_bytes",
    "check_ended",
    "check_local",
    "check_new",
    "has_split",
    "is_remote",
    "open_chunk",
    "pose_fault",
    "read_chunk",
    "read_file",
    "read_quarantine",
    "read_split",
    "write_chunk",
    "write_index",
    "write_quarantine",
]

INDEX = "index.json"
RECORDS = "conversion*.json"  # of a conversion of many scenes, one for each shard

TWINS = "another scene of the same key in its chunk"

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
class Split:
    """A folder of chunks: the keys of the scenes in each file, in the order of its index.

    Of a folder elsewhere, at `remote`, `folder` is the one with what is known of it here.
    """

    folder: Path
    keys: dict[str, list[str]]
    remote: RemoteFolder | None = None

    @property
    def place(self) -> str:
        """The folder or address, as users know it."""
        return str(self.remote or self.folder)

    @property
    def chunk_of(self) -> dict[str, str]:
        """The chunk file of every scene."""
        return {key: chunk for chunk, keys in self.keys.items() for key in keys}

    def open(self, name: str) -> Chunk:
        """Opens one chunk, as `open_chunk`."""
        if self.remote is None:
            return open_chunk(self.folder / name)
        chunk = open_remote_chunk(self.remote, name, open_chunk)
        _say_left_out(f"{self.remote}/{name}", self.place, chunk)
        return chunk

    def quarantine(self) -> Quarantine:
        """What is left out of the split."""
        if self.remote is None:
            return read_quarantine(self.folder)
        return parse_quarantine(self.remote.read_optional(QUARANTINE), self.place)

    def chunk(self, name: str) -> Chunk:
        """Reads one chunk; raises UserError if it lacks a scene of the index."""
        chunk = read_chunk(self.folder / name) if self.remote is None else self.open(name)
        for key in self.keys[name]:
            if key not in chunk.scenes and key not in chunk.faults:
                raise UserError(
                    f"{self.place}/{INDEX} says that scene {key!r} is in {name}, which lacks it",
                    "an index that fits its chunks",
                    f"write a new index with `pmsplat data info {self.place} --write-index`",
                )
        return chunk


def has_split(folder: str | Path) -> bool:
    """Whether a folder is there; of an address, whether it has an index that may be read."""
    if is_remote(folder):
        return RemoteFolder(str(folder)).read_optional(INDEX) is not None
    return Path(folder).exists()


def read_split(folder: str | Path) -> Split:
    """Reads the index of a split, a folder or an address; opens no chunk.

    Raises UserError if the folder, its index.json or a chunk of the index is missing that its
    quarantine does not name. Of an address the chunks are not looked for.
    """
    if is_remote(folder):
        return _read_remote_split(RemoteFolder(str(folder)))
    folder = Path(folder)
    path = folder / INDEX
    if not folder.exists() and (others := sorted(folder.parent.glob(f"*/{INDEX}"))):
        raise UserError(
            f"there is no split {folder}",
            f"one beside {', '.join(other.parent.name for other in others)}",
            f"check dataset.root, or make it with `pmsplat data convert PHOTOS {folder}`",
        )
    if not path.is_file():
        check_ended(folder)
        raise UserError(
            f"there is no {path}",
            "a folder of NNNNNN.torch chunks with an index.json",
            "check dataset.root, or write the index of existing chunks with "
            f"`pmsplat data info {folder} --write-index`",
        )
    keys = _group(_read_json(path), str(path), str(folder))
    # Check that the chunks are there.
    known = read_quarantine(folder).chunks
    missing = [chunk for chunk in keys if chunk not in known and not (folder / chunk).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the {len(keys)} chunks of its index, "
            f"{missing[0]} first",
            "all of them",
            f"finish the download, or run `pmsplat data verify {folder}`, whose quarantine names "
            "what is missing, so that the rest is used",
        )
    return Split(folder, keys)


def _read_remote_split(folder: RemoteFolder) -> Split:
    data, path = folder.read(INDEX), f"{folder}/{INDEX}"
    if data is None:
        raise UserError(
            f"there is no {path}",
            "a folder of NNNNNN.torch chunks with an index.json",
            "check dataset.root, or upload the index of the split too",
        )
    content = _parse_json(data, path, str(folder))
    return Split(mirror_of(folder), _group(content, path, str(folder)), folder)


def _group(index: dict[str, Any], path: str, folder: str) -> dict[str, list[str]]:
    """The scenes of an index by chunk."""
    keys: dict[str, list[str]] = {}
    for key, chunk in index.items():
        if not isinstance(chunk, str) or Path(chunk).name != chunk:
            raise UserError(
                f"{path} names {chunk!r} as the chunk of {key!r}",
                "the name of a file beside it",
                f"write a new index with `pmsplat data info {folder} --write-index`",
            )
        keys.setdefault(chunk, []).append(key)
    if not keys:
        raise UserError(f"{path} is empty", "at least one scene", "check dataset.root")
    return keys


def read_chunk(path: str | Path) -> Chunk:
    """Reads all scenes of one chunk file; images stay on disk until they are decoded.

    A scene that cannot be used is among the faults, with its reason; one without a name is left
    out, and said. Raises UserError if the file is truncated or not in this format.
    """
    path = Path(path)
    entries = _load(path)
    scenes: dict[str, ChunkScene] = {}
    faults: dict[str, str] = {}
    nameless, extra = 0, set()
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
            nameless += 1
            continue
        key = entry["key"]
        extra |= {name for name in entry if name not in FIELDS}
        scene = Fault(TWINS) if key in scenes or key in faults else parse_entry(entry)
        if isinstance(scene, ChunkScene) and entry["cameras"][:, 4:6].any():
            extra.add("the numbers behind cx and cy, which should be 0")
        if isinstance(scene, ChunkScene):
            scenes[key] = scene
        else:
            scenes.pop(key, None)
            faults[key] = scene
    if nameless == len(entries):
        raise _format_error(path, "no entry is a dict with a 'key'")
    chunk = Chunk(scenes, faults, nameless, tuple(sorted(map(str, extra))))
    _say_left_out(str(path), str(path.parent), chunk)
    return chunk


def check_bytes(path: str | Path) -> Damage:
    """Finds what changed in a chunk file since it was written, by its checksums; reads every byte.

    Raises UserError as `read_chunk` does.
    """
    path = Path(path)
    named = (entry for entry in _load(path) if isinstance(entry, dict))
    return find_damage(path, [entry for entry in named if isinstance(entry.get("key"), str)])


def _load(path: Path) -> list[Any]:
    """The entries of a chunk file, which are not looked into."""
    if not path.is_file():
        raise UserError(f"there is no chunk {path}", "a .torch file", "check the path")
    try:
        mapped = zipfile.is_zipfile(path)  # files of torch < 1.6 cannot be mapped
        entries = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
    except _DAMAGED as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        if "PyTorchStreamReader" in reason or "PytorchStreamReader" in reason:
            reason = "its archive is incomplete"  # torch speaks of checkpoints
        raise UserError(
            f"the chunk {path} cannot be read ({reason})",
            "a whole .torch file of scenes",
            "it is truncated or damaged: download or convert it again",
        ) from error
    if not isinstance(entries, list):
        raise _format_error(path, f"it holds a {type(entries).__name__}, not a list of scenes")
    return entries


def _say_left_out(path: str, folder: str, chunk: Chunk) -> None:
    """Warns of what a chunk has that is not used, of unused fields once for its folder."""
    if chunk.nameless:
        entries = "entry" if chunk.nameless == 1 else "entries"
        left = f"{chunk.nameless} {entries} that are not a dict with a 'key'"
        log.warning("%s: left out %s", path, left)
    if chunk.unused:
        _say_unused(folder, ", ".join(chunk.unused))


@cache  # a training reads every chunk many times
def _say_unused(folder: str, names: str) -> None:
    log.warning("%s: scenes have fields that are not used (%s)", folder, names)


def open_chunk(path: str | Path) -> Chunk:
    """The same as `read_chunk`, with scenes that are made one by one as they are asked for.

    What the first call finds is kept beside the chunk (see `_chunk_offsets`), so that later ones
    open a scene in a thousandth of the time. Several processes do not do that work twice.
    """
    path = Path(path)
    if not zipfile.is_zipfile(path):
        return read_chunk(path)
    place = path.with_suffix(SUFFIX)
    found = read_offsets(LocalChunk(path), place)
    if found is None:
        with locked(path):
            found = read_offsets(LocalChunk(path), place)
            if found is None:
                chunk = read_chunk(path)
                write_offsets(path, chunk)
                return chunk
    _say_left_out(str(path), str(path.parent), found)
    return found


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
        entries[scene.key] = make_entry(scene)
    with atomic(path) as temporary:
        save_torch(list(entries.values()), temporary)


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


def check_ended(folder: Path) -> None:
    """UserError for a folder where a conversion of many scenes was interrupted."""
    if any(folder.glob(RECORDS)) and not (folder / INDEX).is_file():
        raise UserError(
            f"{folder}, where a conversion has not ended",
            f"a split with the {INDEX} that is written at its end",
            "run the same `pmsplat data convert` again: it goes on after the last chunk",
        )


def check_local(path: str | Path) -> None:
    """Raises UserError for an address, where whole chunks on this machine are needed."""
    if is_remote(path):
        raise UserError(
            f"{path} is not on this machine",
            "a folder: every byte is read, or files are written beside the chunks",
            "download it, or run this where the data are and upload what it writes",
        )


def write_index(folder: str | Path) -> Split:
    """Writes index.json for all chunks of a folder and returns the split.

    Raises UserError if the folder holds no chunk, or two chunks have a scene of the same key.
    """
    check_local(folder)
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


def _read_json(path: Path) -> dict[str, Any]:
    return _parse_json(path.read_bytes(), str(path), str(path.parent))


def _parse_json(data: bytes, path: str, folder: str) -> dict[str, Any]:
    remedy = f"write a new index with `pmsplat data info {folder} --write-index`"
    try:
        content = json.loads(data)
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
