"""Data sets on the Hugging Face hub: which files they have, and how they come onto the disk."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ._transfer import DownloadImpossible, Progress, download, explain, failures
from .weights import sha256

TRANSFERS = 8  # files at a time


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its path there, its bytes, and what proves it.

    `sha256` of a large file (LFS); of the others "", and `blob` is git's own hash.
    """

    path: str
    size: int
    sha256: str
    blob: str

    def find_fault(self, file: Path) -> str | None:
        """What is wrong with a file that was downloaded."""
        if self.sha256:
            digest, wanted = sha256(file), self.sha256
        else:
            content = file.read_bytes()
            digest, wanted = _blob(content), self.blob
        return None if digest == wanted else f"{self.path} has hash {digest[:16]}… there"


@dataclass(frozen=True)
class Listing:
    """The files of a repository of data at one commit."""

    repository: str
    commit: str
    files: tuple[RemoteFile, ...]


def list_files(repository: str) -> Listing:
    """Asks the hub for the files of a repository of data; UserError where it does not answer."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _explain(repository, "the list of its files"):
        api = HfApi()
        commit = api.repo_info(repository, repo_type="dataset").sha or "main"
        found = api.list_repo_tree(repository, recursive=True, revision=commit, repo_type="dataset")
        files = tuple(
            RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else "", entry.blob_id)
            for entry in found
            if isinstance(entry, RepoFile)
        )
    return Listing(repository, commit, files)


def bytes_here(file: RemoteFile, folder: Path) -> int:
    """How much of a file is in a folder, whole or as a part."""
    path = folder / file.path
    if path.is_file():
        return file.size
    part = path.parent / ".incoming" / f"{path.name}.{_tag(file)}.part"
    return min(part.stat().st_size, file.size) if part.is_file() else 0


def fetch_files(
    listing: Listing,
    files: Sequence[RemoteFile],
    folder: Path,
    transfers: int = TRANSFERS,
    moved: Callable[[int], object] = lambda count: None,
) -> Iterator[RemoteFile]:
    """Downloads files into a folder, several at a time, and gives each when it is there, verified.

    They keep their paths. What is there already is given at once; parts go on where they stopped.
    `moved` gets the bytes of every step. The first failure stops all, and is a UserError.
    """
    from huggingface_hub import hf_hub_url

    stop = threading.Event()
    progress = Progress(moved, stop)

    def fetch(file: RemoteFile) -> RemoteFile:
        path = folder / file.path
        if not path.is_file():
            url = hf_hub_url(
                listing.repository, file.path, repo_type="dataset", revision=listing.commit
            )
            download(url, path, file.size, _tag(file), file.find_fault, progress)
        return file

    with ThreadPoolExecutor(transfers) as pool:
        waiting: set[Future[RemoteFile]] = {pool.submit(fetch, file) for file in files}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    with _explain(listing.repository, "such a file"):
                        file = future.result()
                    yield file
        except BaseException:
            stop.set()
            for future in waiting:
                future.cancel()
            raise


@contextmanager
def _explain(repository: str, missing: str) -> Iterator[None]:
    """Turns what the hub, the network or the disk raise into a UserError."""
    try:
        yield
    except failures() as error:
        why = explain(error, repository, missing)
        again = "" if isinstance(error, DownloadImpossible) else "what is here is kept; "
        raise UserError(
            f"the data set {repository} cannot be fetched: {why}",
            "its files from https://huggingface.co",
            f"{again}try again",
        ) from error


def _tag(file: RemoteFile) -> str:
    return (file.sha256 or file.blob)[:16]


def _blob(content: bytes) -> str:
    """Git's hash of a file, by which it names it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
