"""Folders in object stores and on web servers, read by range; obstore knows their protocols."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ._checkpoints import first_line
from ._transfer import hub_folder
from .files import atomic

log = logging.getLogger(__name__)

SCHEMES = ("s3", "gs", "az", "hf", "https", "http", "file")
RETRIES = {"max_retries": 4}


class Unreachable(UserError):
    """A store that does not answer or refuses: not the fault of a chunk."""


class Changed(Unreachable):
    """An object that is another one than when it was looked at first."""


@dataclass(frozen=True)
class Found:
    """The bytes of an object, and its ETag ("" where the store has none)."""

    size: int
    tag: str


def is_remote(root: str | Path) -> bool:
    """Whether it is an address, not a path."""
    return "://" in str(root)


def read_file(path: str | Path) -> bytes | None:
    """A whole file, on this machine or at an address; None where there is none.

    UserError as `RemoteFolder`.
    """
    if not is_remote(path):
        return Path(path).read_bytes() if Path(path).is_file() else None
    folder, _, name = str(path).rpartition("/")
    return RemoteFolder(folder).read(name)


class RemoteFolder:
    """A folder of objects at an address; each process that reads it opens it for itself.

    Raises UserError for an address of another kind than SCHEMES, or without obstore.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        scheme = self.url.partition("://")[0]
        if scheme not in SCHEMES:
            raise UserError(
                f"{url}, an address of the kind {scheme}://",
                f"one of {', '.join(f'{name}://' for name in SCHEMES)}",
                "choose another address, or a folder on this machine",
            )
        self._store: Any = None
        self._owner = 0

    def __str__(self) -> str:
        return self.url

    def __getstate__(self) -> str:
        return self.url

    def __setstate__(self, state: str) -> None:
        self.__init__(state)

    def look(self, name: str) -> Found | None:
        """An object's size and ETag; None where there is none."""
        obstore = self._open()
        with self._explain(name):
            try:
                found = obstore.head(self._store, name)
            except FileNotFoundError:
                return None
        return Found(found["size"], found["e_tag"] or "")

    def read(self, name: str) -> bytes | None:
        """A whole object; None where there is none."""
        obstore = self._open()
        with self._explain(name):
            try:
                return bytes(obstore.get(self._store, name).bytes())
            except FileNotFoundError:
                return None

    def read_optional(self, name: str) -> bytes | None:
        """The same; None also where it is refused, as S3 refuses what may not be listed."""
        try:
            return self.read(name)
        except Unreachable as error:
            log.info("%s, which is done without", error.got)
            return None

    def read_range(self, name: str, start: int, size: int, found: Found) -> bytes:
        """Bytes of an object; raises Changed where it is no longer the one that was found."""
        if size == 0:
            return b""
        options: dict[str, Any] = {"range": (start, start + size)}
        if found.tag and not found.tag.startswith("W/"):  # weak ones cannot be compared
            options["if_match"] = found.tag
        obstore = self._open()
        with self._explain(name):
            try:
                data = bytes(obstore.get(self._store, name, options=options).bytes())
            except FileNotFoundError as error:
                raise self._changed(name, "is gone") from error
        if len(data) != size:
            raise self._changed(name, "is shorter")
        return data

    def download(self, name: str, path: Path, found: Found) -> None:
        """Copies a whole object to a path; raises Changed as `read_range`."""
        obstore = self._open()
        size = 0
        with self._explain(name), atomic(path) as temporary, temporary.open("wb") as file:
            for part in obstore.get(self._store, name).stream(min_chunk_size=2**23):
                size += file.write(bytes(part))
            if size != found.size:
                raise self._changed(name, f"has {size} bytes, not {found.size}")

    def _changed(self, name: str, how: str) -> Changed:
        return Changed(
            f"{self.url}/{name} has changed while it was read: it {how}",
            "data that stay as they are",
            "start again when the upload is complete: what has changed is looked at anew",
        )

    def _open(self) -> Any:
        """The module obstore. Its threads do not survive a fork: reading would wait for ever."""
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise UserError(
                f"{self.url}, without the package that reads it",
                "obstore",
                'run pip install "pmsplat[cloud]", or download the data to this machine',
            ) from error
        if self._store is None:
            url, options = _find_address(self.url)
            with self._explain(""):
                self._store, self._owner = from_url(url, **options), os.getpid()
        if self._owner != os.getpid():
            raise UserError(
                f"{self.url} was opened before this process was forked from another",
                "a process of its own",
                'give the DataLoader multiprocessing_context="spawn"',
            )
        return obstore

    @contextmanager
    def _explain(self, name: str) -> Iterator[None]:
        """Turns what a store raises into one sentence."""
        from obstore import exceptions

        where = f"{self.url}/{name}" if name else self.url
        try:
            yield
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise Unreachable(
                f"{where} may not be read: the store refuses ({_shorten(error)})",
                "a place that is public, or credentials for it",
                "check the address, and the variables of the store (AWS_ACCESS_KEY_ID, "
                "AWS_SKIP_SIGNATURE=true for public data, GOOGLE_APPLICATION_CREDENTIALS, "
                "AZURE_STORAGE_ACCOUNT_KEY, HF_TOKEN)",
            ) from error
        except exceptions.PreconditionError as error:
            raise self._changed(name, "has another ETag") from error
        except (exceptions.BaseError, ValueError, OSError) as error:
            if isinstance(error, UserError):
                raise
            raise Unreachable(
                f"{where} cannot be read ({_shorten(error)})",
                "a store that answers",
                "check the address and the network, and try again",
            ) from error


def _find_address(url: str) -> tuple[str, dict[str, Any]]:
    """The address that obstore opens, and how."""
    scheme = url.partition("://")[0]
    if scheme == "file":
        return url, {}
    options: dict[str, Any] = {"retry_config": RETRIES}
    if scheme == "hf":
        url, headers = hub_folder(url)
        options["client_options"] = {"default_headers": headers}
    if url.startswith("http://"):
        options.setdefault("client_options", {})["allow_http"] = True
    return url, options


def _shorten(error: Exception) -> str:
    """The first line, without how often and how long it was tried."""
    return first_line(error).strip()
