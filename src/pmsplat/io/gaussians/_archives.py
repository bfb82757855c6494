"""Unpacks gzip streams and zip archives of untrusted origin; the size of what comes out is bounded.

See `_blocks.is_plausible` for the bound. An archive is never extracted by the names inside it.
"""

import gzip
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..files import named
from ._blocks import damage_error, is_plausible

GZIP, ZIP = b"\x1f\x8b\x08", b"PK\x03\x04"  # first bytes
STEP = 1 << 20  # bytes that are unpacked at a time
ENCRYPTED = 1  # flag of a file in a zip archive
DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, struct.error
)  # what zipfile raises on damaged archives  # fmt: skip


def shorten(error: Exception) -> str:
    """Returns the text of an error of a library as a short line; some quote half a file."""
    return " ".join(str(error).split())[:100]


def peek_gzip(path: str | Path, count: int) -> bytes:
    """Returns the first unpacked bytes of a gzip file, fewer where it is shorter or damaged."""
    with Path(path).open("rb") as file:
        packed = file.read(STEP)
    try:
        return zlib.decompressobj(wbits=31).decompress(packed, count)
    except zlib.error:
        return b""


@contextmanager
def unpacked_gzip(path: str | Path) -> Iterator[Path]:
    """Yields a temporary file of the unpacked bytes, of the same name without a final .gz.

    Raises UserError for a damaged stream, and for one that unpacks to more than 64 MiB and more
    than 100 times its size; in the block, UserErrors and warnings name `path`.
    """
    source = Path(path)
    size, total = source.stat().st_size, 0
    with tempfile.TemporaryDirectory(prefix="pmsplat-") as folder:
        plain = Path(folder) / (source.stem if source.suffix.lower() == ".gz" else source.name)
        try:
            with gzip.open(source) as stream, plain.open("wb") as file:
                while part := stream.read(STEP):
                    total += len(part)
                    if not is_plausible(total, size):
                        break
                    file.write(part)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise damage_error(path, f"its gzip stream is damaged ({shorten(error)})") from error
        if not is_plausible(total, size):
            raise damage_error(path, f"{size} bytes that unpack to more than {total}")
        with named(plain, source):
            yield plain


@dataclass(frozen=True)
class Archive:
    """A zip archive, open; methods raise UserError for damaged content."""

    path: Path
    entries: dict[str, zipfile.ZipInfo]
    file: zipfile.ZipFile

    def load(self, name: str) -> bytes:
        """Returns the bytes of a file in the archive, after a check of their number."""
        entry = self.entries.get(name)
        if entry is None:
            raise damage_error(self.path, f"there is no {name[:80]!r} in it")
        known = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if entry.flag_bits & ENCRYPTED or not known:
            raise damage_error(self.path, f"{name[:80]!r} in it is encrypted or packed otherwise")
        if not is_plausible(entry.file_size, min(entry.compress_size, self.path.stat().st_size)):
            raise damage_error(self.path, f"{name[:80]!r} in it claims {entry.file_size} bytes")
        try:
            return self.file.read(entry)
        except DAMAGE as error:
            fault = f"{name[:80]!r} in it is damaged ({shorten(error)})"
            raise damage_error(self.path, fault) from error


@contextmanager
def opened_zip(path: str | Path) -> Iterator[Archive]:
    """Yields a zip archive; raises UserError where its list of files cannot be read."""
    source = Path(path)
    try:
        file = zipfile.ZipFile(source)
    except DAMAGE as error:
        raise damage_error(path, f"its zip archive is damaged ({shorten(error)})") from error
    with file:
        yield Archive(source, {entry.filename: entry for entry in file.infolist()}, file)
