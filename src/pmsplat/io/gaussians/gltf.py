"""3D Gaussians as glTF: .glb with the ratified extension KHR_gaussian_splatting.

https://github.com/KhronosGroup/glTF/tree/main/extensions/2.0/Khronos/KHR_gaussian_splatting: a
primitive of points whose attributes hold linear scales, quaternions xyzw, opacities in [0, 1] and
the harmonics of 3DGS, one coefficient each. glTF's axes are x right, y up, z towards the viewer;
ours are OpenCV's (y down, z forward). So both `write` and `read` rotate means, quaternions and
harmonics by half a turn about x: the scene stands upright in a viewer, in front of a glTF camera
(which looks along -z) at the pose of ours. PlayCanvas' splat-transform rotates about z instead: the
scene is upright too, but lies behind that camera. Viewers do not rotate.
"""

import json
import logging
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import UserError
from ...geometry import sh
from ...types import NO_OFFSET, Gaussians
from ..files import atomic
from ._blocks import check, read_blocks
from ._facts import MODE, are_logarithms, are_logits, find_mode, into_axes, tell_loss
from ._gltf_document import (
    BIN_CHUNK,
    HALF_TURN,
    JSON_CHUNK,
    MAGIC,
    Column,
    Document,
    open_document,
)
from ._gltf_parts import (
    DEGREE,
    EXTENSION,
    Part,
    check_kernel,
    check_required,
    find_parts,
    find_rules,
    harmonic,
    tell_left_out,
)
from ._gltf_spz import read_stream
from ._placing import join, place

log = logging.getLogger(__name__)

FLOAT, UBYTE, POINTS, ARRAY_BUFFER = 5126, 5121, 0, 34962
MIN_BYTES = 12  # of a Gaussian in a file: accessors may share all but its colour


def write(gaussians: Gaussians, path: str | Path) -> None:
    """Writes the Gaussians of one scene as a .glb, exact in float32, +y up.

    COLOR_0 holds 8-bit colour and opacity, for viewers that can only draw points. Degree 4 is
    written as degree 3, with a warning. Raises UserError for several scenes, for no Gaussians, for
    values that are not finite, for a name that does not end in .glb, and for more than 4 GiB. The
    file is complete or absent.
    """
    if Path(path).suffix.lower() != ".glb":
        raise UserError(
            f"{path} for glTF output",
            "a name that ends in .glb",
            f"rename the output to {Path(path).with_suffix('.glb').name}",
        )
    check(gaussians, path)
    if not gaussians.means.shape[1]:
        raise UserError(
            f"no Gaussians for {path}",
            "at least one in a glTF file",
            "keep more of the scene, or write .ply, which may be empty",
        )
    tell_loss(gaussians, path)
    # Lay out the JSON and the columns.
    turned = into_axes(_limit_degree(gaussians, path), HALF_TURN)
    columns = _columns(turned)
    sizes = [column.nbytes for column in columns.values()]
    text = json.dumps(_build_tree(turned, columns), separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    total = 12 + 8 + len(text) + 8 + sum(sizes)
    if total >= 1 << 32:
        raise UserError(
            f"{gaussians.means.shape[1]} Gaussians take {total / 2**30:.1f} GiB as .glb",
            "less than 4 GiB",
            "drop harmonics, crop the scene, or write .ply",
        )
    # Write the header, the JSON chunk and the binary chunk.
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<4sII", MAGIC, 2, total))
        file.write(struct.pack("<II", len(text), JSON_CHUNK) + text)
        file.write(struct.pack("<II", sum(sizes), BIN_CHUNK))
        for column in columns.values():
            np.ascontiguousarray(column).tofile(file)


def _limit_degree(gaussians: Gaussians, path: str | Path) -> Gaussians:
    """Returns the Gaussians as float32 on the CPU, with harmonics up to DEGREE."""
    if gaussians.sh_degree > DEGREE:
        log.warning("%s: harmonics of degree %d are left out", path, gaussians.sh_degree)
    kept = gaussians.sh[:, :, : (DEGREE + 1) ** 2]
    return replace(gaussians, sh=kept).detach().to("cpu").to(torch.float32)


def _columns(gaussians: Gaussians) -> dict[str, np.ndarray]:
    """Returns the rows of each attribute by its name; a row is a multiple of 4 bytes."""
    coefficients = gaussians.sh[0]
    opacity = gaussians.opacities[0]
    diffuse = (0.5 + sh.C0 * coefficients[:, 0]).clamp(0, 1)
    color = torch.cat([diffuse, opacity[:, None]], dim=-1).mul(255).round().to(torch.uint8)
    tensors = {
        "POSITION": gaussians.means[0],
        "COLOR_0": color,
        f"{EXTENSION}:ROTATION": gaussians.quats_wxyz[0].roll(-1, dims=-1),
        f"{EXTENSION}:SCALE": gaussians.scales[0],
        f"{EXTENSION}:OPACITY": opacity[:, None].clamp(0, 1),
    }
    for degree in range(gaussians.sh_degree + 1):
        for n in range(2 * degree + 1):
            tensors[harmonic(degree, n)] = coefficients[:, degree * degree + n]
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _build_tree(gaussians: Gaussians, columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """Builds the JSON: one node, one mesh, one primitive, an accessor for each column."""
    views, accessors, offset = [], [], 0
    names = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
    for i, (name, column) in enumerate(columns.items()):
        size = column.nbytes
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": size})
        views[-1]["target"] = ARRAY_BUFFER
        accessor: dict[str, Any] = {"bufferView": i, "count": len(column)}
        accessor |= {"type": names[column.shape[1]]}
        accessor |= {"componentType": FLOAT if column.dtype == np.float32 else UBYTE}
        if column.dtype == np.uint8:
            accessor["normalized"] = True
        if name == "POSITION":
            accessor |= {"min": column.min(axis=0).tolist(), "max": column.max(axis=0).tolist()}
        accessors.append(accessor)
        offset += size
    extension: dict[str, Any] = {
        "kernel": "ellipse",
        "colorSpace": "srgb_rec709_display",
        "projection": "perspective",
        "sortingMethod": "cameraDistance",
    }
    if mode := find_mode(gaussians.rules):
        extension["extras"] = {MODE: mode}
    primitive = {
        "attributes": {name: i for i, name in enumerate(columns)},
        "mode": POINTS,
        "extensions": {EXTENSION: extension},
    }
    node: dict[str, Any] = {"mesh": 0}
    if gaussians.origin != NO_OFFSET:
        node["translation"] = list(gaussians.origin)
    return {
        "asset": {"version": "2.0", "generator": "pmsplat"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [node],
        "meshes": [{"primitives": [primitive]}],
        "buffers": [{"byteLength": offset}],
        "bufferViews": views,
        "accessors": accessors,
    }


def read(path: str | Path) -> Gaussians:
    """Reads the Gaussians of a .glb or .gltf as batch 1 on the CPU, in OpenCV axes.

    Reads all primitives of the scene that have the extension and are shown, and applies the
    transforms of their nodes (`_placing`). Attributes are floats or the integers that the extension
    allows; scales may be logarithms, as in its drafts; a primitive may hold a .spz instead
    (`_gltf_spz`). Harmonics that only some primitives have are zero in the others. Gaussians that
    cannot be drawn are left out; a warning counts them. Meshes, animations and other things are
    named in a warning. Raises UserError for sparse data and other compression, for other kernels
    and colours, for buffers outside the folder, and for accessors that exceed the file, before it
    allocates memory for them.
    """
    document = open_document(Path(path))
    found, others = find_parts(document)
    check_required(document, found)
    if not found:
        hidden = " that are shown" if others["hidden primitives of Gaussians"] else ""
        raise UserError(
            f"{path} has no Gaussians{hidden}",
            f"a primitive with {EXTENSION}",
            "export the scene as Gaussian splats, not as a mesh or points",
        )
    tell_left_out(document, found, others)
    # Read part after part.
    drafted = _find_draft(document, [part for part in found if part.stream is None])
    parts, free = [], sum(len(buffer) for buffer in document.buffers.values())
    for one in found:
        check_kernel(path, one.extension)
        attributes = document.get_object(one.primitive, "attributes")
        if one.stream is None:
            part = _read_primitive(document, attributes, free, drafted)
            free -= MIN_BYTES * part.means.shape[1]
        else:
            part = _read_compressed(document, one.stream, attributes, free)
            free -= len(one.stream)
        to_world = HALF_TURN @ one.place.to_world
        placed = place(path, f"node {one.place.index}", part, to_world)
        parts.append(replace(placed, rules=find_rules(document, one) or part.rules))
    return join(path, parts)


@dataclass(frozen=True)
class _Draft:
    """Which attributes are as drafts of the extension had them, or as 3DGS trains them."""

    logarithms: bool
    logits: bool


def _find_draft(document: Document, parts: list[Part]) -> _Draft:
    """What negative numbers give away; a warning says it."""

    def column(part: Part, name: str, kind: str) -> np.ndarray:
        attributes = document.get_object(part.primitive, "attributes")
        return document.load_column(attributes, f"{EXTENSION}:{name}", kind).rows

    logarithms = any(are_logarithms(column(part, "SCALE", "VEC3")) for part in parts)
    logits = any(are_logits(column(part, "OPACITY", "SCALAR")) for part in parts)
    if logarithms:
        log.warning("%s: its scales are logarithms, as in drafts of %s", document.path, EXTENSION)
    if logits:
        log.warning("%s: its opacities are logits, not in [0, 1], and read so", document.path)
    return _Draft(logarithms, logits)


def _read_primitive(
    document: Document, attributes: dict[str, Any], free: int, drafted: _Draft
) -> Gaussians:
    """Reads the Gaussians of a primitive; `free` bytes of the file are not yet accounted for."""

    def column(name: str, kind: str) -> Column:
        return document.load_column(attributes, name, kind)

    # Find the columns and check that they fit together and fit in the file.
    degree = max(d for d in range(DEGREE + 1) if d == 0 or harmonic(d, 0) in attributes)
    names = [harmonic(d, n) for d in range(degree + 1) for n in range(2 * d + 1)]
    means, scales = column("POSITION", "VEC3"), column(f"{EXTENSION}:SCALE", "VEC3")
    quats_xyzw = column(f"{EXTENSION}:ROTATION", "VEC4")
    opacities = column(f"{EXTENSION}:OPACITY", "SCALAR")
    bands = [column(name, "VEC3") for name in names]
    counts = {len(part.rows) for part in (means, scales, quats_xyzw, opacities, *bands)}
    if len(counts) > 1:
        raise document.damage_error(f"attributes of {sorted(counts)} rows in one primitive")
    if MIN_BYTES * len(means.rows) > free:  # before memory is allocated for them
        raise document.damage_error("it places more Gaussians than its bytes can hold")

    # Decode block by block.
    def decode(start: int, stop: int) -> Gaussians:
        sizes = scales.values(start, stop).double()[None]
        shares = opacities.values(start, stop).double()[None, :, 0]
        return Gaussians(
            means=means.values(start, stop)[None],
            scales=sizes.exp() if drafted.logarithms else sizes,
            quats_wxyz=quats_xyzw.values(start, stop).roll(1, dims=-1)[None],
            opacities=shares.sigmoid() if drafted.logits else shares,
            sh=torch.stack([band.values(start, stop) for band in bands], dim=1)[None],
        )

    return read_blocks(document.path, counts.pop(), len(bands), decode, placed=False)


def _read_compressed(
    document: Document, stream: np.ndarray, attributes: dict[str, Any], free: int
) -> Gaussians:
    """Reads the .spz of a primitive; `free` bytes of the file are not yet accounted for."""
    if len(stream) > free:  # the same stream again and again
        raise document.damage_error("it places more Gaussians than its bytes can hold")
    return read_stream(document, stream, attributes)
