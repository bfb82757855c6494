"""Opens the JSON and the buffers of a .glb or .gltf file; every access to them is checked.

https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html. Files are untrusted. Buffers are mapped,
not read; a column of an attribute is a view into them until its values are read, block by block.
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
from ._facts import MODE

MAGIC, JSON_CHUNK, BIN_CHUNK = b"glTF", 0x4E4F534A, 0x004E4942
COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
VISIBILITY = "KHR_node_visibility"
HALF_TURN = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
"""Between our axes and those of glTF, either way."""
WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}


@dataclass(frozen=True)
class Column:
    """An attribute as stored in the file, [row, component]; stored number times `scale` = value."""

    rows: np.ndarray
    scale: float

    def values(self, start: int, stop: int) -> Tensor:
        """Returns rows as float32; the lowest signed normalised integer is clamped to -1."""
        rows = torch.from_numpy(self.rows[start:stop].astype(np.float32))
        return rows if self.scale == 1 else (rows * self.scale).clamp_min(-1)


@dataclass(frozen=True)
class Placed:
    """A node of the tree, its transform to the world (float64 4x4), and whether it is shown.

    `mode` is what `extras` of it, or of the nearest node above, say of how Gaussians are drawn.
    """

    index: int
    to_world: Tensor
    visible: bool
    mode: Any


@dataclass(frozen=True)
class Document:
    """The JSON of an untrusted file and its buffers; methods raise UserError for bad content."""

    path: Path
    tree: dict[str, Any]
    buffers: dict[int, np.ndarray]

    def damage_error(self, fault: str) -> UserError:
        return _damage_error(self.path, fault)

    def get_list(self, owner: dict[str, Any], key: str) -> list[Any]:
        """Returns a list of the JSON, empty where it is missing."""
        value = owner.get(key, [])
        if not isinstance(value, list):
            raise self.damage_error(f"{key} is not a list")
        return value

    def get_object(self, owner: Any, key: str) -> dict[str, Any]:
        """Returns an object of the JSON, empty where it is missing."""
        value = owner.get(key, {}) if isinstance(owner, dict) else None
        if not isinstance(value, dict):
            raise self.damage_error(f"{key} is not an object")
        return value

    def get_names(self, key: str) -> set[str]:
        """Returns a list of names at the top of the JSON as a set."""
        return {str(name) for name in self.get_list(self.tree, key)}

    def get_count(self, owner: dict[str, Any], key: str, default: int | None = None) -> int:
        """Returns a number of the JSON that must be an integer >= 0."""
        value = owner.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.damage_error(f"{key} is {value!r}")
        return value

    def get_entry(self, kind: str, index: Any) -> dict[str, Any]:
        """Returns entry `index` of a list at the top of the JSON, such as `accessors`."""
        entries = self.get_list(self.tree, kind)
        known = isinstance(index, int) and not isinstance(index, bool) and 0 <= index < len(entries)
        if not known or not isinstance(entries[index], dict):
            raise self.damage_error(f"{kind} has no entry {index!r}")
        return entries[index]

    def load_buffer(self, index: int, binary: np.ndarray | None) -> np.ndarray:
        """Returns the bytes of a buffer: binary chunk, data URI, or file in the same folder."""
        entry = self.get_entry("buffers", index)
        length, uri = self.get_count(entry, "byteLength"), entry.get("uri")
        if uri is None:
            found = binary if index == 0 and binary is not None else np.empty(0, np.uint8)
        elif not isinstance(uri, str):
            raise self.damage_error(f"the uri of buffer {index} is not text")
        elif uri.startswith("data:"):
            try:
                decoded = base64.b64decode(uri.partition(";base64,")[2], validate=True)
            except (binascii.Error, ValueError) as error:
                raise self.damage_error(f"buffer {index} is not base64 ({error})") from error
            found = np.frombuffer(decoded, np.uint8)
        else:
            found = self.map_file(unquote(uri))
        if len(found) < length:
            raise self.damage_error(f"buffer {index} has {len(found)} of {length} bytes")
        return found[:length]

    def map_file(self, name: str) -> np.ndarray:
        """Maps a file in the folder of this one or below; returns its bytes."""
        folder = self.path.parent.resolve()
        try:
            place = (folder / name).resolve()
            if place.is_relative_to(folder) and place.is_file() and place.stat().st_size:
                return np.memmap(place, np.uint8, "r")
        except (OSError, ValueError) as error:  # names that no file can have
            raise self.damage_error(f"there is no buffer {name[:80]!r} beside it") from error
        raise self.damage_error(f"there is no buffer {name[:80]!r} beside it")

    def load_view(self, index: Any) -> np.ndarray:
        """Returns the bytes of a bufferView, as many of them as the buffer has."""
        view = self.get_entry("bufferViews", index)
        buffer = self.get_count(view, "buffer")
        if buffer not in self.buffers:
            raise self.damage_error(f"there is no buffer {buffer}")
        start = self.get_count(view, "byteOffset", 0)
        return self.buffers[buffer][start : start + self.get_count(view, "byteLength")]

    def load_column(self, attributes: dict[str, Any], name: str, kind: str) -> Column:
        """Returns an attribute of a primitive as a view into its buffer."""
        # Look up the accessor and the buffer that holds it.
        if name not in attributes:
            raise self.damage_error(f"a primitive has no {name}")
        accessor = self.get_entry("accessors", attributes[name])
        code = self.get_count(accessor, "componentType")
        if accessor.get("type") != kind or code not in COMPONENTS:
            raise self.damage_error(f"{name} is {accessor.get('type')!r} of type {code}")
        if "sparse" in accessor or "bufferView" not in accessor:
            raise self.damage_error(f"{name} is sparse or compressed")
        view = self.get_entry("bufferViews", accessor["bufferView"])
        data = self.load_view(accessor["bufferView"])
        # Check that all rows lie inside the buffer.
        dtype, width = np.dtype(COMPONENTS[code]), WIDTHS[kind]
        count, row = self.get_count(accessor, "count"), width * dtype.itemsize
        stride = self.get_count(view, "byteStride", row)
        offset = self.get_count(accessor, "byteOffset", 0)
        if stride < row or (count and offset + stride * (count - 1) + row > len(data)):
            raise self.damage_error(f"{count} rows of {name} in {len(data)} bytes")
        scale = 1.0
        if accessor.get("normalized") is True and dtype.kind in "iu":
            scale = 1.0 / np.iinfo(dtype).max
        if not count:
            return Column(np.empty((0, width), dtype), scale)
        strides = (stride, dtype.itemsize)
        return Column(np.ndarray((count, width), dtype, data, offset, strides), scale)

    def walk_meshes(self) -> Iterator[tuple[Placed, dict[str, Any]]]:
        """Yields each mesh of the scene, after its place."""
        nodes = self.get_list(self.tree, "nodes")
        if self.get_list(self.tree, "scenes"):
            scene = self.get_entry("scenes", self.tree.get("scene", 0))
            roots = self.get_list(scene, "nodes")
        else:
            below = [
                self.get_list(self.get_entry("nodes", i), "children") for i in range(len(nodes))
            ]
            roots = [i for i in range(len(nodes)) if not any(i in children for children in below)]
        stack: list[tuple[Any, Placed | None]] = [(root, None) for root in roots]
        for _ in range(len(nodes) + 1):
            if not stack:
                return
            index, above = stack.pop()
            node = self.get_entry("nodes", index)
            to_world = self.get_transform(node)
            state = self.get_object(self.get_object(node, "extensions"), VISIBILITY)
            visible = state.get("visible") is not False
            if above is not None:
                to_world, visible = above.to_world @ to_world, visible and above.visible
            said = get_extras(node).get(MODE, None if above is None else above.mode)
            here = Placed(index, to_world, visible, said)
            if "mesh" in node:
                yield here, self.get_entry("meshes", node["mesh"])
            stack += [(child, here) for child in self.get_list(node, "children")]
        raise self.damage_error("a node is the child of two nodes, or of itself")

    def get_transform(self, node: dict[str, Any]) -> Tensor:
        """Returns the transform of a node to its parent, float64 4x4."""
        if "matrix" in node:
            return self.get_numbers(node, "matrix", [0.0] * 16).reshape(4, 4).T
        quat = self.get_numbers(node, "rotation", [0.0, 0.0, 0.0, 1.0]).roll(1)
        scale = self.get_numbers(node, "scale", [1.0] * 3)
        turn = gaussian_geometry.quat_to_rotation(quat) * scale
        return se3.compose(turn, self.get_numbers(node, "translation", [0.0] * 3))

    def get_numbers(self, node: dict[str, Any], key: str, default: list[float]) -> Tensor:
        values = self.get_list(node, key) if key in node else default
        good = len(values) == len(default) and all(
            isinstance(value, int | float) and abs(value) < 1e30 for value in values
        )
        if not good:
            raise self.damage_error(f"{key} is not {len(default)} finite numbers")
        return torch.tensor([float(value) for value in values], dtype=torch.float64)


def get_extras(holder: dict[str, Any]) -> dict[str, Any]:
    """The data of applications in an object, which may be of any kind."""
    extras = holder.get("extras")
    return extras if isinstance(extras, dict) else {}


def open_document(path: Path) -> Document:
    """Opens a .glb or .gltf file; raises UserError where it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"no file {path}", "a .glb or .gltf file", "check the path")
    with path.open("rb") as file:
        binary = file.read(4) == MAGIC
        text, data = _split_glb(path, file) if binary else (path.read_bytes(), None)
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damage_error(path, f"its JSON cannot be read ({type(error).__name__})") from error
    if not isinstance(tree, dict):
        raise _damage_error(path, "its JSON is not an object")
    document = Document(path, tree, {})
    for i in range(len(document.get_list(tree, "buffers"))):
        document.buffers[i] = document.load_buffer(i, data)
    return document


def _split_glb(path: Path, file: BinaryIO) -> tuple[bytes, np.ndarray | None]:
    """Returns the JSON text of a .glb and its binary chunk, mapped; None if it has none."""
    size = path.stat().st_size
    head = file.read(16)
    if len(head) < 16:
        raise _damage_error(path, "it ends in its header")
    version, _, length, kind = struct.unpack("<IIII", head)
    if version != 2 or kind != JSON_CHUNK or 20 + length > size:
        raise _damage_error(
            path, f"version {version}, and {length} bytes of JSON in a file of {size}"
        )
    text = file.read(length)
    head = file.read(8)
    if len(head) < 8:
        return text, None
    length, kind = struct.unpack("<II", head)
    start = file.tell()
    if kind != BIN_CHUNK or start + length > size:
        raise _damage_error(path, f"{length} bytes of data where {size - start} are left")
    if not length:
        return text, None
    return text, np.memmap(path, np.uint8, "r", start, (length,))


def _damage_error(path: Path, fault: str) -> UserError:
    return UserError(f"{path}: {fault}", "a whole glTF 2.0 file", "copy or export it again")
