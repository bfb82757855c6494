"""Whether the bytes of a chunk are those that were written: see `chunks`.

A .torch file is a zip archive of one uncompressed record for each tensor, with its CRC-32. torch
does not check it, and JPEG decoders let most flipped bits pass.
"""

import mmap
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_HEADER = 30  # bytes of a record's header, before its name (APPNOTE.TXT of PKWARE, 4.3.7)


@dataclass(frozen=True)
class Damage:
    """Scenes whose bytes have changed, and records that changed and belong to no single scene."""

    scenes: frozenset[str] = field(default_factory=frozenset)
    records: tuple[str, ...] = ()


def find_damage(path: Path, entries: list[dict[str, Any]]) -> Damage:
    """Compares every byte of a chunk with its checksums; `entries` is what torch read from it.

    A file of torch before 1.6, or one written without checksums, has none: nothing is found.
    """
    if not zipfile.is_zipfile(path):
        return Damage()
    with zipfile.ZipFile(path) as archive:
        records = [info for info in archive.infolist() if info.file_size]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        sums = {info.filename: _checksum(content, info) for info in records}
    changed = {info.filename: sums[info.filename] for info in records if _differs(info, sums)}
    if not changed or len(changed) == len(records):  # all: they were written without
        return Damage()
    # Find the scene of every record that changed, by its bytes as they are now.
    owners: dict[tuple[int, int], set[str]] = {}
    for entry in entries:
        for tensor in _tensors(entry):
            data = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()
            owners.setdefault((zlib.crc32(data.data), len(data)), set()).add(entry["key"])
    sizes = {info.filename: info.file_size for info in records}
    found = {name: owners.get((checksum, sizes[name]), set()) for name, checksum in changed.items()}
    return Damage(
        frozenset(key for keys in found.values() for key in keys),
        tuple(name for name, keys in found.items() if not keys),
    )


def _checksum(content: mmap.mmap, info: zipfile.ZipInfo) -> int:
    """The CRC-32 of a record's bytes as they are in the file; -1 where they are not there."""
    start = info.header_offset
    if info.compress_type != zipfile.ZIP_STORED or start + _HEADER > len(content):
        return -1
    start += _HEADER + sum(struct.unpack_from("<HH", content, start + 26))  # name, extra field
    with memoryview(content) as view, view[start : start + info.file_size] as data:
        return zlib.crc32(data) if len(data) == info.file_size else -1


def _differs(info: zipfile.ZipInfo, sums: dict[str, int]) -> bool:
    return sums[info.filename] != info.CRC


def _tensors(entry: dict[str, Any]) -> list[Tensor]:
    values = [entry.get(name) for name in ("images", "depths")]
    listed = [item for value in values if isinstance(value, list | tuple) for item in value]
    dense = [item for item in [*listed, *entry.values()] if isinstance(item, Tensor)]
    return [item for item in dense if item.layout is torch.strided]
