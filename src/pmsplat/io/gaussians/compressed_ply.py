"""PlayCanvas' compressed .ply: 16 bytes for each Gaussian, and a shared row for each 256.

Each 256 Gaussians share a row of the element `chunk`: the bounds of their position, logarithm of
scale and colour. Each Gaussian has four 32-bit words, which interpolate between these bounds:
`packed_position` and `packed_scale` (11, 10 and 11 bits), `packed_rotation` (2 bits for the index
of the largest component of the quaternion, 10 for each other component) and `packed_color` (8 bits
for r, g, b and opacity). Harmonics are bytes of an element `sh`, channel by channel, over [-4, 4].
Format and names: PlayCanvas, SuperSplat and splat-transform, 2024.

Largest errors, with e the extent of a chunk in the quantity: position and logarithm of scale e/4094
(x, z) and e/2046 (y), colour e/510, opacity 1/510, a component of the unit quaternion √2/2046, a
coefficient 1/64 (1/32 near the ends of its range). Comments are those of any .ply (`_facts`).
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from plyfile import PlyData, PlyElement

from ...geometry import sh
from ...types import Gaussians
from ..files import atomic
from . import _quaternions
from ._blocks import BLOCK, check, damage_error
from ._facts import tell_loss, write_comments

log = logging.getLogger(__name__)

CHUNK = 256
PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
BOUNDS = tuple(
    f"{end}_{name}"
    for names in (("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b"))
    for end in ("min", "max")
    for name in names
)
LOG_SCALE = 20.0  # logarithms of scales are clamped to ± this
SH_RANGE = 4.0
DEGREE = 3

Tables = dict[str, np.ndarray]
Decode = Callable[[int, int], Gaussians]


def decoder(path: str | Path, tables: Tables) -> tuple[int, Decode]:
    """Returns the number of coefficients and the function that decodes Gaussians [start, stop).

    Raises UserError where the tables do not have this format.
    """
    # Check the tables: chunks, packed words and harmonics.
    vertices, chunks, harmonics = (tables.get(name) for name in ("vertex", "chunk", "sh"))
    assert vertices is not None
    if chunks is None or len(chunks) != -(-len(vertices) // CHUNK):
        raise damage_error(
            path, f"{len(vertices)} compressed Gaussians without a chunk for each 256"
        )
    colored = "min_r" in (chunks.dtype.names or ())
    _check_columns(path, vertices, PACKED, "u", 4)
    _check_columns(path, chunks, BOUNDS if colored else BOUNDS[:12], "f", 4)
    rest = 0 if harmonics is None else len(harmonics.dtype.names or ())
    coefficients = 1 + rest // 3
    if rest not in (0, 9, 24, 45):
        raise damage_error(path, f"{rest} properties f_rest_*, not 0, 9, 24 or 45")
    if harmonics is not None:
        _check_columns(path, harmonics, [f"f_rest_{i}" for i in range(rest)], "u", 1)
        if len(harmonics) != len(vertices):
            raise damage_error(
                path, f"harmonics of {len(harmonics)} Gaussians for {len(vertices)} Gaussians"
            )

    # Decode block by block.
    def decode(start: int, stop: int) -> Gaussians:
        block = vertices[start:stop]
        chunk = chunks[np.arange(start, stop) // CHUNK]
        position = _interpolate(chunk, "xyz", _unpack(block["packed_position"], 11, 10, 11))
        scales = [f"scale_{axis}" for axis in "xyz"]
        log_scale = _interpolate(chunk, scales, _unpack(block["packed_scale"], 11, 10, 11))
        color = _unpack(block["packed_color"], 8, 8, 8, 8)
        rgb = _interpolate(chunk, "rgb", color[:, :3]) if colored else color[:, :3]
        dc = ((rgb - 0.5) / sh.C0)[:, None]
        if harmonics is not None and rest:
            dc = np.concatenate([dc, _unpack_harmonics(harmonics[start:stop])], axis=1)
        return Gaussians(
            means=torch.from_numpy(position)[None],
            scales=torch.from_numpy(log_scale).exp()[None],
            quats_wxyz=torch.from_numpy(_unpack_rotation(block["packed_rotation"]))[None],
            opacities=torch.from_numpy(color[:, 3].copy())[None],
            sh=torch.from_numpy(dc)[None],
        )

    return coefficients, decode


def _check_columns(
    path: str | Path, table: np.ndarray, names: Iterable[str], kind: str, size: int
) -> None:
    types = {name: table.dtype[name] for name in table.dtype.names or ()}
    for name in names:
        if name not in types or (types[name].kind, types[name].itemsize) != (kind, size):
            raise damage_error(path, f"{name} is missing or of another type, for a compressed .ply")


def _unpack(words: np.ndarray, *bits: int) -> np.ndarray:
    """Splits 32-bit words into fields, highest bits first, each scaled to [0, 1]."""
    shift, fields = 32, []
    for width in bits:
        shift -= width
        fields.append(((words >> shift) & ((1 << width) - 1)) / ((1 << width) - 1))
    return np.stack(fields, axis=-1)


def _interpolate(chunk: np.ndarray, names: Iterable[str], fraction: np.ndarray) -> np.ndarray:
    low = np.stack([chunk[f"min_{name}"] for name in names], axis=-1).astype(np.float64)
    high = np.stack([chunk[f"max_{name}"] for name in names], axis=-1).astype(np.float64)
    return low * (1 - fraction) + high * fraction


def _unpack_rotation(words: np.ndarray) -> np.ndarray:
    others = (_unpack(words, 2, 10, 10, 10)[:, 1:] - 0.5) * 2**0.5
    return _quaternions.restore(others, (words >> 30).astype(np.int64))


def _unpack_harmonics(block: np.ndarray) -> np.ndarray:
    names = [f"f_rest_{i}" for i in range(len(block.dtype.names or ()))]
    bytes_ = np.stack([block[name] for name in names], axis=-1).astype(np.float64)
    unit = np.select([bytes_ == 0, bytes_ == 255], [0.0, 1.0], (bytes_ + 0.5) / 256)
    return rearrange((2 * unit - 1) * SH_RANGE, "g (c k) -> g k c", c=3)


def write(gaussians: Gaussians, path: str | Path) -> None:
    """Writes the Gaussians of one scene, sorted along a space-filling curve.

    Degree 4 is written as degree 3, with a warning; scales are clamped to e^±20, coefficients
    beyond degree 0 to [-4, 4]. Raises UserError for a batch of several scenes or for values that
    are not finite. The file is complete or absent.
    """
    check(gaussians, path)
    tell_loss(gaussians, path, comments=True)
    coefficients = min(gaussians.sh.shape[-2], (DEGREE + 1) ** 2)
    if coefficients < gaussians.sh.shape[-2]:
        log.warning("%s: harmonics beyond degree %d are left out", path, DEGREE)
    # Sort, so that the Gaussians of a chunk are neighbours and its bounds are tight.
    order = torch.from_numpy(_sort_along_curve(gaussians.means[0].detach().cpu().double().numpy()))
    chunks = np.empty((-(-len(order) // CHUNK), len(BOUNDS)), "<f4")
    words = np.empty((len(order), len(PACKED)), "<u4")
    harmonics = np.empty((len(order), 3 * (coefficients - 1)), np.uint8)
    # Quantize block by block; BLOCK is a multiple of CHUNK.
    for start in range(0, len(order), BLOCK):
        rows = order[start : start + BLOCK]
        block = gaussians.map(lambda tensor, rows=rows: tensor[:, rows.to(tensor.device)])
        block = block.detach().to("cpu").to(torch.float64)
        log_scales = block.scales.clamp_min(1e-30).log().clamp(-LOG_SCALE, LOG_SCALE)
        colors = 0.5 + sh.C0 * block.sh[:, :, 0]
        values = [part[0].numpy() for part in (block.means, log_scales, colors)]
        bounds = [_find_bounds(part) for part in values]
        place, size, rgb = map(_find_fraction, values, bounds)
        rest = rearrange(block.sh[0, :, 1:coefficients], "g k c -> g (c k)").numpy()
        stop = start + len(rows)
        words[start:stop, 0] = _pack(place, 11, 10, 11)
        words[start:stop, 1] = _pack_rotation(block.quats_wxyz[0].numpy())
        words[start:stop, 2] = _pack(size, 11, 10, 11)
        rgba = np.concatenate([rgb, block.opacities.T.numpy()], axis=-1)
        words[start:stop, 3] = _pack(rgba, 8, 8, 8, 8)
        chunks[start // CHUNK : -(-stop // CHUNK)] = np.concatenate(bounds, axis=-1)
        harmonics[start:stop] = np.floor(128 * (rest / SH_RANGE + 1)).clip(0, 255)
    # Write the elements.
    tables = {"chunk": _name_columns(chunks, BOUNDS), "vertex": _name_columns(words, PACKED)}
    if coefficients > 1:
        tables["sh"] = _name_columns(harmonics, [f"f_rest_{i}" for i in range(harmonics.shape[1])])
    elements = [PlyElement.describe(table, name) for name, table in tables.items()]
    comments = write_comments(gaussians)
    with atomic(path) as temporary:
        PlyData(elements, text=False, byte_order="<", comments=comments).write(str(temporary))


def _name_columns(table: np.ndarray, names: Sequence[str]) -> np.ndarray:
    return table.view([(name, table.dtype) for name in names])[:, 0]


def _find_bounds(values: np.ndarray) -> np.ndarray:
    """Returns [chunk, 6]: the minimum and the maximum of each 256 rows."""
    missing = -len(values) % CHUNK
    padded = np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])
    groups = padded.reshape(-1, CHUNK, values.shape[-1])
    return np.concatenate([groups.min(axis=1), groups.max(axis=1)], axis=-1).astype(np.float32)


def _find_fraction(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Returns where each row lies between the bounds of its chunk, in [0, 1]."""
    low, high = np.split(bounds.astype(np.float64).repeat(CHUNK, axis=0)[: len(values)], 2, axis=-1)
    return ((values - low) / np.where(high > low, high - low, 1)).clip(0, 1)


def _pack(fractions: np.ndarray, *bits: int) -> np.ndarray:
    words = np.zeros(len(fractions), np.uint32)
    for column, width in zip(fractions.T, bits, strict=True):
        field = np.floor(column * ((1 << width) - 1) + 0.5).astype(np.uint32)
        words = (words << width) | field
    return words


def _pack_rotation(quats: np.ndarray) -> np.ndarray:
    which = _quaternions.find_largest(quats)
    others = _quaternions.smallest_three(quats, which) * 0.5**0.5 + 0.5
    return (which.astype(np.uint32) << 30) | _pack(others.clip(0, 1), 10, 10, 10)


def _sort_along_curve(points: np.ndarray) -> np.ndarray:
    """Returns the order of points along a Z-order (Morton) curve, 21 bits for each axis."""
    if not len(points):
        return np.empty(0, np.int64)
    low, high = points.min(axis=0), points.max(axis=0)
    unit = (points - low) / np.where(high > low, high - low, 1)
    cells = (unit * ((1 << 21) - 1)).astype(np.uint64)
    key = np.zeros(len(points), np.uint64)
    for bit in range(21):
        for axis in range(3):
            key |= ((cells[:, axis] >> np.uint64(bit)) & np.uint64(1)) << np.uint64(3 * bit + axis)
    return key.argsort(kind="stable")
