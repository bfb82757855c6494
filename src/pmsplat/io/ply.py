"""3D Gaussians as the .ply files that viewers know (the layout of INRIA's 3D Gaussian Splatting).

One vertex per Gaussian, float32: x y z, nx ny nz (zero), f_dc_0..2, f_rest_* channel by channel
(all of red, then green, then blue), opacity as a logit, scale_0..2 as natural logarithms,
rot_0..3 as w x y z. Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering",
2023. The file names no axes; what is written is the frame of the Gaussians, unchanged.
"""

import logging
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from plyfile import PlyData, PlyElement, PlyParseError
from torch import Tensor

from ..errors import UserError
from ..geometry import sh
from ..types import Gaussians
from .files import atomic

log = logging.getLogger(__name__)

DEGREE = 3  # the highest that the layout knows
MARGIN = 2.0**-24  # opacities are kept so far from 0 and 1, or their logits would be infinite
HEADER_LIMIT = 1 << 16  # bytes in which a header must end
SIZES = {"char": 1, "uchar": 1, "short": 2, "ushort": 2, "int": 4, "uint": 4, "float": 4}
SIZES |= {"double": 8, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4}
SIZES |= {"float32": 4, "float64": 8}


def save_ply(gaussians: Gaussians, path: str | Path) -> None:
    """Writes the Gaussians of one scene, in their own world frame and units.

    Degree 4 is written as degree 3, since the layout ends there; that is said once. Raises
    UserError for a batch of several scenes or for values that are not finite. The file is complete
    or absent.
    """
    if gaussians.means.shape[0] != 1:
        raise UserError(
            f"Gaussians of {gaussians.means.shape[0]} scenes for {path}",
            "one scene per .ply file",
            "save them one at a time: gaussians.map(lambda t: t[i : i + 1])",
        )
    rows = _rows(gaussians).numpy()
    broken = int((~np.isfinite(rows)).any(axis=1).sum())
    if broken:
        raise UserError(
            f"{broken} of {len(rows)} Gaussians are not finite",
            "finite means, scales, rotations, opacities and colours",
            "look at the loss of the training run, or at near and far of the cameras",
        )
    dtype = np.dtype([(name, "<f4") for name in _properties((rows.shape[1] - 17) // 3)])
    vertices = np.ascontiguousarray(rows).view(dtype)[:, 0]
    with atomic(path) as temporary:
        element = PlyElement.describe(vertices, "vertex")
        PlyData([element], text=False, byte_order="<").write(str(temporary))


def _properties(rest: int) -> list[str]:
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(3 * rest)]
    return [*names, "opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]


def _rows(gaussians: Gaussians) -> Tensor:
    """float32 [gaussian, property] in the order of `_properties`."""
    one = gaussians.detach().to("cpu").to(torch.float64)
    coefficients = one.sh
    if coefficients.shape[-2] > (DEGREE + 1) ** 2:
        _say_that_degree_is_cut()
        coefficients = coefficients[..., : (DEGREE + 1) ** 2, :]
    opacity = one.opacities.clamp(MARGIN, 1 - MARGIN)
    columns = [
        one.means,
        torch.zeros_like(one.means),
        coefficients[..., 0, :],
        rearrange(coefficients[..., 1:, :], "b g k c -> b g (c k)"),
        torch.logit(opacity)[..., None],
        one.scales.clamp_min(torch.finfo(torch.float32).tiny).log(),
        one.quats_wxyz,
    ]
    return torch.cat(columns, dim=-1)[0].float()


@cache
def _say_that_degree_is_cut() -> None:
    log.warning("spherical harmonics of degree 4 are written as degree 3: .ply ends there")


@dataclass(frozen=True)
class _Header:
    text: bool
    count: int
    properties: tuple[str, ...]
    row_bytes: int  # of a vertex; in a text file the least that it can take
    data_bytes: int


def load_ply(path: str | Path) -> Gaussians:
    """The Gaussians of a .ply file as batch 1 on the CPU: INRIA's, gsplat's, nerfstudio's or ours.

    Degrees 0 to 3, with or without normals, text or binary; quaternions come back normalised.
    Gaussians with values that are not finite are left out, and their number is logged. Raises
    UserError for anything else, before memory is taken for what the header only claims.
    """
    header = _read_header(path)
    wanted = set(_properties(0)) - {"nx", "ny", "nz"}
    missing = sorted(wanted - set(header.properties))
    if missing:
        raise UserError(
            f"{path} is {_kind(header)} (its vertices have no {missing[0]})",
            "the .ply of trained Gaussians, whose vertices have x y z f_dc opacity scale rot",
            "export uncompressed Gaussians from the tool that made it",
        )
    if header.count * header.row_bytes > header.data_bytes:
        raise _broken(path, f"{header.count} Gaussians in {header.data_bytes} bytes")
    try:
        vertex = PlyData.read(str(path))["vertex"].data
    except (PlyParseError, ValueError) as error:
        raise _broken(path, str(error)) from error

    def columns(*names: str) -> Tensor:
        table = np.stack([vertex[name] for name in names], axis=-1)
        return torch.from_numpy(table.astype(np.float64))[None]

    rest = [f"f_rest_{i}" for i in range(sum(n.startswith("f_rest_") for n in header.properties))]
    try:
        sh.degree_of(1 + len(rest) // 3)
        higher = rearrange(columns(*rest), "b g (c k) -> b g k c", c=3) if rest else None
    except ValueError as error:
        raise _broken(path, f"{len(rest)} properties f_rest_*") from error
    first = columns("f_dc_0", "f_dc_1", "f_dc_2")[:, :, None]
    gaussians = Gaussians(
        means=columns("x", "y", "z"),
        scales=columns("scale_0", "scale_1", "scale_2").exp(),
        quats_wxyz=torch.nn.functional.normalize(
            columns("rot_0", "rot_1", "rot_2", "rot_3"), dim=-1
        ),
        opacities=columns("opacity")[..., 0].sigmoid(),
        sh=first if higher is None else torch.cat([first, higher], dim=2),
    )
    return _only_finite(gaussians.to(torch.float32), path)


def _read_header(path: str | Path) -> _Header:
    source = Path(path)
    if not source.is_file():
        raise UserError(f"no file {path}", "a .ply file of Gaussians", "check the path")
    with source.open("rb") as file:
        head = file.read(HEADER_LIMIT)
    end = re.search(rb"end_header\r?\n", head)
    if not head.startswith(b"ply") or end is None:
        raise _broken(path, "no .ply header")
    lines = [line.split() for line in head[: end.start()].decode("ascii", "replace").splitlines()]
    text = ["format", "ascii", "1.0"] in lines
    count, types, names, inside = 0, [], [], False
    for words in filter(None, lines):
        if words[0] == "element":
            inside = words[1:2] == ["vertex"]
            if inside:
                count = int(words[2]) if words[2:3] and words[2].isdecimal() else 0
        elif words[0] == "property" and inside and len(words) >= 3:
            types.append(words[1])
            names.append(words[-1])
    if not count or len(set(names)) < len(names):
        raise _broken(path, "no vertices" if not count else "two properties of one name")
    row = 2 * len(names) if text else sum(SIZES.get(kind, 1) for kind in types)
    return _Header(text, count, tuple(names), row, source.stat().st_size - end.end())


def _kind(header: _Header) -> str:
    if any(name.startswith("packed_") for name in header.properties):
        return "a compressed .ply"
    return "a mesh or a point cloud, not Gaussians"


def _broken(path: str | Path, what: str) -> UserError:
    return UserError(f"{path}: {what}", "a whole .ply file of Gaussians", "copy or export it again")


def _only_finite(gaussians: Gaussians, path: str | Path) -> Gaussians:
    parts = [gaussians.means, gaussians.scales, gaussians.quats_wxyz, gaussians.sh.flatten(2)]
    values = torch.cat([*parts, gaussians.opacities[..., None]], dim=-1)
    finite = values.isfinite().all(dim=-1)[0]
    if finite.all():
        return gaussians
    log.warning("%s: %d Gaussians are not finite and left out", path, int((~finite).sum()))
    if not finite.any():
        raise _broken(path, "not one Gaussian is finite")
    return gaussians.map(lambda tensor: tensor[:, finite])
