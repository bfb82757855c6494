"""The bytes of .spz files: headers, streams and records, without the meaning of their arrays.

See `spz` for the layout. Files are untrusted: nothing is unpacked beyond what a header claims, and
a header claims no more than the size of the file allows.
"""

import gzip
import logging
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...geometry import sh
from ...types import CLASSIC, MIP, DrawingRules
from ._blocks import damage_error, is_plausible

log = logging.getLogger(__name__)

MAGIC = b"NGSP"
LEVEL = 6  # of gzip, as in the reference writer: a third of the time of the highest level
ANTIALIASED, EXTENSIONS = 1, 2  # flags
FRAME = 0xADBE0003  # type of the record that names the axes
FRAMES = (  # names of axes; the record counts them from 1
    "LDB", "RDB", "LUB", "RUB", "LDF", "RDF", "LUF", "RUF",
    "LFD", "RFD", "LFU", "RFU", "LBD", "RBD", "LBU", "RBU",
)  # fmt: skip
RUB = FRAMES.index("RUB")
LEGACY, HEADER = struct.Struct("<4sIIBBBx"), struct.Struct("<4sIIBBBBI12x")


@dataclass(frozen=True)
class Header:
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
class Packed:
    """The parts of a file: `arrays` are uint8 [gaussian, byte], `frame` is an index of FRAMES."""

    header: Header
    arrays: dict[str, np.ndarray]
    frame: int


def unpack(path: str | Path, content: bytes) -> Packed:
    """Unpacks the bytes of a file of any version; UserError for damage and other versions."""
    modern = content.startswith(MAGIC) and int.from_bytes(content[4:8], "little") > 3
    return (_unpack_zstd if modern else _unpack_legacy)(path, content)


def pack(header: Header, arrays: dict[str, bytes]) -> bytes:
    """The bytes of a file of version 3 or 4; UserError for 4 without the package zstandard."""
    if header.version == 4:
        return _pack_zstd(header, [part for part in arrays.values() if part])
    numbers = (header.count, header.degree, header.fraction, header.flags)
    head = LEGACY.pack(MAGIC, header.version, *numbers)
    return gzip.compress(head + b"".join(arrays.values()), LEVEL, mtime=0)


def _check_header(path: str | Path, header: Header, size: int) -> None:
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


def _unpack_legacy(path: str | Path, content: bytes) -> Packed:
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
        header = Header(version, count, degree, fraction, flags)
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
    return Packed(header, arrays, _read_frame(path, records))


def _unpack_zstd(path: str | Path, content: bytes) -> Packed:
    """Unpacks a file of version 4."""
    # Read the header and find the table of streams.
    if len(content) < HEADER.size:
        raise damage_error(path, "its .spz header is cut short")
    _, version, count, degree, fraction, flags, streams, table = HEADER.unpack_from(content)
    if version != 4:
        raise damage_error(path, f"version {version} of .spz; pmsplat reads versions 1 to 4")
    header = Header(version, count, degree, fraction, flags)
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
    return Packed(header, arrays, _read_frame(path, records))


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


def _pack_zstd(header: Header, parts: list[bytes]) -> bytes:
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
