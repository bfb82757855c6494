"""The primitives of a glTF file that hold Gaussians, and what the file says around them.

What its readers cannot follow is refused or named here: see `gltf`.
"""

import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...types import DrawingRules
from ._facts import MODE, name_columns, read_mode
from ._gltf_document import VISIBILITY, Document, Placed, get_extras
from ._gltf_spz import SPZ_EXTENSIONS, find_stream

log = logging.getLogger(__name__)

EXTENSION = "KHR_gaussian_splatting"
DEGREE = 3  # the highest degree of the extension
SUPPORTED = {EXTENSION, "KHR_mesh_quantization", VISIBILITY, *SPZ_EXTENSIONS}
# What surfaces and lights look like, and names for things, whatever the file requires of it.
UNRELATED = re.compile(r"(KHR|EXT|MSFT|ADOBE)_(materials|texture|lights|animation|xmp)")
SRGB = {"srgb_rec709_display", "bt.709"}  # names of what 3DGS trains on; a draft had the last


def harmonic(degree: int, n: int) -> str:
    """The name of the attribute of one coefficient."""
    return f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{n}"


@dataclass(frozen=True)
class Part:
    """A primitive of Gaussians, where it is, the object of its extension, and its .spz if any."""

    place: Placed
    mesh: dict[str, Any]
    primitive: dict[str, Any]
    extension: dict[str, Any]
    stream: np.ndarray | None = None


def find_parts(document: Document) -> tuple[list[Part], Counter[str]]:
    """The primitives of Gaussians that are shown, and how many there are of which others."""
    found, others = [], Counter[str]()
    for place, mesh in document.walk_meshes():
        for primitive in document.get_list(mesh, "primitives"):
            extensions = document.get_object(primitive, "extensions")
            stream = find_stream(document, extensions, EXTENSION)
            if EXTENSION not in extensions and stream is None:
                others["primitives without Gaussians"] += 1
            elif not place.visible:
                others["hidden primitives of Gaussians"] += 1
            else:
                extension = document.get_object(extensions, EXTENSION)
                found.append(Part(place, mesh, primitive, extension, stream))
    return found, others


def check_required(document: Document, parts: list[Part]) -> None:
    """Raises UserError for an extension that the file requires where its Gaussians are stored.

    Where all objects that an extension changes are others, such as materials, Gaussians are read.
    """
    required = document.get_names("extensionsRequired") - SUPPORTED
    unknown = {name for name in required if not UNRELATED.match(name)}
    holders: list[Any] = [document.tree, *document.get_list(document.tree, "nodes")]
    holders += [item for part in parts for item in (part.mesh, part.primitive)]
    holders += [part.extension for part in parts]
    for part in parts:
        attributes = document.get_object(part.primitive, "attributes")
        for index in attributes.values():
            accessor = document.get_entry("accessors", index)
            holders.append(accessor)
            if "bufferView" in accessor:
                view = document.get_entry("bufferViews", accessor["bufferView"])
                buffer = document.get_entry("buffers", document.get_count(view, "buffer"))
                holders += [view, buffer]
    here = {name for holder in holders for name in document.get_object(holder, "extensions")}
    if needed := sorted(unknown - (_list_used(document.tree) - here)):
        raise UserError(
            f"{document.path} needs {', '.join(needed)}",
            f"a file that needs no extension besides {', '.join(sorted(SUPPORTED))}",
            "export it again without compression",
        )


def _list_used(tree: dict[str, Any]) -> set[str]:
    """The names of all extensions that any object of the JSON has."""
    found, stack = set[str](), list[Any]([tree])
    while stack:
        item = stack.pop()
        if isinstance(item, dict) and isinstance(item.get("extensions"), dict):
            found |= set(item["extensions"])
        stack += item.values() if isinstance(item, dict) else item if isinstance(item, list) else []
    return found


def tell_left_out(document: Document, parts: list[Part], others: Counter[str]) -> None:
    """Names once what the file holds besides Gaussians."""
    tree = document.tree
    counts = Counter(others)
    for kind in ("animations", "skins", "cameras"):
        counts[kind] = len(document.get_list(tree, kind))
    counts["scenes that are not shown"] = max(0, len(document.get_list(tree, "scenes")) - 1)
    counts["morph targets"] = sum(len(document.get_list(p.primitive, "targets")) for p in parts)
    counts["lists of indices"] = sum("indices" in part.primitive for part in parts)
    told = [f"{count} {kind}" for kind, count in counts.items() if count]
    known = {"POSITION", "COLOR_0", *(f"{EXTENSION}:{n}" for n in ("ROTATION", "SCALE", "OPACITY"))}
    known |= {harmonic(d, n) for d in range(DEGREE + 1) for n in range(2 * d + 1)}
    names = {n for p in parts for n in document.get_object(p.primitive, "attributes")} - known
    told += [f"the attributes {name_columns(sorted(names))}"] if names else []
    used = (document.get_names("extensionsUsed") | _list_used(tree)) - SUPPORTED
    told += [f"the extensions {', '.join(sorted(used))}"] if used else []
    hints = {str(p.extension.get("projection", "perspective")) for p in parts} - {"perspective"}
    told += [f"the projection {', '.join(sorted(hints))}"] if hints else []
    holders = [item for part in parts for item in (part.mesh, part.primitive, part.extension)]
    nodes = [node for node in document.get_list(tree, "nodes") if isinstance(node, dict)]
    holders += [*nodes, *_list_tops(document)]
    extras = {key for holder in holders for key in get_extras(holder)} - {MODE}
    told += [f"the extras {name_columns(sorted(extras))}"] if extras else []
    modes = {mode for part in parts for mode in _list_modes(document, part)}
    if unknown := sorted(mode[:80] for mode in modes if read_mode(mode) is None):
        log.warning("%s: %s %r is not known and left out", document.path, MODE, unknown[0])
    if told:
        log.warning("%s: left out: %s", document.path, "; ".join(told)[:500])


def find_rules(document: Document, part: Part) -> DrawingRules | None:
    """The rules that the nearest `extras` name, if any that are known."""
    found = (read_mode(mode) for mode in _list_modes(document, part))
    return next((rules for rules in found if rules is not None), None)


def _list_modes(document: Document, part: Part) -> list[str]:
    """What `extras` say of how a part is drawn, the nearest first."""
    near = [get_extras(holder).get(MODE) for holder in (part.extension, part.primitive, part.mesh)]
    above = [get_extras(holder).get(MODE) for holder in _list_tops(document)]
    return [str(mode) for mode in (*near, part.place.mode, *above) if mode is not None]


def _list_tops(document: Document) -> list[dict[str, Any]]:
    """The objects that hold everything: the scene, the asset, the file."""
    tree, scenes = document.tree, document.get_list(document.tree, "scenes")
    scene = [document.get_entry("scenes", tree.get("scene", 0))] if scenes else []
    return [*scene, document.get_object(tree, "asset"), tree]


def check_kernel(path: str | Path, extension: dict[str, Any]) -> None:
    """Raises UserError for Gaussians of other shapes or colours than those of 3DGS."""
    kernel, space = extension.get("kernel", "ellipse"), extension.get("colorSpace")
    known = space.lower() in SRGB if isinstance(space, str) else space is None
    if kernel != "ellipse" or not known:
        raise UserError(
            f"{path} has Gaussians of kernel {kernel!r} and colours {space!r}",
            "kernel 'ellipse' and colours 'srgb_rec709_display'",
            "export it with the standard 3DGS kernel and sRGB colours",
        )
