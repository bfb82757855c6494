"""3D Gaussians as .ply files in the layout of INRIA's 3D Gaussian Splatting, which viewers read.

One vertex per Gaussian, float32: x y z, nx ny nz (zero), f_dc_0..2, f_rest_* channel by channel
(all of red, then green, then blue), opacity as a logit, scale_0..2 as natural logarithms,
rot_0..3 as w x y z. Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering",
2023. The format defines no axes: means are written in the frame of the Gaussians, unchanged. What
comments say is in `_facts`. A last column of ours, `confidence`, is written where it is known.

Other programs' columns: `filter_3D` is the 3-D filter of Mip-Splatting (Yu et al., 2024), red green
blue without f_dc_* the colour of nerfstudio's export without harmonics; without scale_2 the file is
of 2D Gaussian Splatting (Huang et al., 2024); the element color_space is Apple SHARP's.

Precision of a file that `save_ply` wrote: means, harmonics and unit quaternions are exact in
float32; scales and opacities have errors up to 1e-6 (they pass through a logarithm).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from plyfile import PlyData, PlyElement

from ...errors import UserError
from ...geometry import sh
from ...types import DrawingRules, Gaussians
from ..files import atomic
from . import compressed_ply
from ._blocks import damage_error, read_blocks, write_blocks
from ._facts import Facts, name_columns, read_comments, tell_loss, write_comments
from ._ply_tables import NUMBERS, Element, Header, read_header, read_tables

log = logging.getLogger(__name__)

DEGREE = 3  # the highest degree that is written: viewers read no higher one
MARGIN = 2.0**-24  # least distance of opacities from 0 and 1, where logits are infinite
MEANS, NORMALS, DC = ("x", "y", "z"), ("nx", "ny", "nz"), ("f_dc_0", "f_dc_1", "f_dc_2")
SCALES, QUATS = ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")
RGB = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
CONFIDENCE = "confidence"
FILTER, COLOR_SPACE = "filter_3D", "color_space"
FLAT = 1e-6  # third scale of flat Gaussians, in scene units, as SuperSplat and 2DGS's tools have it
MIP_SPLATTING = DrawingRules(blur=0.1, antialiased=True)  # its `kernel_size` unless told otherwise
MANY = 20  # Gaussians that are enough to tell
SAMPLE = 1 << 14  # rows that tell whether a column means something


def save_ply(gaussians: Gaussians, path: str | Path) -> None:
    """Writes the Gaussians of one scene, in their own world frame and units.

    Comments say how they are drawn, where their origin lies and what is up, if so; a column has
    their confidence, if they have some. Degree 4 is written as degree 3, the highest that viewers
    read, with a warning once per process. Needs up to 252 bytes of memory for each Gaussian. Raises
    UserError for a batch of several scenes or for values that are not finite. The file is complete
    or absent.
    """
    coefficients = _count_coefficients(gaussians)
    if coefficients < gaussians.sh.shape[-2]:
        _warn_once_about_degree()
    blocks = write_blocks(gaussians, path)
    tell_loss(gaussians, path, comments=True, confidence=True)
    names = _list_columns(gaussians)
    vertices = np.empty((gaussians.means.shape[1], len(names)), "<f4")
    filled = 0
    for block in blocks:
        rows = _make_rows(block, coefficients)
        vertices[filled : filled + len(rows)] = rows
        filled += len(rows)
    table = vertices.view([(name, "<f4") for name in names])[:, 0]
    with atomic(path) as temporary:
        element, comments = PlyElement.describe(table, "vertex"), write_comments(gaussians)
        PlyData([element], text=False, byte_order="<", comments=comments).write(str(temporary))


def bytes_per_gaussian(gaussians: Gaussians) -> int:
    """What `save_ply` writes for each of them."""
    return 4 * len(_list_columns(gaussians))


def _count_coefficients(gaussians: Gaussians) -> int:
    return min(gaussians.sh.shape[-2], (DEGREE + 1) ** 2)


def _list_columns(gaussians: Gaussians) -> list[str]:
    sure = [] if gaussians.confidence is None else [CONFIDENCE]
    return _list_properties(_count_coefficients(gaussians) - 1) + sure


def _list_properties(rest: int) -> list[str]:
    return [*MEANS, *NORMALS, *DC, *(f"f_rest_{i}" for i in range(3 * rest)), "opacity", *SCALES,
            *QUATS]  # fmt: skip


def _make_rows(block: Gaussians, coefficients: int) -> np.ndarray:
    """Returns a table [gaussian, property] in the order of `_list_properties`, then confidence."""
    columns = [
        block.means,
        torch.zeros_like(block.means),
        block.sh[..., 0, :],
        rearrange(block.sh[..., 1:coefficients, :], "b g k c -> b g (c k)"),
        torch.logit(block.opacities.clamp(MARGIN, 1 - MARGIN))[..., None],
        block.scales.clamp_min(torch.finfo(torch.float32).tiny).log(),
        block.quats_wxyz,
    ]
    if block.confidence is not None:
        columns.append(block.confidence[..., None])
    return torch.cat(columns, dim=-1)[0].numpy()


@cache
def _warn_once_about_degree() -> None:
    log.warning(".ply files hold harmonics up to degree 3: those of degree 4 are left out")


def load_ply(path: str | Path) -> Gaussians:
    """Reads the Gaussians of a .ply file as batch 1 on the CPU.

    Reads INRIA's layout (also written by gsplat, nerfstudio and pmsplat), its dialects (see the
    module) and PlayCanvas' compressed one (`compressed_ply`): degrees 0 to 4, with or without
    normals, binary of either byte order or text. `rules`, `origin` and `up` are those of the
    comments; `confidence` is a column of floating point whose values all lie in [0, 1]; a warning
    names one with others. Properties and elements that are not read are named in a warning;
    quaternions are normalised. Gaussians with values that are not finite are left out; a warning
    counts them. The file is mapped into memory; beside it the result takes 236 bytes for each
    Gaussian of degree 3 and 56 of degree 0. Raises UserError for any other file and for linear
    colours, before it allocates memory for what the header claims.
    """
    header = read_header(path)
    vertex, facts = header.get_element("vertex"), read_comments(path, header.comments)
    if set(compressed_ply.PACKED) <= set(vertex.properties):
        known = ("vertex", "chunk", "sh")
        coefficients, decode = compressed_ply.decoder(path, read_tables(path, header, known))
        _tell_left_out(
            path, header, [p for p in vertex.properties if p not in compressed_ply.PACKED]
        )
        return read_blocks(path, vertex.count, coefficients, lambda i, j: facts.of(decode(i, j)))
    layout = _find_layout(path, header)
    tables = read_tables(path, header, ("vertex", COLOR_SPACE))
    _check_colors(path, tables.get(COLOR_SPACE))
    rows = tables.get("vertex", np.empty(0, vertex.make_dtype("=")))
    _tell_left_out(path, header, _list_unread(vertex, layout, rows))
    _tell_linear(path, rows, layout)
    if layout.sure:
        layout = replace(layout, sure=_are_probabilities(path, rows[CONFIDENCE]))
    if layout.filtered and facts.rules is None:
        facts = replace(facts, rules=MIP_SPLATTING)
        log.warning("%s: filter_3D is Mip-Splatting's, so it is drawn antialiased with a blur of "
                    "%g px², the default there", path, MIP_SPLATTING.blur)  # fmt: skip
    decode = _make_decoder(rows, layout, facts)
    return read_blocks(path, vertex.count, 1 + len(layout.rest) // 3, decode)


@dataclass(frozen=True)
class _Layout:
    """Which columns hold what; `dc` are coefficients, or colours where `is_rgb`.

    `filtered` and `sure`: whether there are a 3-D filter and confidence.
    """

    dc: tuple[str, ...]
    rest: tuple[str, ...]
    scales: tuple[str, ...]
    filtered: bool
    is_rgb: bool
    sure: bool


def _find_layout(path: str | Path, header: Header) -> _Layout:
    vertex = header.get_element("vertex")
    names = set(vertex.properties)
    rgb = [triple for triple in RGB if not names & set(DC) and set(triple) <= names]
    dc, scales = rgb[0] if rgb else DC, SCALES[:2] if SCALES[2] not in names else SCALES
    if missing := sorted({*MEANS, *dc, *scales, *QUATS, "opacity"} - names):
        partly = names & {"opacity", *SCALES, *QUATS}
        what = "is a mesh or a point cloud, not Gaussians"
        if partly:
            what = "holds Gaussians without all that they need"
        raise UserError(
            f"{path} {what} (no {', '.join(missing[:3])} in its vertices)",
            "a .ply of Gaussians, whose vertices have x y z f_dc_* opacity scale_* rot_*",
            "pass the point_cloud.ply of a 3DGS training run, or export the scene as splats",
        )
    if lists := [n for n, kind in zip(vertex.properties, vertex.types, strict=True) if not kind]:
        raise damage_error(path, f"its element 'vertex' has lists ({lists[0]})")
    kinds = dict(zip(vertex.properties, vertex.types, strict=True))
    if whole := [n for n in ("opacity", *scales, *QUATS) if NUMBERS[kinds[n]][0] != "f"]:
        raise UserError(
            f"{path} has whole numbers for {whole[0]}",
            "logits, logarithms and quaternions in floating point",
            "export it again as the .ply of 3DGS training",
        )
    if len(scales) == 2 or "splatrendermode: 2dgs" in map(str.lower, header.comments):
        log.warning("%s: it is of 2D Gaussian Splatting; its discs are drawn as Gaussians of "
                    "thickness %g", path, FLAT)  # fmt: skip
    # Find the degree of the harmonics.
    count = sum(name.startswith("f_rest_") for name in names)
    rest = tuple(f"f_rest_{i}" for i in range(count))
    try:
        coefficients = (sh.degree_of(1 + count // 3) + 1) ** 2
    except ValueError as error:
        raise damage_error(path, f"{count} properties f_rest_*") from error
    if count != 3 * (coefficients - 1) or not set(rest) <= names:
        raise damage_error(path, f"{count} properties f_rest_*")
    sure = NUMBERS.get(kinds.get(CONFIDENCE, ""), "")[:1] == "f"
    return _Layout(dc, rest, scales, FILTER in names, bool(rgb), sure)


def _check_colors(path: str | Path, table: np.ndarray | None) -> None:
    """Raises UserError where the file says that its colours are not sRGB."""
    if table is None or not table.dtype.names or not len(table):
        return
    with np.errstate(all="ignore"):
        linear = (table[table.dtype.names[0]] != 0).any()
    if linear:
        raise UserError(
            f"{path} has Gaussians of linear colours (its element {COLOR_SPACE})",
            "colours in sRGB, as they are shown",
            "export it again with sRGB colours",
        )


def _tell_linear(path: str | Path, rows: np.ndarray, layout: _Layout) -> None:
    """Says that a file looks as if its writer forgot logits or logarithms; the layout stays.

    No scene has opacities that differ and lie all between one half and 0.73; nor are all Gaussians
    above one unit beside those, or each wider than nine tenths of the scene.
    """
    some = rows[:: -(-len(rows) // SAMPLE) or 1]
    if len(some) < MANY:
        return
    with np.errstate(all="ignore"):
        logits = some["opacity"]
        inside = logits.min() >= 0 and logits.max() <= 1 and logits.min() < logits.max()
        least = min(float(some[name].min()) for name in layout.scales)
        ends = [np.percentile(some[name].astype(np.float64), [5, 95]) for name in MEANS]
        wide = least >= 0 and (inside or least > np.log(max(high - low for low, high in ends)))
    parts = ["opacities"] * bool(inside) + ["scales"] * bool(wide)
    if parts:
        log.warning("%s: its %s look linear, where a .ply has logits and logarithms, as which they "
                    "are read", path, " and ".join(parts))  # fmt: skip


def _are_probabilities(path: str | Path, column: np.ndarray) -> bool:
    """Whether all values lie in [0, 1]; a warning says where they do not, and what comes of it."""
    with np.errstate(all="ignore"):  # a NaN may be one that signals
        wrong = len(column) - int(((column >= 0) & (column <= 1)).sum())
    if wrong:
        log.warning("%s: left out: its column %s, because %d of %d values are not in [0, 1]",
                    path, CONFIDENCE, wrong, len(column))  # fmt: skip
    return not wrong


def _list_unread(vertex: Element, layout: _Layout, rows: np.ndarray) -> list[str]:
    """The properties that are not read and hold something: normals are zero in most files."""
    read = {*MEANS, *layout.dc, *layout.rest, *layout.scales, *QUATS, "opacity", FILTER}
    if layout.sure:
        read.add(CONFIDENCE)
    some = rows[:: -(-len(rows) // SAMPLE) or 1]
    with np.errstate(all="ignore"):  # a NaN may be one that signals
        empty = {name for name in NORMALS if name in vertex.properties and not some[name].any()}
    return [name for name in vertex.properties if name not in read | empty]


def _tell_left_out(path: str | Path, header: Header, columns: list[str]) -> None:
    known = {"vertex", "chunk", "sh", COLOR_SPACE}
    parts = [f"the columns {name_columns(columns)}"] if columns else []
    others = [e.name for e in header.elements if e.count and e.name not in known]
    parts += [f"the elements {name_columns(others)}"] if others else []
    if (rest := header.count_rest()) > 1:  # one may be the end of a line
        parts.append(f"{rest} bytes behind the rows that its header counts")
    if parts:
        log.warning("%s: left out: %s", path, " and ".join(parts))


def _make_decoder(
    rows: np.ndarray, layout: _Layout, facts: Facts
) -> Callable[[int, int], Gaussians]:
    divisor = _find_divisor(rows, layout.dc) if layout.is_rgb else 1.0

    def decode(start: int, stop: int) -> Gaussians:
        block = rows[start:stop]

        def columns(*names: str) -> torch.Tensor:
            table = np.stack([block[name] for name in names], axis=-1)
            return torch.from_numpy(table.astype(np.float64))[None]

        dc = columns(*layout.dc)
        coefficients = ((dc / divisor - 0.5) / sh.C0 if layout.is_rgb else dc)[:, :, None]
        if layout.rest:
            higher = rearrange(columns(*layout.rest), "b g (c k) -> b g k c", c=3)
            coefficients = torch.cat([coefficients, higher], dim=2)
        scales, opacities = columns(*layout.scales).exp(), columns("opacity")[..., 0].sigmoid()
        if len(layout.scales) == 2:
            scales = torch.cat([scales, torch.full_like(scales[..., :1], FLAT)], dim=-1)
        if layout.filtered:
            wider = torch.hypot(scales, columns(FILTER))
            opacities = opacities * (scales / wider).nan_to_num(1.0).prod(dim=-1)
            scales = wider
        found = Gaussians(columns(*MEANS), scales, columns(*QUATS), opacities, coefficients)
        if layout.sure:
            found = replace(found, confidence=columns(CONFIDENCE)[..., 0])
        return facts.of(found)

    return decode


def _find_divisor(rows: np.ndarray, names: tuple[str, ...]) -> float:
    """What stands for full red, green and blue: 1 in floats that do not exceed it."""
    kinds = {rows.dtype[name] for name in names}
    if all(kind.kind == "f" for kind in kinds):
        with np.errstate(all="ignore"):
            return 1.0 if all((rows[name] <= 1).all() for name in names) else 255.0
    return 65535.0 if any(kind.itemsize == 2 for kind in kinds) else 255.0
