"""Parts of remote files that were read, kept on this machine up to a number of bytes.

A part is a file, written whole or not at all. Any number of processes may use one folder: what one
removes while another wants it is read again.
"""

import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .files import fcntl, write_bytes

log = logging.getLogger(__name__)

FOLDER, LIMIT = "PMSPLAT_CACHE", "PMSPLAT_CACHE_GB"
DEFAULT_LIMIT = 20.0  # GB

_SHARE = 0.02  # of the limit: what a process writes before it looks at all of the folder
_KEPT = 0.9  # of the limit, when it has been exceeded


def cache_folder() -> Path:
    """$PMSPLAT_CACHE, or where downloads of this package go otherwise."""
    named = os.environ.get(FOLDER)
    return Path(named) if named else Path.home() / ".cache" / "pmsplat"


def cache_limit() -> int:
    """$PMSPLAT_CACHE_GB in bytes; UserError where that is no number of gigabytes."""
    value = os.environ.get(LIMIT, str(DEFAULT_LIMIT))
    try:
        limit = float(value)
        if not 0 <= limit < float("inf"):
            raise ValueError
    except ValueError as error:
        raise UserError(
            f"{LIMIT}={value}", "gigabytes, 0 to keep nothing", f"set {LIMIT}=20"
        ) from error
    return int(limit * 1e9)


@dataclass
class RangeCache:
    """Bytes by name; those that were not used for longest make room. See the top of this file."""

    folder: Path
    limit: int
    written: int = 0  # by this process, since it last looked at the folder

    def get(self, name: str) -> bytes | None:
        """The bytes of a part, if they are kept."""
        path = self.folder / name
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data

    def put(self, name: str, data: bytes) -> None:
        """Keeps a part, if there is room; a disk that is full or read-only is no error."""
        if len(data) > self.limit:
            return
        try:
            write_bytes(self.folder / name, data)
        except OSError as error:
            log.info("%s: nothing can be kept there (%s)", self.folder, error)
            return
        self.written += len(data)
        if self.written > _SHARE * self.limit:
            self.written = 0
            self.clear()

    def clear(self) -> None:
        """Removes what was not used for longest, if it is too much; one process at a time."""
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            if fcntl is not None:
                lock = stack.enter_context((self.folder / ".lock").open("a"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            parts = sorted(self._list())
            total = sum(size for _, size, _ in parts)
            if total <= self.limit:
                return
            for _, size, path in parts:
                if total <= _KEPT * self.limit:
                    return
                with contextlib.suppress(OSError):
                    os.unlink(path)
                    total -= size

    def _list(self) -> list[tuple[float, int, str]]:
        """Time of last use, bytes and path of every part."""
        found = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):
                    about = os.stat(path)
                    found.append((about.st_mtime, about.st_size, path))
        return [part for part in found if not part[2].endswith(".lock")]
