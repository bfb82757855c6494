"""Reads foreign checkpoints safely, reads and writes ours, and downloads released ones.

Our checkpoints are safetensors files whose header names the model and its settings. Foreign ones
are often torch files, which are pickles: they are read as data, never executed. Released
checkpoints are downloaded from the Hugging Face hub and verified.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..shipped_files import CLONE
from ._checkpoints import (
    check_exists,
    damage_error,
    find_checkpoint,
    is_safetensors,
    open_safetensors,
    read_tensors,
)
from ._transfer import DownloadImpossible, download, explain, failures
from .files import atomic
from .tensors import save_safetensors

FORMAT = 1  # of our own checkpoints
HEADER = "pmsplat"
NEWEST = "main"  # name of the newest revision of a repository on the hub

__all__ = [
    "Header",
    "Source",
    "check_same",
    "fetch",
    "find_checkpoint",
    "pretrained_folder",
    "read_checkpoint",
    "read_header",
    "save_checkpoint",
    "sha256",
]


@dataclass(frozen=True)
class Header:
    """The header of our checkpoints: the name of the model and its constructor's settings."""

    model: str
    settings: dict[str, Any]


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Reads every tensor of a torch or safetensors checkpoint by its key, on the CPU.

    `path` may also be the index of a checkpoint in parts, or the folder that holds it. Numbers of
    any float type become float32. Wrappers around the weights are removed, and averaged weights
    are taken before raw ones, with a warning. Nothing in the file is executed: from a Lightning
    checkpoint only the tensors are kept. Raises UserError for a file that is missing, truncated or
    not a checkpoint, or that would run code.
    """
    state = read_tensors(check_exists(path))
    return {
        key: value.float() if value.is_floating_point() else value for key, value in state.items()
    }


def check_same(
    given: Mapping[str, Tensor], model: Mapping[str, Tensor], where: str, remedy: str
) -> None:
    """Raises UserError for the first tensor whose shape in `given` differs from the model's.

    `where` names the source of `given` in the error.
    """
    for name in [*model, *given]:
        shapes = [list(state[name].shape) if name in state else None for state in (given, model)]
        if shapes[0] != shapes[1]:
            theirs, ours = (shape or "nothing" for shape in shapes)
            raise UserError(
                f"{where} has {theirs} at {name!r}",
                f"{ours}, as in the model",
                remedy,
            )


def save_checkpoint(path: str | Path, state: dict[str, Tensor], header: Header) -> None:
    """Writes one of our checkpoints, whole or not at all."""
    text = json.dumps({"format": FORMAT, "model": header.model, "settings": header.settings})
    with atomic(path) as temporary:
        whole = {name: value.cpu().contiguous() for name, value in state.items()}
        save_safetensors(whole, temporary, {HEADER: text})


def read_header(path: str | Path) -> Header | None:
    """Reads the header of one of our checkpoints; None for a foreign file.

    Raises UserError if a newer pmsplat wrote the file, or if it cannot be read.
    """
    path = check_exists(path)
    if not is_safetensors(path):
        return None
    with open_safetensors(path) as file:
        text = (file.metadata() or {}).get(HEADER)
    if text is None:
        return None
    try:
        content = json.loads(text)
        version = content["format"]
        header = Header(str(content["model"]), dict(content["settings"]))
    except (ValueError, KeyError, TypeError) as error:
        raise damage_error(path, error) from error
    if version != FORMAT:
        raise UserError(
            f"{path} in checkpoint format {version!r}",
            f"format {FORMAT}",
            "load it with the version of pmsplat that wrote it",
        )
    return header


@dataclass(frozen=True)
class Source:
    """A released file on the Hugging Face hub.

    `revision` is a commit or branch, `file` the path in the repository, `sha256` the published
    SHA-256 or its first characters ("" if none was published).
    """

    repository: str
    revision: str
    file: str
    sha256: str

    @property
    def name(self) -> str:
        """The name of the file in `pretrained/`."""
        return Path(self.file).name

    @property
    def url(self) -> str:
        """The address of the file for a browser."""
        return f"https://huggingface.co/{self.repository}/resolve/{self.revision}/{self.file}"


def pretrained_folder() -> Path:
    """Returns the folder of downloaded weights: `pretrained/` of the repository or the cache."""
    here = CLONE / "pretrained"
    return here if here.is_dir() else Path.home() / ".cache" / "pmsplat"


def sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal (1 s for about 1.5 GB)."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(source: Source, folder: Path | None = None) -> Path:
    """Returns the path of a released file in `folder`, verified; downloads it if it is missing.

    `folder` is `pretrained_folder()` by default. A file that exists is hashed each time, if its
    hash was published. An interrupted download resumes where it stopped. It is checked against
    `source.sha256` and the hub's own SHA-256 and appears whole or not at all, even if several
    processes fetch it at once. Raises UserError if the file has another hash, or is missing and
    cannot be downloaded.
    """
    folder = folder or pretrained_folder()
    path = folder / source.name
    if not path.is_file():
        with _explain_failures(source, folder):
            _download(source, path)
    elif source.sha256 and not (digest := sha256(path)).startswith(source.sha256):
        raise UserError(
            f"{path} with SHA-256 {digest[:16]}…",
            f"the released file, with SHA-256 {source.sha256[:16]}…",
            f"remove it to download it again, or put {source.url} in its place",
        )
    return path


def _download(source: Source, path: Path) -> None:
    """Finds the file and the hash that it must have, and downloads it."""
    url, remote = _locate(source)
    wanted = source.sha256
    if remote.etag and re.fullmatch("[0-9a-f]{64}", remote.etag):  # the SHA-256 of a large file
        wanted = remote.etag
    if not wanted or not wanted.startswith(source.sha256):
        raise DownloadImpossible(
            f"{source.repository} offers a file with SHA-256 {wanted[:16] or '?'}…"
        )

    def find_fault(part: Path) -> str | None:
        digest = sha256(part)
        if digest.startswith(wanted):
            return None
        return f"the file from {source.repository} has SHA-256 {digest[:16]}…"

    download(url, path, remote.size, wanted[:16], find_fault)


def _locate(source: Source) -> tuple[str, Any]:
    """Returns the address of the file and its metadata on the hub.

    If the file is gone from its revision but its hash is known, the newest revision is used: the
    hash proves that the file is the same.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    url = hf_hub_url(source.repository, source.file, revision=source.revision)
    try:
        return url, get_hf_file_metadata(url)
    except (EntryNotFoundError, RevisionNotFoundError):
        if not source.sha256 or source.revision == NEWEST:
            raise
    url = hf_hub_url(source.repository, source.file, revision=NEWEST)
    return url, get_hf_file_metadata(url)


@contextmanager
def _explain_failures(source: Source, folder: Path) -> Iterator[None]:
    """Turns whatever stops a download into a UserError that says how to do it by hand."""
    try:
        yield
    except failures() as error:
        missing = f"{source.file} at revision {source.revision}"
        why = explain(error, source.repository, missing)
        wanted = source.name
        wanted += f" with SHA-256 {source.sha256[:16]}…" if source.sha256 else ""
        raise UserError(
            f"{source.name} is not in {folder}, and {why}",
            wanted,
            f"try again, or put {source.url} there by hand, or give its path",
        ) from error
