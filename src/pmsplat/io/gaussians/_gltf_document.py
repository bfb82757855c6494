"""The JSON and the buffers of a .glb or .gltf file that may lie: everything asked for is checked.

https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html. Buffers are mapped, not read; a column of
an attribute is a view into them until its values are asked for, block by block.
"""

import base64
import binascii
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...geometry import gaussian as gaussian_geometry
from ...geometry import se3

MAGIC, JSON_CHUNK, BIN_CHUNK = b"glTF", 0x4E4F534A, 0x004E4942
COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}


@dataclass(frozen=True)
class Column:
    """An attribute as it lies in the file, [row, component], and what one count of it means."""

    rows: np.ndarray
    scale: float

    def values(self, start: int, stop: int) -> Tensor:
        """float32; the lowest of signed normalised integers means -1, as its neighbour does."""
        rows = torch.from_numpy(self.rows[start:stop].astype(np.float32))
        return rows if self.scale == 1 else (rows * self.scale).clamp_min(-1)


@dataclass(frozen=True)
class Document:
    """The JSON of a file that may lie, and its buffers; everything asked for is checked."""

    path: Path
    tree: dict[str, Any]
    buffers: dict[int, np.ndarray]

    def damaged(self, what: str) -> UserError:
        return _damaged(self.path, what)

    def list_of(self, owner: dict[str, Any], key: str) -> list[Any]:
        value = owner.get(key, [])
        if not isinstance(value, list):
            raise self.damaged(f"{key} is no list")
        return value

    def dict_of(self, owner: Any, key: str) -> dict[str, Any]:
        value = owner.get(key, {}) if isinstance(owner, dict) else None
        if not isinstance(value, dict):
            raise self.damaged(f"{key} is no object")
        return value

    def names(self, key: str) -> set[str]:
        return {str(name) for name in self.list_of(self.tree, key)}

    def whole(self, owner: dict[str, Any], key: str, default: int | None = None) -> int:
        value = owner.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.damaged(f"{key} is {value!r}")
        return value

    def entry(self, kind: str, index: Any) -> dict[str, Any]:
        entries = self.list_of(self.tree, kind)
        known = isinstance(index, int) and not isinstance(index, bool) and 0 <= index < len(entries)
        if not known or not isinstance(entries[index], dict):
            raise self.damaged(f"{kind} has no entry {index!r}")
        return entries[index]

    def buffer(self, index: int, binary: np.ndarray | None) -> np.ndarray:
        """The bytes of a buffer: the binary chunk, a data URI, or a file in the same folder."""
        told = self.entry("buffers", index)
        length, uri = self.whole(told, "byteLength"), told.get("uri")
        if uri is None:
            found = binary if index == 0 and binary is not None else np.empty(0, np.uint8)
        elif not isinstance(uri, str):
            raise self.damaged(f"buffer {index} has no sensible uri")
        elif uri.startswith("data:"):
            try:
                decoded = base64.b64decode(uri.partition(";base64,")[2], validate=True)
            except (binascii.Error, ValueError) as error:
                raise self.damaged(f"buffer {index} is no base64 ({error})") from error
            found = np.frombuffer(decoded, np.uint8)
        else:
            found = self.beside(unquote(uri))
        if len(found) < length:
            raise self.damaged(f"buffer {index} of {length} bytes has {len(found)}")
        return found[:length]

    def beside(self, name: str) -> np.ndarray:
        """The bytes, mapped, of a file in the folder of this one, or below."""
        folder = self.path.parent.resolve()
        try:
            place = (folder / name).resolve()
            if place.is_relative_to(folder) and place.is_file() and place.stat().st_size:
                return np.memmap(place, np.uint8, "r")
        except (OSError, ValueError) as error:  # names that no file can have
            raise self.damaged(f"there is no buffer {name[:80]!r} beside it") from error
        raise self.damaged(f"there is no buffer {name[:80]!r} beside it")

    def accessor(self, attributes: dict[str, Any], name: str, kind: str) -> Column:
        """The rows of an attribute, where its accessor says they are."""
        if name not in attributes:
            raise self.damaged(f"a primitive has no {name}")
        told = self.entry("accessors", attributes[name])
        code = self.whole(told, "componentType")
        if told.get("type") != kind or code not in COMPONENTS:
            raise self.damaged(f"{name} is {told.get('type')!r} of type {code}")
        if "sparse" in told or "bufferView" not in told:
            raise self.damaged(f"{name} is sparse or compressed")
        view = self.entry("bufferViews", told["bufferView"])
        index = self.whole(view, "buffer")
        if index not in self.buffers:
            raise self.damaged(f"there is no buffer {index}")
        dtype, width, count = np.dtype(COMPONENTS[code]), WIDTHS[kind], self.whole(told, "count")
        row = width * dtype.itemsize
        stride = self.whole(view, "byteStride", row)
        start = self.whole(view, "byteOffset", 0)
        data = self.buffers[index][start : start + self.whole(view, "byteLength")]
        offset = self.whole(told, "byteOffset", 0)
        if stride < row or (count and offset + stride * (count - 1) + row > len(data)):
            raise self.damaged(f"{count} rows of {name} in {len(data)} bytes")
        scale = 1.0
        if told.get("normalized") is True and dtype.kind in "iu":
            scale = 1.0 / np.iinfo(dtype).max
        if not count:
            return Column(np.empty((0, width), dtype), scale)
        strides = (stride, dtype.itemsize)
        return Column(np.ndarray((count, width), dtype, data, offset, strides), scale)

    def placed_meshes(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """The meshes of the scene with the motions from them to the world, float64 4x4."""
        nodes = self.list_of(self.tree, "nodes")
        if self.list_of(self.tree, "scenes"):
            scene = self.entry("scenes", self.tree.get("scene", 0))
            roots = self.list_of(scene, "nodes")
        else:
            below = [self.list_of(self.entry("nodes", i), "children") for i in range(len(nodes))]
            roots = [i for i in range(len(nodes)) if not any(i in children for children in below)]
        stack = [(root, torch.eye(4, dtype=torch.float64)) for root in roots]
        for _ in range(len(nodes) + 1):
            if not stack:
                return
            index, parent = stack.pop()
            node = self.entry("nodes", index)
            motion = parent @ self.motion(node)
            if "mesh" in node:
                if not bool(se3.is_similarity(motion)):
                    raise self.damaged(f"node {index} mirrors, shears or stretches Gaussians")
                yield self.entry("meshes", node["mesh"]), motion
            stack += [(child, motion) for child in self.list_of(node, "children")]
        raise self.damaged("a node is the child of two, or of itself")

    def motion(self, node: dict[str, Any]) -> Tensor:
        if "matrix" in node:
            return self.numbers(node, "matrix", [0.0] * 16).reshape(4, 4).T
        quat = self.numbers(node, "rotation", [0.0, 0.0, 0.0, 1.0]).roll(1)
        scale = self.numbers(node, "scale", [1.0] * 3)
        turn = gaussian_geometry.quat_to_rotation(quat) * scale
        return se3.compose(turn, self.numbers(node, "translation", [0.0] * 3))

    def numbers(self, node: dict[str, Any], key: str, default: list[float]) -> Tensor:
        values = self.list_of(node, key) if key in node else default
        good = len(values) == len(default) and all(
            isinstance(value, int | float) and abs(value) < 1e30 for value in values
        )
        if not good:
            raise self.damaged(f"{key} of a node is not {len(default)} sensible numbers")
        return torch.tensor([float(value) for value in values], dtype=torch.float64)


def open_document(path: Path) -> Document:
    if not path.is_file():
        raise UserError(f"no file {path}", "a .glb or .gltf file", "check the path")
    with path.open("rb") as file:
        binary = file.read(4) == MAGIC
        text, data = _chunks(path, file) if binary else (path.read_bytes(), None)
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its JSON cannot be read ({type(error).__name__})") from error
    if not isinstance(tree, dict):
        raise _damaged(path, "its JSON is no object")
    document = Document(path, tree, {})
    for i in range(len(document.list_of(tree, "buffers"))):
        document.buffers[i] = document.buffer(i, data)
    return document


def _chunks(path: Path, file: BinaryIO) -> tuple[bytes, np.ndarray | None]:
    """JSON text and, mapped, the binary chunk of a .glb."""
    size = path.stat().st_size
    head = file.read(16)
    if len(head) < 16:
        raise _damaged(path, "it ends in its header")
    version, _, length, kind = struct.unpack("<IIII", head)
    if version != 2 or kind != JSON_CHUNK or 20 + length > size:
        raise _damaged(path, f"version {version}, and {length} bytes of JSON in {size}")
    text = file.read(length)
    head = file.read(8)
    if len(head) < 8:
        return text, None
    length, kind = struct.unpack("<II", head)
    start = file.tell()
    if kind != BIN_CHUNK or start + length > size:
        raise _damaged(path, f"{length} bytes of data in {size - start}")
    if not length:
        return text, None
    return text, np.memmap(path, np.uint8, "r", start, (length,))


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}", "a whole glTF 2.0 file", "copy or export it again")
