"""3D Gaussians as glTF: .glb with the ratified extension KHR_gaussian_splatting, uncompressed.

https://github.com/KhronosGroup/glTF/tree/main/extensions/2.0/Khronos/KHR_gaussian_splatting: a
primitive of points whose attributes hold linear scales, quaternions xyzw, opacities in [0, 1] and
the harmonics of 3DGS, one coefficient each. glTF's axes are x right, y up, z towards the viewer; so
means, quaternions and harmonics are turned by half a turn about x on the way out and back on the
way in, and what was upright in OpenCV axes (y down, z forward) stands upright in a viewer, seen by
a glTF camera (which looks along -z) from where ours stood. PlayCanvas' splat-transform turns about
z instead: upright as well, but the other way round, behind that camera. Viewers turn nothing.
"""

import json
import logging
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import UserError
from ...geometry import sh
from ...types import Gaussians
from ..files import atomic
from ._blocks import check, read_blocks
from ._gltf_document import BIN_CHUNK, JSON_CHUNK, MAGIC, Column, Document, open_document

log = logging.getLogger(__name__)

EXTENSION = "KHR_gaussian_splatting"
DEGREE = 3  # the highest that the extension knows
FLOAT, UBYTE, POINTS, ARRAY_BUFFER = 5126, 5121, 0, 34962
LEAST = 12  # bytes of a Gaussian: its colour alone, whatever else is shared or small
UNDERSTOOD = {EXTENSION, "KHR_mesh_quantization"}

HALF_TURN = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


def write(gaussians: Gaussians, path: str | Path) -> None:
    """Writes the Gaussians of one scene as a .glb, float32 to the bit, +y up.

    COLOR_0 holds 8-bit colour and opacity for viewers that know points only. Degree 4 is written as
    degree 3, and that is said. Raises UserError for several scenes, for no Gaussians, for values
    that are not finite, for a name that does not end in .glb, and beyond 4 GiB. The file is
    complete or absent.
    """
    if Path(path).suffix.lower() != ".glb":
        raise UserError(f"{path} as glTF to write", "a name that ends in .glb", "call it so")
    check(gaussians, path)
    if not gaussians.means.shape[1]:
        raise UserError(f"no Gaussians for {path}", "at least one in a glTF file", "crop less")
    columns = _columns(_cut(gaussians, path).transformed(HALF_TURN))
    sizes = [column.nbytes for column in columns.values()]
    text = json.dumps(_tree(columns), separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    total = 12 + 8 + len(text) + 8 + sum(sizes)
    if total >= 1 << 32:
        raise UserError(
            f"{gaussians.means.shape[1]} Gaussians take {total / 2**30:.1f} GiB as .glb",
            "less than 4 GiB",
            "drop harmonics or crop, or write another format",
        )
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<4sII", MAGIC, 2, total))
        file.write(struct.pack("<II", len(text), JSON_CHUNK) + text)
        file.write(struct.pack("<II", sum(sizes), BIN_CHUNK))
        for column in columns.values():
            np.ascontiguousarray(column).tofile(file)


def _cut(gaussians: Gaussians, path: str | Path) -> Gaussians:
    """float32 on the CPU, harmonics no higher than the extension knows."""
    if gaussians.sh_degree > DEGREE:
        log.warning("%s: harmonics of degree %d are left out", path, gaussians.sh_degree)
    kept = gaussians.sh[:, :, : (DEGREE + 1) ** 2]
    return replace(gaussians, sh=kept).detach().to("cpu").to(torch.float32)


def _columns(gaussians: Gaussians) -> dict[str, np.ndarray]:
    """Attribute names and their rows, each a multiple of 4 bytes."""
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
            tensors[_harmonic(degree, n)] = coefficients[:, degree * degree + n]
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _harmonic(degree: int, n: int) -> str:
    return f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{n}"


def _tree(columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """The JSON part: one node, one mesh, one primitive, an accessor for each column."""
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
    primitive = {
        "attributes": {name: i for i, name in enumerate(columns)},
        "mode": POINTS,
        "extensions": {
            EXTENSION: {
                "kernel": "ellipse",
                "colorSpace": "srgb_rec709_display",
                "projection": "perspective",
                "sortingMethod": "cameraDistance",
            }
        },
    }
    return {
        "asset": {"version": "2.0", "generator": "pmsplat"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "buffers": [{"byteLength": offset}],
        "bufferViews": views,
        "accessors": accessors,
    }


def read(path: str | Path) -> Gaussians:
    """The Gaussians of a .glb or .gltf as batch 1 on the CPU, turned into OpenCV axes.

    All primitives of the scene with the extension, moved as their nodes say (similarities only);
    floats, or the integers that the extension allows; missing bands are zero where another
    primitive has them. Gaussians that cannot be drawn are left out, and counted in the log. Raises
    UserError for anything else: compressed or sparse data, other kernels, buffers outside the
    folder, and whatever does not fit in the file; before memory is taken for it.
    """
    document = open_document(Path(path))
    required = document.names("extensionsRequired") - UNDERSTOOD
    if required:
        raise UserError(
            f"{path} needs {', '.join(sorted(required))}",
            f"Gaussians as {EXTENSION} alone",
            "export without compression",
        )
    parts, room = [], sum(len(buffer) for buffer in document.buffers.values())
    for mesh, motion in document.placed_meshes():
        for primitive in document.list_of(mesh, "primitives"):
            extensions = document.dict_of(primitive, "extensions")
            if EXTENSION in extensions:
                _check_kernel(path, document.dict_of(extensions, EXTENSION))
                part = _primitive(document, document.dict_of(primitive, "attributes"), room)
                room -= LEAST * part.means.shape[1]
                parts.append(part.transformed(HALF_TURN @ motion))
    if not parts:
        raise UserError(
            f"{path} has no Gaussians", f"a primitive with {EXTENSION}", "export it as Gaussians"
        )
    return Gaussians.joined(parts)


def _primitive(document: Document, attributes: dict[str, Any], room: int) -> Gaussians:
    """The Gaussians of a primitive; `room` is how many bytes of the file may still be theirs."""

    def column(name: str, kind: str) -> Column:
        return document.accessor(attributes, name, kind)

    degree = max(d for d in range(DEGREE + 1) if d == 0 or _harmonic(d, 0) in attributes)
    names = [_harmonic(d, n) for d in range(degree + 1) for n in range(2 * d + 1)]
    means, scales = column("POSITION", "VEC3"), column(f"{EXTENSION}:SCALE", "VEC3")
    quats_xyzw = column(f"{EXTENSION}:ROTATION", "VEC4")
    opacities = column(f"{EXTENSION}:OPACITY", "SCALAR")
    bands = [column(name, "VEC3") for name in names]
    counts = {len(part.rows) for part in (means, scales, quats_xyzw, opacities, *bands)}
    if len(counts) > 1:
        raise document.damaged(f"attributes of {sorted(counts)} rows in one primitive")
    if LEAST * len(means.rows) > room:  # before memory is taken for them
        raise document.damaged("more Gaussians are placed than its bytes can hold")

    def decode(start: int, stop: int) -> Gaussians:
        return Gaussians(
            means=means.values(start, stop)[None],
            scales=scales.values(start, stop)[None],
            quats_wxyz=quats_xyzw.values(start, stop).roll(1, dims=-1)[None],
            opacities=opacities.values(start, stop)[None, :, 0],
            sh=torch.stack([band.values(start, stop) for band in bands], dim=1)[None],
        )

    return read_blocks(document.path, counts.pop(), len(bands), decode)


def _check_kernel(path: str | Path, extension: dict[str, Any]) -> None:
    kernel, space = extension.get("kernel", "ellipse"), extension.get("colorSpace")
    if kernel != "ellipse" or space == "lin_rec709_display":
        raise UserError(
            f"{path} has Gaussians of kernel {kernel!r} and colours {space!r}",
            "kernel 'ellipse' and colours 'srgb_rec709_display'",
            "export it as 3DGS trains them",
        )
