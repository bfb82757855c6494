"""Writes files whole or not at all."""

import contextlib
import errno
import glob
import logging
import os
import shutil
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError

import numpy as np

from ..errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PACKAGE = __name__.partition(".")[0]

UNREADABLE_ARRAY = (
    OSError, ValueError, EOFError, TypeError, SyntaxError, MemoryError, OverflowError, KeyError,
    AttributeError, NotImplementedError, RuntimeError, TokenError, zipfile.BadZipFile, zlib.error,
    struct.error,
)  # fmt: skip
"""What numpy raises on damaged .npy and .npz files."""


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path` and renames it to `path` after the block.

    Creates the folder if it is missing. After an exception (Ctrl-C included) the temporary file is
    removed, and `path` is as it was before. Where there is no room for it, the error names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_get_umask())
        os.replace(temporary, path)
    except OSError as error:
        if not is_full(error) or error.filename not in (None, name):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def clear_leftovers(path: str | Path) -> None:
    """Removes what `atomic(path)` leaves in a process that is killed, and in no other.

    Only for one who knows that no process is writing `path`.
    """
    path = Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.stem)}-*.tmp"):
        leftover.unlink(missing_ok=True)


@contextmanager
def named(temporary: Path, wanted: Path | str) -> Iterator[None]:
    """In the block, UserErrors and warnings of this package name `wanted` instead of `temporary`.

    What is inside a temporary folder gets a name inside the wanted one.
    """

    def rename(record: logging.LogRecord) -> bool:
        record.msg, record.args = record.getMessage().replace(str(temporary), str(wanted)), ()
        return True

    writers = [logging.getLogger(name) for name in list(sys.modules) if name.startswith(PACKAGE)]
    for writer in writers:
        writer.addFilter(rename)
    try:
        yield
    except UserError as error:
        got = error.got.replace(str(temporary), str(wanted))
        raise UserError(got, error.wanted, error.remedy) from error
    finally:
        for writer in writers:
            writer.removeFilter(rename)


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Inside, no other process is inside with the same `path`, an empty file that stays.

    Waits for its turn; the lock of a process that dies is released. Where files cannot be written
    or locked (Windows, some network file systems) nothing is.
    """
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                fcntl.flock(stack.enter_context(Path(path).open("a")), fcntl.LOCK_EX)
        yield


@contextmanager
def sole_writer(folder: str | Path) -> Iterator[None]:
    """Inside, no other process is inside with the same folder, which is created if missing.

    Raises UserError where one is; its lock ends with it, however it ends. Where folders cannot be
    locked (Windows, some network file systems) nothing is.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with _open_folder(folder) as handle:
        try:
            _lock(handle)
        except BlockingIOError as error:
            raise UserError(
                f"another process is writing into {folder}",
                "one at a time",
                "wait for it, end it, or choose another folder",
            ) from error
        except OSError:
            pass
        yield


@contextmanager
def one_of_writers(folder: str | Path) -> Iterator[None]:
    """Inside, this process may write into a folder, as others do: each its own files, by `atomic`.

    Creates the folder. Where nobody else is inside, what killed processes left half written there
    is removed first. Where folders cannot be locked nothing is removed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _open_folder(folder) as handle:
        with contextlib.suppress(OSError):  # others are inside, or it cannot be locked
            _lock(handle)
            for leftover in folder.glob(".*-*.tmp"):
                leftover.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_SH)
        yield


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder in that of the system's temporary files, deleted after the block.

    Folders of the same prefix that killed processes left are deleted first; none where folders
    cannot be locked.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{glob.escape(prefix)}*"):
        # Somebody may be inside, or it may be somebody else's.
        with contextlib.suppress(OSError), _open_folder(left) as handle:
            _lock(handle)
            shutil.rmtree(left, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name,
        _open_folder(name) as handle,
    ):
        with contextlib.suppress(OSError):
            _lock(handle)
        yield Path(name).resolve()


@contextmanager
def _open_folder(folder: str | Path) -> Iterator[int]:
    """A folder as what can be locked; -1 where none can."""
    if fcntl is None:
        yield -1
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    """BlockingIOError where another process has the lock, another OSError where none can be had."""
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "folders cannot be locked here")
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def check_folder(path: str | Path) -> None:
    """Raises UserError where `path` is no folder and cannot become one: a file is in its place."""
    for place in (Path(path), *Path(path).parents):
        if place.is_dir():
            return
        if place.exists():
            raise UserError(f"{place} is a file", "a folder to write into", "choose another folder")


def check_room(folder: str | Path, needed: int, purpose: str) -> None:
    """UserError where a folder that exists cannot be written, or has no room for so many bytes.

    `purpose` is what takes them, with a verb, as in "12 checkpoints take". A quota is not seen.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b" ")
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror})",
            "a folder with room and permission to write",
            "choose another one",
        ) from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{in_bytes(free)} free in {folder}, where {purpose} {in_bytes(needed)}",
            "room for all of it, before anything is computed",
            "free some, or choose a folder on a larger disk",
        )


def is_full(error: OSError) -> bool:
    """Whether a file could not be written for want of room, or of the right to."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def in_bytes(count: float) -> str:
    """A number of bytes for people."""
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes `data` to `path`, all or nothing."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` to `path` as UTF-8, all or nothing."""
    write_bytes(path, text.encode())


def write_array(path: str | Path, array: np.ndarray) -> None:
    """Writes `array` as a .npy file, all or nothing."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _get_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
