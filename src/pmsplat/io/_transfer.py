"""One file from the Hugging Face hub onto the disk, and why that failed in words: see `weights`."""

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError
from ._checkpoints import first_line

_LARGEST = 50_000_000_000  # bytes; the hub gives larger files to its own client only


class DownloadImpossible(Exception):
    """A download that is not possible; the text says why in a few words."""


class Stopped(Exception):
    """A download that was told to stop; what it has is kept."""


class Progress:
    """The bar that the hub's client moves: hands on every step, and stops when it is told to.

    `moved` gets the bytes of each step; `stop` is looked at before it.
    """

    def __init__(self, moved: Callable[[int], object], stop: threading.Event) -> None:
        self.moved, self.stop = moved, stop

    def __call__(self, *_: Any, **__: Any) -> "Progress":
        """As the client makes one for a file."""
        return self

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def update(self, count: float | None = 1) -> None:
        """Of the client, with the bytes of a step."""
        if self.stop.is_set():
            raise Stopped
        self.moved(int(count or 0))


def download(
    url: str,
    path: Path,
    size: int | None,
    tag: str,
    find_fault: Callable[[Path], str | None],
    progress: Progress | None = None,
) -> None:
    """Downloads into `.incoming/` beside `path`, verifies the file and renames it to `path`.

    Resumes what an earlier process left, known by the file's name and `tag`, a part of its hash.
    `find_fault` says what is wrong with the whole file. Raises DownloadImpossible, and what the
    client and the disk raise.
    """
    # Parts of huggingface_hub's `hf_hub_download`, which cannot resume in a new process.
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    staging = path.parent / ".incoming"
    staging.mkdir(parents=True, exist_ok=True)
    part = staging / f"{path.name}.{tag}.part"
    options: dict[str, Any] = {} if progress is None else {"tqdm_class": progress}
    with WeakFileLock(staging / f"{path.name}.lock"):
        if path.is_file():  # another process has downloaded it
            return
        with part.open("ab") as file:
            if size is not None and file.tell() > size:
                file.truncate(0)
                file.seek(0)
            check_space(staging, (size or 0) - file.tell())
            if (size or 0) > _LARGEST:
                raise DownloadImpossible(f"{path.name} is larger than the hub hands out (50 GB)")
            http_get(
                url,
                file,
                resume_size=file.tell(),
                headers=build_hf_headers(),
                expected_size=size,
                **options,
            )
        if fault := find_fault(part):
            part.unlink()
            raise DownloadImpossible(fault)
        os.replace(part, path)


def hub_folder(url: str) -> tuple[str, dict[str, str]]:
    """hf://datasets/OWNER/NAME[@REVISION]/PATH -> its address, and the headers of a request.

    Raises UserError for an address of another form, and where downloads are switched off.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    parts = url.removeprefix("hf://").split("/")
    if len(parts) < 3 or parts[0] != "datasets" or not all(parts[:3]):
        raise UserError(
            f"{url}, which names no data set of the hub",
            "hf://datasets/OWNER/NAME, with @REVISION and a folder if need be",
            "check the address",
        )
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{url} is to be read, and downloads are switched off by HF_HUB_OFFLINE",
            "the hub, or data on this machine",
            "unset HF_HUB_OFFLINE, or set dataset.root to a folder",
        )
    name, _, revision = parts[2].partition("@")
    place = "/".join([parts[1], name, "resolve", revision or "main", *parts[3:]])
    return f"{constants.ENDPOINT}/datasets/{place}", build_hf_headers()


def check_space(folder: Path, needed: int) -> None:
    """Raises DownloadImpossible where a folder that exists has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadImpossible(
            f"there is no room: it needs {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free"
        )


def failures() -> tuple[type[Exception], ...]:
    """What `download`, and a question to the hub, raise where they fail."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    return (DownloadImpossible, OfflineModeIsEnabled, HfHubHTTPError, HTTPError, OSError)


def explain(error: Exception, repository: str, missing: str) -> str:
    """Why it failed, in words; `missing` is what the hub lacks, if it says that it does."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    if isinstance(error, DownloadImpossible):
        return str(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "downloads are switched off by HF_HUB_OFFLINE"
    if isinstance(error, HfHubHTTPError):
        return _explain_status(repository, missing, error.response.status_code)
    if isinstance(error, HTTPError):  # of the transport
        return f"there is no connection to the hub ({first_line(error)})"
    assert isinstance(error, OSError)
    return _explain_os_error(error)


def _explain_status(repository: str, missing: str, status: int) -> str:
    """What a status code of the hub means."""
    if status == 404:
        return f"{repository} has no {missing}"
    if status in (401, 403):
        return f"{repository} may not be read (status {status}; set HF_TOKEN)"
    return f"the hub returned status {status}"


def _explain_os_error(error: OSError) -> str:
    if error.errno is None:  # raised for a transfer of the wrong length
        return f"the transfer broke off ({first_line(error)})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"there is no room for it ({error.strerror})"
    return f"the folder cannot be written ({error.strerror})"
