"""A chunk as a file of bytes, on this machine or elsewhere: what its offsets need to know of it."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ._objects import Found, RemoteFolder
from ._range_cache import RangeCache
from .files import write_text

READERS = 8  # requests at a time for the photographs of an example


class ChunkFile(Protocol):
    """Where the photographs of a chunk are read from."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        ...

    def identify(self, directory: int) -> str:
        """A digest of the zip directory, which begins there, and has the CRC of all parts."""
        ...

    def files(self, places: list[list[int]]) -> Sequence[Tensor]:
        """The parts at [offset, size], each read when it is asked for."""
        ...


class LocalChunk:
    """A chunk on this machine, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size

    def identify(self, directory: int) -> str:
        """See ChunkFile."""
        with self.path.open("rb") as file:
            file.seek(directory)
            return digest(file.read())

    def files(self, places: list[list[int]]) -> tuple[Tensor, ...]:
        """See ChunkFile."""
        return tuple(self._bytes[at : at + size] for at, size in places)

    @cached_property
    def _bytes(self) -> Tensor:
        return torch.from_file(str(self.path), shared=False, size=self.size, dtype=torch.uint8)


class RemoteChunk:
    """A chunk in a folder elsewhere. What is known about it is beside `note`, on this machine."""

    def __init__(
        self, folder: RemoteFolder, name: str, found: Found, note: Path, cache: RangeCache
    ) -> None:
        self.folder, self.name, self.found, self.note, self.cache = folder, name, found, note, cache
        self.size = found.size
        key = f"{folder.url}/{name} {found.size} {found.tag}".encode()
        self._key = f"{Path(name).stem}-{hashlib.blake2b(key, digest_size=8).hexdigest()}"

    def identify(self, directory: int) -> str:
        """See ChunkFile; once an ETag is known, its directory is not read again."""
        about = {"tag": self.found.tag, "size": self.size, "directory": directory}
        if self.found.tag:
            try:
                known = json.loads(self.note.read_text())
                if {name: known[name] for name in about} == about:
                    return known["digest"]
            except (OSError, ValueError, KeyError, TypeError):
                pass
        start = min(directory, self.size)
        found = digest(self.folder.read_range(self.name, start, self.size - start, self.found))
        write_text(self.note, json.dumps({**about, "digest": found}))
        return found

    def files(self, places: list[list[int]]) -> "RemoteFiles":
        """See ChunkFile."""
        return RemoteFiles(self, places)

    def read(self, at: int, size: int) -> bytes:
        """Bytes from the cache, or from where the chunk is."""
        name = f"{self._key}/{at}"
        data = self.cache.get(name)
        if data is None or len(data) != size:
            data = self.folder.read_range(self.name, at, size, self.found)
            self.cache.put(name, data)
        return data


class RemoteFiles(Sequence[Tensor]):
    """Parts of a remote chunk. Those of `fetch` are read together, and then are in memory."""

    def __init__(self, chunk: RemoteChunk, places: list[list[int]]) -> None:
        self._chunk, self._places = chunk, places
        self._held: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index):  # pyright: ignore[reportIncompatibleMethodOverride]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        data = self._held.get(index)
        if data is None:
            data = self._chunk.read(*self._places[index])
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)

    def fetch(self, indices: Sequence[int]) -> None:
        """Reads several at a time; raises UserError where that is not possible."""
        missing = [index for index in dict.fromkeys(indices) if index not in self._held]
        with ThreadPoolExecutor(READERS) as pool:
            read = pool.map(lambda index: self._chunk.read(*self._places[index]), missing)
            self._held |= dict(zip(missing, read, strict=True))


def digest(data: bytes) -> str:
    """As offsets have it."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
