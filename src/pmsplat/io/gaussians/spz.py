"""3D Gaussians as .spz files: 20 bytes each and harmonics of a byte, compressed (Niantic, 2024).

Versions 2 and 3 are one gzip stream: a header of 16 bytes, then arrays of positions (24-bit fixed
point), opacities, colours, logarithms of scales, rotations and harmonics (coefficients outside,
channels inside), then records of extensions. Version 4 has a header of 32 bytes in the open, the
records, a table of sizes, and one zstd stream for each array that is not empty. The axes are
right, up, back, or those that the extension of Adobe names; we turn them to ours and back, means,
rotations and harmonics together. https://github.com/nianticlabs/spz (format and names).

Precision of what is written, which is that of the reference writer except for positions: position
2^-17 units where the farthest coordinate is below 128, twice that for each further doubling;
logarithm of scale 1/32, opacity 1/510, coefficient 0 0.0131, degree 1 1/32, higher degrees 1/16, a
number of the unit quaternion 0.0007. Scales are cut to 4.5e-5 .. 379, coefficient 0 to ±3.33 and
the others to ±1: how many Gaussians are touched by that is logged.
"""

import gzip
import logging
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import UserError
from ...geometry import sh
from ...types import Gaussians
from ..files import write_bytes
from . import _quaternions
from ._blocks import broken, check, read_blocks, write_blocks

log = logging.getLogger(__name__)

GZIP, MAGIC = b"\x1f\x8b\x08", b"NGSP"
COLOR_SCALE = 0.15  # of coefficient 0, so that a byte reaches ±3.33
HALF = 0.5**0.5  # the largest that the second largest of a unit quaternion can be
FIRST_BUCKET, BUCKET = (
    8,
    16,
)  # steps of 1/128 that coefficients of degree 1 and above are rounded to
MAX_FRACTION = 16  # bits after the point of a position
LEVEL = 6  # of gzip, as the reference writer: a third of the time of the highest
FLOOR, RATIO = 1 << 26, 100  # a file may unpack to 64 MiB, or to 100 times its size
EXTENSIONS, FRAME = 2, 0xADBE0003  # flag and type of the record that names the axes
FRAMES = (  # from 1 on
    "LDB", "RDB", "LUB", "RUB", "LDF", "RDF", "LUF", "RUF",
    "LFD", "RFD", "LFU", "RFU", "LBD", "RBD", "LBU", "RBU",
)  # fmt: skip
RUB = FRAMES.index("RUB")
LEGACY, HEADER = struct.Struct("<4sIIBBBx"), struct.Struct("<4sIIBBBBI12x")
AXES = {"R": (1, 0, 0), "L": (-1, 0, 0), "D": (0, 1, 0), "U": (0, -1, 0), "F": (0, 0, 1),
        "B": (0, 0, -1)}  # in ours  # fmt: skip


@dataclass(frozen=True)
class _Header:
    version: int
    count: int
    degree: int
    fraction: int
    extended: bool

    @property
    def coefficients(self) -> int:
        return (self.degree + 1) ** 2

    @property
    def widths(self) -> dict[str, int]:
        """Bytes for each Gaussian of each array, in the order of the file."""
        rotation = 3 if self.version == 2 else 4
        rest = 3 * (self.coefficients - 1)
        return {"mean": 9, "opacity": 1, "color": 3, "scale": 3, "quat": rotation, "sh": rest}


@dataclass(frozen=True)
class _Packed:
    """A file taken apart: `arrays` are uint8 [gaussian, byte], `frame` an index of FRAMES."""

    header: _Header
    arrays: dict[str, np.ndarray]
    frame: int


def read(path: str | Path) -> Gaussians:
    """The Gaussians of a .spz file of version 2, 3 or 4 as batch 1 on the CPU, in our axes.

    Degrees 0 to 4. Unpacking stops at what the header counts, and a header that counts more than 64
    MiB and more than 100 times the bytes of the file is refused. Beside the unpacked arrays (20
    bytes for each Gaussian and 3 for each coefficient beyond the first) the result takes 236 bytes
    for each Gaussian of degree 3. Raises UserError for a file that is missing, damaged, of another
    version or in left-handed axes; for version 4 also where the package zstandard is missing.
    """
    source = Path(path)
    if not source.is_file():
        raise UserError(f"no file {path}", "a .spz file of Gaussians", "check the path")
    content = source.read_bytes()
    packed = _streams(path, content) if content.startswith(MAGIC) else _stream(path, content)
    turn = _turn(path, FRAMES[packed.frame])

    def decode(start: int, stop: int) -> Gaussians:
        return _decode(packed, start, stop).transformed(turn)

    return read_blocks(path, packed.header.count, packed.header.coefficients, decode)


def write(gaussians: Gaussians, path: str | Path, version: int = 3) -> None:
    """Writes the Gaussians of one scene, turned to right, up, back; degrees 0 to 4.

    Version 3 is what most viewers read; 4 is the newer one, packs tighter and needs the package
    zstandard. Raises UserError for a batch of several scenes, for values that are not finite, and
    for positions beyond 2^23 units. The file is complete or absent.
    """
    if version not in (3, 4):
        raise UserError(f"version {version} of .spz", "3 or 4", "leave it out for 3")
    check(gaussians, path)
    count, degree = gaussians.means.shape[1], gaussians.sh_degree
    farthest = float(gaussians.means.detach().abs().max()) if count else 0.0
    if farthest >= 1 << 23:
        raise UserError(
            f"a position {farthest:.3g} units from the origin for {path}",
            "positions within 8,388,608 units in a .spz file",
            "crop far Gaussians away, or save as .ply",
        )
    fraction = min(MAX_FRACTION, 23 - int(farthest).bit_length())
    header = _Header(version, count, degree, fraction, False)
    arrays = _encode(gaussians, path, header)
    if version == 3:
        head = LEGACY.pack(MAGIC, version, count, degree, fraction, 0)
        write_bytes(path, gzip.compress(head + b"".join(arrays.values()), LEVEL, mtime=0))
    else:
        write_bytes(path, _with_streams(header, [part for part in arrays.values() if part]))


def _checked(path: str | Path, header: _Header, size: int) -> _Header:
    claimed = header.count * sum(header.widths.values())
    if header.degree > sh.MAX_DEGREE:
        raise broken(path, f"harmonics of degree {header.degree}")
    if header.fraction > 24:
        raise broken(path, f"positions with {header.fraction} bits after the point")
    if claimed > max(FLOOR, RATIO * size):
        raise broken(path, f"{header.count} Gaussians in {size} bytes")
    return header


def _stream(path: str | Path, content: bytes) -> _Packed:
    """Versions 2 and 3."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        head = unpacker.decompress(content, LEGACY.size)
        if len(head) < LEGACY.size:
            raise broken(path, "no .spz header")
        magic, version, count, degree, fraction, flags = LEGACY.unpack(head)
        if magic != MAGIC or version not in (2, 3):
            kind = "no .spz header" if magic != MAGIC else f"version {version} of .spz in gzip"
            raise broken(path, f"{kind}, where 2 and 3 are known")
        header = _Header(version, count, degree, fraction, bool(flags & EXTENSIONS))
        total = count * sum(_checked(path, header, len(content)).widths.values())
        body = unpacker.decompress(unpacker.unconsumed_tail, total) if total else b""
        records = unpacker.decompress(unpacker.unconsumed_tail, 1 << 16)
    except zlib.error as error:
        raise broken(path, f"its gzip stream is damaged ({error})") from error
    if len(body) < total:
        raise broken(path, f"{count} Gaussians in {len(body)} unpacked bytes")
    if not unpacker.eof or (records and not header.extended):
        raise broken(path, f"not at its end after {count} Gaussians")
    arrays, start = {}, 0
    for name, width in header.widths.items():
        part = np.frombuffer(body, np.uint8, count * width, start)
        arrays[name] = part.reshape(count, width)
        start += count * width
    return _Packed(header, arrays, _frame(path, records))


def _streams(path: str | Path, content: bytes) -> _Packed:
    """Version 4."""
    if len(content) < HEADER.size:
        raise broken(path, "no whole .spz header")
    _, version, count, degree, fraction, flags, streams, table = HEADER.unpack_from(content)
    if version != 4:
        raise broken(path, f"version {version} of .spz, where 2, 3 and 4 are known")
    header = _Header(version, count, degree, fraction, bool(flags & EXTENSIONS))
    widths = _checked(path, header, len(content)).widths
    present = [name for name, width in widths.items() if count * width]
    start = table + 16 * streams
    if streams != len(present) or table < HEADER.size or start > len(content):
        raise broken(path, f"a table of {streams} streams, where {len(present)} are needed")
    arrays = {
        name: np.empty((count, widths[name]), np.uint8) for name in widths if name not in present
    }
    for i, name in enumerate(present):
        size, unpacked = struct.unpack_from("<QQ", content, table + 16 * i)
        if unpacked != count * widths[name] or size > len(content) - start:
            raise broken(path, f"{count} Gaussians in a stream of {unpacked} bytes for {name}")
        part = _unzstd(path, content[start : start + size], unpacked)
        arrays[name] = np.frombuffer(part, np.uint8).reshape(count, widths[name])
        start += size
    records = content[HEADER.size : table] if header.extended else b""
    return _Packed(header, arrays, _frame(path, records))


def _unzstd(path: str | Path, stream: bytes, size: int) -> bytes:
    """`size` bytes out of a stream that unpacks to just so many."""
    zstandard = _zstandard(path)
    try:
        reader = zstandard.ZstdDecompressor().stream_reader(stream)
        part = reader.read(size)
        more = reader.read(1)
    except zstandard.ZstdError as error:
        raise broken(path, f"a zstd stream is damaged ({error})") from error
    if len(part) != size or more:
        raise broken(path, f"a zstd stream does not unpack to {size} bytes")
    return part


def _with_streams(header: _Header, parts: list[bytes]) -> bytes:
    compressor = _zstandard("version 4").ZstdCompressor(level=12)
    streams = [compressor.compress(part) for part in parts]
    table = [struct.pack("<QQ", len(s), len(p)) for s, p in zip(streams, parts, strict=True)]
    head = HEADER.pack(
        MAGIC, 4, header.count, header.degree, header.fraction, 0, len(parts), HEADER.size
    )
    return b"".join([head, *table, *streams])


def _frame(path: str | Path, records: bytes) -> int:
    """The index of the axes that the records of extensions name; right, up, back without one."""
    start = 0
    while len(records) - start >= 8:
        kind, size = struct.unpack_from("<II", records, start)
        if kind == FRAME and size == 4 and len(records) - start >= 12:
            (named,) = struct.unpack_from("<I", records, start + 8)
            if named > len(FRAMES):
                raise broken(path, f"axes of the unknown kind {named}")
            return named - 1 if named else RUB
        start += 8 + size
    return RUB


def _turn(path: str | Path, frame: str) -> torch.Tensor:
    """The motion from axes named by three letters to ours (right, down, front)."""
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = torch.tensor([AXES[letter] for letter in frame], dtype=torch.float64).T
    if torch.linalg.det(turn) < 0:
        raise UserError(
            f"{path} in the left-handed axes {frame}",
            "right-handed axes, for a mirrored scene cannot be turned back",
            "export it again as right, up, back",
        )
    return turn


def _zstandard(wanted_for: str | Path) -> Any:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise UserError(
            f".spz {wanted_for} without the package zstandard",
            "zstandard for version 4 of .spz",
            "install it with: pip install zstandard",
        ) from error
    return zstandard


def _decode(packed: _Packed, start: int, stop: int) -> Gaussians:
    """Gaussians `start` to `stop` in the axes of the file."""
    part = {name: array[start:stop].astype(np.float64) for name, array in packed.arrays.items()}
    dc = (part["color"] / 255 - 0.5) / COLOR_SCALE
    coefficients = np.concatenate([dc, (part["sh"] - 128) / 128], axis=-1)
    digits = part["mean"].reshape(-1, 3, 3) @ [1, 1 << 8, 1 << 16]
    means = np.where(digits < 1 << 23, digits, digits - (1 << 24)) / 2**packed.header.fraction
    if packed.header.version == 2:
        xyz = part["quat"] / 127.5 - 1
        xyzw = _quaternions.whole(xyz, np.full(len(xyz), 3))
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
    """xyzw of 32 bits each: 2 name the largest number, 1 + 9 the sign and size of each other."""
    words = packed.copy().view("<u4")[:, :1].astype(np.int64)
    fields = (words >> [20, 10, 0]) & 1023
    others = HALF * (fields & 511) / 511 * np.where(fields & 512, -1, 1)
    return _quaternions.whole(others, words[:, 0] >> 30)


def _encode(gaussians: Gaussians, path: str | Path, header: _Header) -> dict[str, bytes]:
    """The arrays of a file in their order, in the axes right, up, back."""
    turn = _turn(path, FRAMES[RUB]).mT
    arrays = {
        name: np.empty((header.count, width), np.uint8) for name, width in header.widths.items()
    }
    start = 0
    cut = {"any": 0, "too thin": 0, "too large": 0, "too colourful": 0}
    for ours in write_blocks(gaussians, path):
        block = ours.transformed(turn)
        stop = start + block.means.shape[1]
        digits = (block.means[0] * 2**header.fraction).round().numpy().astype(np.int64)
        digits = digits.clip(-(1 << 23), (1 << 23) - 1)
        scale = 16 * (block.scales[0].clamp_min(1e-30).log() + 10)
        color = 255 * (COLOR_SCALE * block.sh[0, :, 0] + 0.5)
        rest = 128 * (block.sh[0, :, 1:].flatten(1) + 1)
        step = torch.where(torch.arange(rest.shape[1]) < 9, FIRST_BUCKET, BUCKET)
        arrays["mean"][start:stop] = ((digits[..., None] >> [0, 8, 16]) & 255).reshape(-1, 9)
        arrays["opacity"][start:stop, 0] = _byte(255 * block.opacities[0])
        arrays["color"][start:stop] = _byte(color)
        arrays["scale"][start:stop] = _byte(scale)
        arrays["quat"][start:stop] = _pack_quats(block.quats_wxyz[0].roll(-1, dims=-1).numpy())
        arrays["sh"][start:stop] = _byte((rest / step).round() * step)
        colors = torch.cat([color, rest], dim=-1)
        beyond = {
            "too thin": (scale < -0.5).any(dim=-1),
            "too large": (scale > 256).any(dim=-1),
            "too colourful": ((colors < -0.5) | (colors > 256)).any(dim=-1),
        }
        for what, which in beyond.items():
            cut[what] += int(which.sum())
        cut["any"] += int(torch.stack(list(beyond.values())).any(dim=0).sum())
        start = stop
    whole = cut.pop("any")
    if whole:
        kinds = ", ".join(f"{number} {what}" for what, number in cut.items() if number)
        log.warning(
            "%s: %d of %d Gaussians reach beyond what .spz holds and are cut: %s",
            *(path, whole, header.count, kinds),
        )
    return {name: array.tobytes() for name, array in arrays.items()}


def _pack_quats(xyzw: np.ndarray) -> np.ndarray:
    which = _quaternions.largest(xyzw)
    others = _quaternions.smallest_three(xyzw, which)
    fields = np.floor(511 * (np.abs(others) / HALF).clip(0, 1) + 0.5).astype(np.int64)
    fields |= np.where(others < 0, 512, 0)
    words = (which << 30) | (fields << [20, 10, 0]).sum(axis=-1)
    return words.astype("<u4")[:, None].view(np.uint8)


def _byte(values: torch.Tensor) -> np.ndarray:
    return values.round().clamp(0, 255).to(torch.uint8).numpy()
