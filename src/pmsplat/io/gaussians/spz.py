"""3D Gaussians as .spz files: 20 bytes each, 1 for each harmonic, compressed (Niantic, 2024).

Versions 1 to 3 are one gzip stream: a header of 16 bytes, then arrays of positions (24-bit fixed
point; half precision in version 1), opacities, colours, logarithms of scales, rotations and
harmonics (coefficients outside, channels inside), then records of extensions. Some tools leave out
the gzip: the same bytes, bare, are read too. Version 4 has an uncompressed header of 32 bytes, the
records, a table of sizes, and one zstd stream for each array that is not empty. The axes are right,
up, back, or those in Adobe's extension record; we convert means, rotations and harmonics to and
from our axes. Other records, and flags of unknown meaning, are left out with a warning.
https://github.com/nianticlabs/spz (format and names).

Largest errors of what `write` writes (positions differ from the reference writer, the rest is the
same): position 2^-17 units if the farthest coordinate is below 128, twice that for each further
doubling; logarithm of scale 1/32, opacity 1/510, coefficient 0 0.0131, degree 1 1/32, higher
degrees 1/16, a component of the unit quaternion 0.0007. Scales are clamped to 4.5e-5 .. 379,
coefficient 0 to ±3.33 and the others to ±1; a warning counts the Gaussians that were clamped.
"""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ...errors import UserError
from ...types import NO_OFFSET, Gaussians
from ..files import write_bytes
from . import _quaternions
from ._blocks import check, read_blocks, write_blocks
from ._facts import into_axes, tell_loss
from ._spz_packing import ANTIALIASED, FRAMES, MAGIC, RUB, Header, Packed, pack, unpack

__all__ = ["MAGIC", "decode_bytes", "read", "write"]

log = logging.getLogger(__name__)

COLOR_SCALE = 0.15  # of coefficient 0, so that a byte reaches ±3.33
HALF = 0.5**0.5  # largest possible size of the second largest component of a unit quaternion
FIRST_STEP, STEP = 8, 16  # of coefficients of degree 1 and of higher degrees, in 1/128
MAX_FRACTION = 16  # bits after the binary point of a position
AXES = {"R": (1, 0, 0), "L": (-1, 0, 0), "D": (0, 1, 0), "U": (0, -1, 0), "F": (0, 0, 1),
        "B": (0, 0, -1)}  # in OpenCV axes  # fmt: skip


def read(path: str | Path) -> Gaussians:
    """Reads a .spz file of version 1 to 4 as batch 1 on the CPU, in OpenCV axes.

    Reads degrees 0 to 4. Refuses a header that claims more than 64 MiB and more than 100 times the
    size of the file, and never unpacks more than the header claims. Beside the unpacked arrays (20
    bytes for each Gaussian and 3 for each coefficient beyond the first) the result takes 236 bytes
    for each Gaussian of degree 3. Raises UserError for a file that is missing, damaged, of another
    version or in left-handed axes, and for version 4 if the package zstandard is missing.
    """
    source = Path(path)
    if not source.is_file():
        raise UserError(f"no file {path}", "a .spz file of Gaussians", "check the path")
    return decode_bytes(path, source.read_bytes())


def decode_bytes(path: str | Path, content: bytes, placed: bool = True) -> Gaussians:
    """Decodes the bytes of a .spz file, which may lie inside another file: see `read`.

    For `placed` see `read_blocks`.
    """
    packed = unpack(path, content)
    turn = _rotate_from_axes(path, FRAMES[packed.frame])

    def decode(start: int, stop: int) -> Gaussians:
        block = _decode(packed, start, stop).transformed(turn)
        return replace(block, rules=packed.header.rules)

    return read_blocks(path, packed.header.count, packed.header.coefficients, decode, placed)


def write(gaussians: Gaussians, path: str | Path, version: int = 3) -> None:
    """Writes the Gaussians of one scene in the axes right, up, back; degrees 0 to 4.

    A flag says that they are antialiased. The format has no place for an origin: positions are
    those around it, and a warning says so.

    Most viewers read version 3; version 4 is newer, makes smaller files and needs the package
    zstandard. Raises UserError for a batch of several scenes, for values that are not finite, and
    for positions beyond 2^23 units. The file is complete or absent.
    """
    if version not in (3, 4):
        raise UserError(f"version {version} of .spz", "3 or 4", "leave version out for 3")
    check(gaussians, path)
    none = gaussians.map(lambda tensor: tensor[:, :0].detach().cpu())
    turned = into_axes(none, _rotate_from_axes(path, FRAMES[RUB]).mT)
    tell_loss(replace(gaussians, origin=turned.origin), path, origin=False)
    count, degree = gaussians.means.shape[1], gaussians.sh_degree
    farthest = float(gaussians.means.detach().abs().max()) if count else 0.0
    if farthest >= 1 << 23:
        raise UserError(
            f"a position {farthest:.3g} units from the origin for {path}",
            "positions within 8,388,608 units in a .spz file",
            "crop far Gaussians, or save as .ply",
        )
    fraction = min(MAX_FRACTION, 23 - int(farthest).bit_length())
    flags = ANTIALIASED if gaussians.rules.antialiased else 0
    header = Header(version, count, degree, fraction, flags)
    arrays = _encode(gaussians, path, header)
    write_bytes(path, pack(header, arrays))


def _rotate_from_axes(path: str | Path, frame: str) -> torch.Tensor:
    """Returns the rotation [4, 4] from axes named by three letters to ours (right, down, front)."""
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = torch.tensor([AXES[letter] for letter in frame], dtype=torch.float64).T
    if torch.linalg.det(turn) < 0:
        raise UserError(
            f"{path} in the left-handed axes {frame}",
            "right-handed axes, because Gaussians cannot be mirrored",
            "export it again with axes right, up, back",
        )
    return turn


def _decode(packed: Packed, start: int, stop: int) -> Gaussians:
    """Decodes Gaussians [start, stop) in the axes of the file."""
    part = {name: array[start:stop].astype(np.float64) for name, array in packed.arrays.items()}
    dc = (part["color"] / 255 - 0.5) / COLOR_SCALE
    coefficients = np.concatenate([dc, (part["sh"] - 128) / 128], axis=-1)
    if packed.header.version == 1:
        means = packed.arrays["mean"][start:stop].copy().view("<f2").astype(np.float64)
    else:
        digits = part["mean"].reshape(-1, 3, 3) @ [1, 1 << 8, 1 << 16]
        means = np.where(digits < 1 << 23, digits, digits - (1 << 24)) / 2**packed.header.fraction
    if packed.header.version < 3:
        xyz = part["quat"] / 127.5 - 1
        xyzw = _quaternions.restore(xyz, np.full(len(xyz), 3))
    else:
        xyzw = _unpack_quats(packed.arrays["quat"][start:stop])
    return Gaussians(
        means=torch.from_numpy(means)[None],
        scales=torch.from_numpy(part["scale"] / 16 - 10).exp()[None],
        quats_wxyz=torch.from_numpy(np.roll(xyzw, 1, axis=-1))[None],
        opacities=torch.from_numpy(part["opacity"][:, 0] / 255)[None],
        sh=torch.from_numpy(coefficients).unflatten(-1, (-1, 3))[None],
    )


def _unpack_quats(packed: np.ndarray) -> np.ndarray:
    """Unpacks xyzw from 32 bits: 2 for the index of the largest component, 10 for each other one.

    The 10 bits are a sign and 9 bits of size.
    """
    words = packed.copy().view("<u4")[:, :1].astype(np.int64)
    fields = (words >> [20, 10, 0]) & 1023
    others = HALF * (fields & 511) / 511 * np.where(fields & 512, -1, 1)
    return _quaternions.restore(others, words[:, 0] >> 30)


def _encode(gaussians: Gaussians, path: str | Path, header: Header) -> dict[str, bytes]:
    """Quantizes Gaussians to the arrays of a file, in the axes right, up, back."""
    turn = _rotate_from_axes(path, FRAMES[RUB]).mT
    arrays = {
        name: np.empty((header.count, width), np.uint8) for name, width in header.widths.items()
    }
    start = 0
    clamped = {"any": 0, "too thin": 0, "too large": 0, "too colourful": 0}
    local = replace(gaussians, origin=NO_OFFSET)
    for ours in write_blocks(local, path):
        block = into_axes(ours, turn).at_origin(NO_OFFSET)
        stop = start + block.means.shape[1]
        # Quantize a block.
        digits = (block.means[0] * 2**header.fraction).round().numpy().astype(np.int64)
        digits = digits.clip(-(1 << 23), (1 << 23) - 1)
        scale = 16 * (block.scales[0].clamp_min(1e-30).log() + 10)
        color = 255 * (COLOR_SCALE * block.sh[0, :, 0] + 0.5)
        rest = 128 * (block.sh[0, :, 1:].flatten(1) + 1)
        step = torch.where(torch.arange(rest.shape[1]) < 9, FIRST_STEP, STEP)
        arrays["mean"][start:stop] = ((digits[..., None] >> [0, 8, 16]) & 255).reshape(-1, 9)
        arrays["opacity"][start:stop, 0] = _to_bytes(255 * block.opacities[0])
        arrays["color"][start:stop] = _to_bytes(color)
        arrays["scale"][start:stop] = _to_bytes(scale)
        arrays["quat"][start:stop] = _pack_quats(block.quats_wxyz[0].roll(-1, dims=-1).numpy())
        arrays["sh"][start:stop] = _to_bytes((rest / step).round() * step)
        # Count the Gaussians that are clamped, by quantity.
        colors = torch.cat([color, rest], dim=-1)
        beyond = {
            "too thin": (scale < -0.5).any(dim=-1),
            "too large": (scale > 256).any(dim=-1),
            "too colourful": ((colors < -0.5) | (colors > 256)).any(dim=-1),
        }
        for what, which in beyond.items():
            clamped[what] += int(which.sum())
        clamped["any"] += int(torch.stack(list(beyond.values())).any(dim=0).sum())
        start = stop
    total = clamped.pop("any")
    if total:
        kinds = ", ".join(f"{number} {what}" for what, number in clamped.items() if number)
        log.warning(
            "%s: %d of %d Gaussians exceed the range of .spz and are clamped: %s",
            *(path, total, header.count, kinds),
        )
    return {name: array.tobytes() for name, array in arrays.items()}


def _pack_quats(xyzw: np.ndarray) -> np.ndarray:
    which = _quaternions.find_largest(xyzw)
    others = _quaternions.smallest_three(xyzw, which)
    fields = np.floor(511 * (np.abs(others) / HALF).clip(0, 1) + 0.5).astype(np.int64)
    fields |= np.where(others < 0, 512, 0)
    words = (which << 30) | (fields << [20, 10, 0]).sum(axis=-1)
    return words.astype("<u4")[:, None].view(np.uint8)


def _to_bytes(values: torch.Tensor) -> np.ndarray:
    return values.round().clamp(0, 255).to(torch.uint8).numpy()
