"""Splits of chunks that lie elsewhere: offsets come here once, then photographs by range."""

import hashlib
import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError
from ._chunk_file import RemoteChunk
from ._chunk_offsets import SUFFIX, read_offsets
from ._chunk_scene import Chunk
from ._objects import Changed, RemoteFolder
from ._range_cache import RangeCache, cache_folder, cache_limit
from .files import locked, named, write_bytes

log = logging.getLogger(__name__)


def mirror_of(folder: RemoteFolder) -> Path:
    """The folder on this machine for what is known about a folder elsewhere."""
    name = hashlib.blake2b(folder.url.encode(), digest_size=8).hexdigest()
    return cache_folder() / "remote" / f"{Path(folder.url).name}-{name}"


def open_remote_chunk(
    folder: RemoteFolder, name: str, open_local: Callable[[Path], Chunk]
) -> Chunk:
    """A chunk whose photographs stay where they are until they are decoded.

    Its offsets are those that lie beside it, or, where there are none, made by `open_local` of the
    whole chunk, which is downloaded for that once. Raises UserError where there is no such chunk,
    or it is not laid out to be read by range, and Unreachable where the store does not answer.
    """
    found = folder.look(name)
    if found is None:
        raise UserError(f"there is no chunk {folder.url}/{name}", "a .torch file", "upload it")
    place = (mirror_of(folder) / name).with_suffix(SUFFIX)
    cache = RangeCache(cache_folder() / "remote" / "frames", cache_limit())
    file = RemoteChunk(folder, name, found, place.with_suffix(".json"), cache)
    known = read_offsets(file, place)
    if known is not None:
        return known
    with locked(place.with_suffix(".lock")):
        known = read_offsets(file, place) or _read_published(file, place)
        if known is None:
            empty = _make_offsets(file, place, open_local)
            known = read_offsets(file, place) or empty
    if known is None:
        raise Changed(
            f"{folder.url}/{name} has changed while it was read",
            "data that stay as they are",
            "start again when the upload is complete",
        )
    return known


def _read_published(file: RemoteChunk, place: Path) -> Chunk | None:
    """The chunk by the offsets that lie beside it, if they do and fit."""
    data = file.folder.read_optional(place.name)
    if data is None:
        return None
    write_bytes(place, data)
    return read_offsets(file, place)


def _make_offsets(
    file: RemoteChunk, place: Path, open_local: Callable[[Path], Chunk]
) -> Chunk | None:
    """Makes the offsets of a chunk at `place`; the chunk itself where it has no usable scene."""
    log.info("%s/%s is downloaded once, to find where its scenes lie", file.folder, file.name)
    for left in place.parent.glob(f".making-{place.stem}-*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".making-{place.stem}-", dir=place.parent) as working:
        path = Path(working) / file.name
        try:
            file.folder.download(file.name, path, file.found)
        except OSError as error:
            raise UserError(
                f"{place.parent} cannot hold {file.name} for a while ({error.strerror})",
                f"{file.size / 1e6:,.0f} MB of room",
                "set PMSPLAT_CACHE to a folder with room",
            ) from error
        with named(path, f"{file.folder}/{file.name}"):
            chunk = open_local(path)
        made = path.with_suffix(SUFFIX)
        if made.is_file():
            os.replace(made, place)
            return None
        if chunk.scenes or not zipfile.is_zipfile(path):
            raise UserError(
                f"the photographs of {file.folder}/{file.name} do not lie in it one by one",
                "a chunk that torch 1.6 or later wrote, uncompressed",
                "download it, or write it again with `pmsplat data convert`",
            )
    return chunk
