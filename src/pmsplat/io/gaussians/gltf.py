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
from ._gltf_spz import SPZ_EXTENSIONS, find_stream, read_stream

log = logging.getLogger(__name__)

EXTENSION = "KHR_gaussian_splatting"
DEGREE = 3  # the highest degree of the extension
FLOAT, UBYTE, POINTS, ARRAY_BUFFER = 5126, 5121, 0, 34962
MIN_BYTES = 12  # of a Gaussian in a file: accessors may share all but its colour
SUPPORTED = {EXTENSION, "KHR_mesh_quantization", "KHR_materials_unlit", *SPZ_EXTENSIONS}

HALF_TURN = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


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
    # Lay out the JSON and the columns.
    columns = _columns(_limit_degree(gaussians, path).transformed(HALF_TURN))
    sizes = [column.nbytes for column in columns.values()]
    text = json.dumps(_build_tree(columns), separators=(",", ":")).encode()
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
            tensors[_harmonic(degree, n)] = coefficients[:, degree * degree + n]
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _harmonic(degree: int, n: int) -> str:
    return f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{n}"


def _build_tree(columns: dict[str, np.ndarray]) -> dict[str, Any]:
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
    """Reads the Gaussians of a .glb or .gltf as batch 1 on the CPU, in OpenCV axes.

    Reads all primitives of the scene that have the extension and applies the transforms of their
    nodes (similarities only). Attributes are floats or the integers that the extension allows.
    A primitive may hold a .spz instead: see `_gltf_spz`. Harmonics that only some primitives have
    are zero in the others. Gaussians that cannot be drawn are left out; a warning counts them.
    Raises UserError for sparse data, for other compression and other kernels, for buffers outside
    the folder, and for accessors that exceed the file, before it allocates memory for them.
    """
    document = open_document(Path(path))
    required = document.get_names("extensionsRequired") - SUPPORTED
    if required:
        raise UserError(
            f"{path} needs {', '.join(sorted(required))}",
            f"a file that needs no extension besides {', '.join(sorted(SUPPORTED))}",
            "export it again without compression",
        )
    parts, free = [], sum(len(buffer) for buffer in document.buffers.values())
    for mesh, to_world in document.walk_meshes():
        for primitive in document.get_list(mesh, "primitives"):
            extensions = document.get_object(primitive, "extensions")
            stream = find_stream(document, extensions, EXTENSION)
            if EXTENSION in extensions or stream is not None:
                _check_kernel(path, document.get_object(extensions, EXTENSION))
                attributes = document.get_object(primitive, "attributes")
                if stream is None:
                    part = _read_primitive(document, attributes, free)
                    free -= MIN_BYTES * part.means.shape[1]
                else:
                    part = _read_compressed(document, stream, attributes, free)
                    free -= len(stream)
                parts.append(part.transformed(HALF_TURN @ to_world))
    if not parts:
        raise UserError(
            f"{path} has no Gaussians",
            f"a primitive with {EXTENSION}",
            "export the scene as Gaussian splats, not as a mesh or points",
        )
    return Gaussians.joined(parts)


def _read_primitive(document: Document, attributes: dict[str, Any], free: int) -> Gaussians:
    """Reads the Gaussians of a primitive; `free` bytes of the file are not yet accounted for."""

    def column(name: str, kind: str) -> Column:
        return document.load_column(attributes, name, kind)

    # Find the columns and check that they fit together and fit in the file.
    degree = max(d for d in range(DEGREE + 1) if d == 0 or _harmonic(d, 0) in attributes)
    names = [_harmonic(d, n) for d in range(degree + 1) for n in range(2 * d + 1)]
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
        return Gaussians(
            means=means.values(start, stop)[None],
            scales=scales.values(start, stop)[None],
            quats_wxyz=quats_xyzw.values(start, stop).roll(1, dims=-1)[None],
            opacities=opacities.values(start, stop)[None, :, 0],
            sh=torch.stack([band.values(start, stop) for band in bands], dim=1)[None],
        )

    return read_blocks(document.path, counts.pop(), len(bands), decode)


def _read_compressed(
    document: Document, stream: np.ndarray, attributes: dict[str, Any], free: int
) -> Gaussians:
    """Reads the .spz of a primitive; `free` bytes of the file are not yet accounted for."""
    if len(stream) > free:  # the same stream again and again
        raise document.damage_error("it places more Gaussians than its bytes can hold")
    return read_stream(document, stream, attributes)


def _check_kernel(path: str | Path, extension: dict[str, Any]) -> None:
    kernel, space = extension.get("kernel", "ellipse"), extension.get("colorSpace")
    if kernel != "ellipse" or space == "lin_rec709_display":
        raise UserError(
            f"{path} has Gaussians of kernel {kernel!r} and colours {space!r}",
            "kernel 'ellipse' and colours 'srgb_rec709_display'",
            "export it with the standard 3DGS kernel and sRGB colours",
        )
