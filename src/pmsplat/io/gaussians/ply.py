"""3D Gaussians as .ply files in the layout of INRIA's 3D Gaussian Splatting, which viewers read.

One vertex per Gaussian, float32: x y z, nx ny nz (zero), f_dc_0..2, f_rest_* channel by channel
(all of red, then green, then blue), opacity as a logit, scale_0..2 as natural logarithms,
rot_0..3 as w x y z. Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering",
2023. The format defines no axes: means are written in the frame of the Gaussians, unchanged.

Precision of a file that `save_ply` wrote: means, harmonics and unit quaternions are exact in
float32; scales and opacities have errors up to 1e-6 (they pass through a logarithm).
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from plyfile import PlyData, PlyElement, PlyParseError

from ...errors import UserError
from ...geometry import sh
from ...types import Gaussians
from ..files import atomic
from . import compressed_ply
from ._blocks import damage_error, read_blocks, write_blocks

log = logging.getLogger(__name__)

DEGREE = 3  # the highest degree that is written: viewers read no higher one
MARGIN = 2.0**-24  # least distance of opacities from 0 and 1, where logits are infinite
HEADER_LIMIT = 1 << 16  # bytes: longest header that is read
SIZES = {"char": 1, "uchar": 1, "short": 2, "ushort": 2, "int": 4, "uint": 4, "float": 4}
SIZES |= {"double": 8, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4}
SIZES |= {"float32": 4, "float64": 8}


def save_ply(gaussians: Gaussians, path: str | Path) -> None:
    """Writes the Gaussians of one scene, in their own world frame and units.

    Degree 4 is written as degree 3, the highest that viewers read, with a warning once per process.
    Needs up to 248 bytes of memory for each Gaussian. Raises UserError for a batch of several
    scenes or for values that are not finite. The file is complete or absent.
    """
    coefficients = min(gaussians.sh.shape[-2], (DEGREE + 1) ** 2)
    if coefficients < gaussians.sh.shape[-2]:
        _warn_once_about_degree()
    blocks = write_blocks(gaussians, path)
    names = _list_properties(coefficients - 1)
    vertices = np.empty((gaussians.means.shape[1], len(names)), "<f4")
    filled = 0
    for block in blocks:
        rows = _make_rows(block, coefficients)
        vertices[filled : filled + len(rows)] = rows
        filled += len(rows)
    table = vertices.view([(name, "<f4") for name in names])[:, 0]
    with atomic(path) as temporary:
        element = PlyElement.describe(table, "vertex")
        PlyData([element], text=False, byte_order="<").write(str(temporary))


def _list_properties(rest: int) -> list[str]:
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(3 * rest)]
    return [*names, "opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]


def _make_rows(block: Gaussians, coefficients: int) -> np.ndarray:
    """Returns a table [gaussian, property] in the order of `_list_properties`."""
    columns = [
        block.means,
        torch.zeros_like(block.means),
        block.sh[..., 0, :],
        rearrange(block.sh[..., 1:coefficients, :], "b g k c -> b g (c k)"),
        torch.logit(block.opacities.clamp(MARGIN, 1 - MARGIN))[..., None],
        block.scales.clamp_min(torch.finfo(torch.float32).tiny).log(),
        block.quats_wxyz,
    ]
    return torch.cat(columns, dim=-1)[0].numpy()


@cache
def _warn_once_about_degree() -> None:
    log.warning(".ply files hold harmonics up to degree 3: those of degree 4 are left out")


def load_ply(path: str | Path) -> Gaussians:
    """Reads the Gaussians of a .ply file as batch 1 on the CPU.

    Reads INRIA's layout (also written by gsplat, nerfstudio and pmsplat) and PlayCanvas' compressed
    one (`compressed_ply`): degrees 0 to 4, with or without normals, binary of either byte order or
    text. Other properties are ignored, quaternions are normalised. Gaussians with values that are
    not finite are left out; a warning counts them. The file is mapped into memory; beside it the
    result takes 236 bytes for each Gaussian of degree 3 and 56 of degree 0. Raises UserError for
    any other file, before it allocates memory for what the header claims.
    """
    # Read the header and choose the layout.
    header = _read_header(path)
    elements = {element.name: element for element in header.elements}
    vertex = elements.get("vertex", _Element("vertex", 0, (), ()))
    if set(compressed_ply.PACKED) <= set(vertex.properties):
        coefficients, decode = compressed_ply.decoder(path, _read_elements(path, header))
        return read_blocks(path, vertex.count, coefficients, decode)
    wanted = set(_list_properties(0)) - {"nx", "ny", "nz"}
    if missing := sorted(wanted - set(vertex.properties)):
        raise UserError(
            f"{path} is a mesh or a point cloud, not Gaussians (no {missing[0]} in its vertices)",
            "a .ply of Gaussians, whose vertices have x y z f_dc_* opacity scale_* rot_*",
            "pass the point_cloud.ply of a 3DGS training run, or export the scene as splats",
        )
    # Find the degree of the harmonics.
    rest = [f"f_rest_{i}" for i in range(sum(n.startswith("f_rest_") for n in vertex.properties))]
    try:
        coefficients = (sh.degree_of(1 + len(rest) // 3) + 1) ** 2
    except ValueError as error:
        raise damage_error(path, f"{len(rest)} properties f_rest_*") from error
    if len(rest) != 3 * (coefficients - 1) or not set(rest) <= set(vertex.properties):
        raise damage_error(path, f"{len(rest)} properties f_rest_*")
    # Decode block by block.
    data = _read_elements(path, header)
    return read_blocks(path, vertex.count, coefficients, _make_decoder(data["vertex"], rest))


def _make_decoder(vertices: np.ndarray, rest: list[str]) -> Callable[[int, int], Gaussians]:
    def decode(start: int, stop: int) -> Gaussians:
        block = vertices[start:stop]

        def columns(*names: str) -> torch.Tensor:
            table = np.stack([block[name] for name in names], axis=-1)
            return torch.from_numpy(table.astype(np.float64))[None]

        coefficients = columns("f_dc_0", "f_dc_1", "f_dc_2")[:, :, None]
        if rest:
            higher = rearrange(columns(*rest), "b g (c k) -> b g k c", c=3)
            coefficients = torch.cat([coefficients, higher], dim=2)
        return Gaussians(
            means=columns("x", "y", "z"),
            scales=columns("scale_0", "scale_1", "scale_2").exp(),
            quats_wxyz=columns("rot_0", "rot_1", "rot_2", "rot_3"),
            opacities=columns("opacity")[..., 0].sigmoid(),
            sh=coefficients,
        )

    return decode


@dataclass(frozen=True)
class _Element:
    """One element of a header: its number of rows and its properties; the type of a list is ""."""

    name: str
    count: int
    types: tuple[str, ...]
    properties: tuple[str, ...]


@dataclass(frozen=True)
class _Header:
    text: bool
    elements: tuple[_Element, ...]
    data_bytes: int


def _read_header(path: str | Path) -> _Header:
    source = Path(path)
    if not source.is_file():
        raise UserError(f"no file {path}", "a .ply file of Gaussians", "check the path")
    with source.open("rb") as file:
        head = file.read(HEADER_LIMIT)
    end = re.search(rb"\nend_header\r?\n", head)
    if not re.match(rb"ply\r?\n", head) or end is None:
        raise damage_error(path, "no .ply header")
    form, elements = "", []
    for line in head[: end.start()].decode("ascii", "replace").splitlines()[1:]:
        match line.split():
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", ("ascii" | "binary_little_endian" | "binary_big_endian") as form, _]:
                pass
            case ["element", name, count] if count.isdecimal() and len(count) < 20:
                elements.append(_Element(name, int(count), (), ()))
            case ["property", "list", _, _, name] if elements:
                elements[-1] = _add_property(elements[-1], "", name)
            case ["property", kind, name] if elements and kind in SIZES:
                elements[-1] = _add_property(elements[-1], kind, name)
            case _:
                raise damage_error(
                    path, f"its header has the line {line[:60]!r}, which is not .ply"
                )
    names = [element.name for element in elements]
    if not form or len(set(names)) < len(names):
        raise damage_error(path, "two elements of one name" if form else "no format in its header")
    for element in elements:
        if len(set(element.properties)) < len(element.properties):
            raise damage_error(path, "two properties of one name")
    return _Header(form == "ascii", tuple(elements), source.stat().st_size - end.end())


def _add_property(element: _Element, kind: str, name: str) -> _Element:
    types, properties = (*element.types, kind), (*element.properties, name)
    return _Element(element.name, element.count, types, properties)


def _read_elements(path: str | Path, header: _Header) -> dict[str, np.ndarray]:
    """Reads the tables of a file after a check of its size; binary files are mapped into memory."""
    claimed = 0
    for element in header.elements:
        if "" in element.types:
            raise damage_error(path, f"its element {element.name!r} has lists")
        row = 2 * len(element.types) if header.text else sum(SIZES[kind] for kind in element.types)
        claimed += element.count * max(row, 1)
        if claimed > header.data_bytes:
            rows = "Gaussians" if element.name == "vertex" else f"rows of {element.name!r}"
            raise damage_error(path, f"{element.count} {rows} in {header.data_bytes} bytes")
    try:
        data = PlyData.read(str(path), mmap="r")
        return {element.name: element.data for element in data.elements}
    except (PlyParseError, ValueError, OverflowError) as error:
        raise damage_error(path, str(error)) from error
