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

import gzip
import logging
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import UserError
from ...geometry import sh
from ...types import CLASSIC, MIP, NO_OFFSET, DrawingRules, Gaussians
from ..files import write_bytes
from . import _quaternions
from ._blocks import check, damage_error, is_plausible, read_blocks, write_blocks
from ._facts import into_axes, tell_loss

log = logging.getLogger(__name__)

MAGIC = b"NGSP"
COLOR_SCALE = 0.15  # of coefficient 0, so that a byte reaches ±3.33
HALF = 0.5**0.5  # largest possible size of the second largest component of a unit quaternion
FIRST_STEP, STEP = 8, 16  # of coefficients of degree 1 and of higher degrees, in 1/128
MAX_FRACTION = 16  # bits after the binary point of a position
LEVEL = 6  # of gzip, as in the reference writer: a third of the time of the highest level
ANTIALIASED, EXTENSIONS = 1, 2  # flags
FRAME = 0xADBE0003  # type of the record that names the axes
FRAMES = (  # names of axes; the record counts them from 1
    "LDB", "RDB", "LUB", "RUB", "LDF", "RDF", "LUF", "RUF",
    "LFD", "RFD", "LFU", "RFU", "LBD", "RBD", "LBU", "RBU",
)  # fmt: skip
RUB = FRAMES.index("RUB")
LEGACY, HEADER = struct.Struct("<4sIIBBBx"), struct.Struct("<4sIIBBBBI12x")
AXES = {"R": (1, 0, 0), "L": (-1, 0, 0), "D": (0, 1, 0), "U": (0, -1, 0), "F": (0, 0, 1),
        "B": (0, 0, -1)}  # in OpenCV axes  # fmt: skip


@dataclass(frozen=True)
class _Header:
    version: int
    count: int
    degree: int
    fraction: int
    flags: int

    @property
    def extended(self) -> bool:
        return bool(self.flags & EXTENSIONS)

    @property
    def rules(self) -> DrawingRules:
        return MIP if self.flags & ANTIALIASED else CLASSIC

    @property
    def coefficients(self) -> int:
        return (self.degree + 1) ** 2

    @property
    def widths(self) -> dict[str, int]:
        """Bytes per Gaussian of each array, in the order of the file."""
        mean, rotation = 6 if self.version == 1 else 9, 3 if self.version < 3 else 4
        rest = 3 * (self.coefficients - 1)
        return {"mean": mean, "opacity": 1, "color": 3, "scale": 3, "quat": rotation, "sh": rest}


@dataclass(frozen=True)
class _Packed:
    """The parts of a file: `arrays` are uint8 [gaussian, byte], `frame` is an index of FRAMES."""

    header: _Header
    arrays: dict[str, np.ndarray]
    frame: int


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


def decode_bytes(path: str | Path, content: bytes) -> Gaussians:
    """Decodes the bytes of a .spz file, which may lie inside another file: see `read`."""
    modern = content.startswith(MAGIC) and int.from_bytes(content[4:8], "little") > 3
    packed = (_unpack_zstd if modern else _unpack_legacy)(path, content)
    turn = _rotate_from_axes(path, FRAMES[packed.frame])

    def decode(start: int, stop: int) -> Gaussians:
        block = _decode(packed, start, stop).transformed(turn)
        return replace(block, rules=packed.header.rules)

    return read_blocks(path, packed.header.count, packed.header.coefficients, decode)


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
    header = _Header(version, count, degree, fraction, flags)
    arrays = _encode(gaussians, path, header)
    if version == 3:
        head = LEGACY.pack(MAGIC, version, count, degree, fraction, flags)
        write_bytes(path, gzip.compress(head + b"".join(arrays.values()), LEVEL, mtime=0))
    else:
        write_bytes(path, _pack_zstd(header, [part for part in arrays.values() if part]))


def _check_header(path: str | Path, header: _Header, size: int) -> None:
    """Raises UserError for a header that is not valid in a file of `size` bytes."""
    claimed = header.count * sum(header.widths.values())
    if header.degree > sh.MAX_DEGREE:
        raise damage_error(path, f"harmonics of degree {header.degree}")
    if header.fraction > 24:
        raise damage_error(path, f"positions with {header.fraction} bits after the point")
    if not is_plausible(claimed, size):
        raise damage_error(path, f"{header.count} Gaussians in {size} bytes")


def _warn_about_flags(path: str | Path, flags: int) -> None:
    if unknown := flags & ~(ANTIALIASED | EXTENSIONS):
        log.warning("%s: its flags %#x have no known meaning and are left out", path, unknown)


class _Stream:
    """The unpacked bytes of a legacy file from front to back: a gzip stream, or the bare bytes."""

    def __init__(self, content: bytes) -> None:
        self._rest = content
        self._unpacker = None if content.startswith(MAGIC) else zlib.decompressobj(wbits=31)

    def take(self, count: int) -> bytes:
        """Returns the next `count` bytes, fewer at the end; raises zlib.error for damage."""
        if not count:
            return b""
        if self._unpacker is None:
            part, self._rest = self._rest[:count], self._rest[count:]
        else:
            part = self._unpacker.decompress(self._rest, count)
            self._rest = self._unpacker.unconsumed_tail
        return part

    def is_at_end(self) -> bool:
        return not self._rest if self._unpacker is None else self._unpacker.eof


def _unpack_legacy(path: str | Path, content: bytes) -> _Packed:
    """Unpacks a file of version 1, 2 or 3."""
    # Read the header, then no more than it claims.
    stream = _Stream(content)
    try:
        head = stream.take(LEGACY.size)
        if len(head) < LEGACY.size:
            raise damage_error(path, "no .spz header")
        magic, version, count, degree, fraction, flags = LEGACY.unpack(head)
        if magic != MAGIC:
            raise damage_error(path, "no .spz header in its gzip stream")
        if version not in (1, 2, 3):
            raise damage_error(path, f"version {version} of .spz as versions 1 to 3 are packed")
        header = _Header(version, count, degree, fraction, flags)
        _check_header(path, header, len(content))
        total = count * sum(header.widths.values())
        body, records = stream.take(total), stream.take(1 << 16)
    except zlib.error as error:
        raise damage_error(path, f"its gzip stream is damaged ({error})") from error
    if len(body) < total:
        raise damage_error(path, f"{count} Gaussians in {len(body)} unpacked bytes")
    if not stream.is_at_end() or (records and not header.extended):
        raise damage_error(path, f"not at its end after {count} Gaussians")
    _warn_about_flags(path, flags)
    # Split the body into arrays.
    arrays, start = {}, 0
    for name, width in header.widths.items():
        part = np.frombuffer(body, np.uint8, count * width, start)
        arrays[name] = part.reshape(count, width)
        start += count * width
    return _Packed(header, arrays, _read_frame(path, records))


def _unpack_zstd(path: str | Path, content: bytes) -> _Packed:
    """Unpacks a file of version 4."""
    # Read the header and find the table of streams.
    if len(content) < HEADER.size:
        raise damage_error(path, "its .spz header is cut short")
    _, version, count, degree, fraction, flags, streams, table = HEADER.unpack_from(content)
    if version != 4:
        raise damage_error(path, f"version {version} of .spz; pmsplat reads versions 1 to 4")
    header = _Header(version, count, degree, fraction, flags)
    _warn_about_flags(path, flags)
    _check_header(path, header, len(content))
    widths = header.widths
    present = [name for name, width in widths.items() if count * width]
    start = table + 16 * streams
    if streams != len(present) or table < HEADER.size or start > len(content):
        raise damage_error(path, f"a table of {streams} streams instead of {len(present)}")
    # Decompress each stream into its array.
    arrays = {
        name: np.empty((count, widths[name]), np.uint8) for name in widths if name not in present
    }
    for i, name in enumerate(present):
        size, unpacked = struct.unpack_from("<QQ", content, table + 16 * i)
        if unpacked != count * widths[name] or size > len(content) - start:
            raise damage_error(
                path, f"{count} Gaussians in a stream of {unpacked} bytes for {name}"
            )
        part = _decompress(path, content[start : start + size], unpacked)
        arrays[name] = np.frombuffer(part, np.uint8).reshape(count, widths[name])
        start += size
    records = content[HEADER.size : table] if header.extended else b""
    return _Packed(header, arrays, _read_frame(path, records))


def _decompress(path: str | Path, stream: bytes, size: int) -> bytes:
    """Unpacks a zstd stream; raises UserError unless it holds exactly `size` bytes."""
    zstandard = _import_zstandard(path)
    try:
        reader = zstandard.ZstdDecompressor().stream_reader(stream)
        part = reader.read(size)
        more = reader.read(1)
    except zstandard.ZstdError as error:
        raise damage_error(path, f"a zstd stream is damaged ({error})") from error
    if len(part) != size or more:
        raise damage_error(path, f"a zstd stream does not unpack to {size} bytes")
    return part


def _pack_zstd(header: _Header, parts: list[bytes]) -> bytes:
    """Returns the bytes of a file of version 4."""
    compressor = _import_zstandard("version 4").ZstdCompressor(level=12)
    streams = [compressor.compress(part) for part in parts]
    table = [struct.pack("<QQ", len(s), len(p)) for s, p in zip(streams, parts, strict=True)]
    numbers = (header.count, header.degree, header.fraction, header.flags)
    head = HEADER.pack(MAGIC, 4, *numbers, len(parts), HEADER.size)
    return b"".join([head, *table, *streams])


def _read_frame(path: str | Path, records: bytes) -> int:
    """Returns the index in FRAMES that the extension records name; right, up, back by default."""
    start, frame, unknown = 0, RUB, set[str]()
    while len(records) - start >= 8:
        kind, size = struct.unpack_from("<II", records, start)
        if kind == FRAME and size == 4 and len(records) - start >= 12:
            (named,) = struct.unpack_from("<I", records, start + 8)
            if named > len(FRAMES):
                raise damage_error(path, f"axes of the unknown kind {named}")
            frame = named - 1 if named else RUB
        else:
            unknown.add(f"{kind:#010x}")
        start += 8 + size
    if unknown:
        log.warning("%s: its extension records %s are left out", path, sorted(unknown)[:8])
    return frame


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


def _import_zstandard(purpose: str | Path) -> Any:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise UserError(
            f".spz {purpose} without the package zstandard",
            "zstandard for version 4 of .spz",
            "install it with: pip install zstandard",
        ) from error
    return zstandard


def _decode(packed: _Packed, start: int, stop: int) -> Gaussians:
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


def _encode(gaussians: Gaussians, path: str | Path, header: _Header) -> dict[str, bytes]:
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
