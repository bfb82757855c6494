"""Checkpoints: others' read safely, ours written with what is needed to build the model again.

Ours are safetensors files whose header names the model and its settings. Others' are torch files,
which are pickles: they are read as data, never executed. Released ones are fetched from the Hugging
Face hub and verified.
"""

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from . import _pickles
from .files import atomic

FORMAT = 1  # of our own checkpoints
HEADER = "pmsplat"
NEWEST = "main"  # the revision of a repository of the hub that everybody sees
WRAPPERS = ("state_dict", "model")  # under which official files keep their parameters


@dataclass(frozen=True)
class Header:
    """What our checkpoints say of themselves: the model's name and its constructor's settings."""

    model: str
    settings: dict[str, Any]


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a torch or safetensors checkpoint by its key, on the CPU.

    A wrapper (`state_dict`, `model`) is taken off. Nothing in the file is executed: of a Lightning
    checkpoint the tensors are kept, and all the rest comes to nothing. Raises UserError for a file
    that is missing, truncated, no checkpoint, or asks for code to be run.
    """
    path = _existing(path)
    if path.suffix == ".safetensors":
        with _open(path) as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    _check_kind(path)
    try:
        content = _pickles.load(path)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors ({_first_line(error)})",
            "a file of tensors, which can be read without running code from it",
            "get the checkpoint from its authors again",
        ) from error
    except _pickles.DAMAGED as error:
        raise _damaged(path, error) from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise _damaged(path, TypeError(f"it holds a {type(content).__name__}"))
    parts = _pickles.part_sizes(path)
    for key, value in content.items():
        if (fault := _fault(key, value, path.stat().st_size, parts)) is not None:
            raise _damaged(path, ValueError(f"{key!r} {fault}"))
    return content


def check_same(
    given: Mapping[str, Tensor], model: Mapping[str, Tensor], where: str, remedy: str
) -> None:
    """UserError naming the first tensor in which what `where` holds differs from a model's."""
    for name in [*model, *given]:
        shapes = [list(state[name].shape) if name in state else None for state in (given, model)]
        if shapes[0] != shapes[1]:
            theirs, ours = (shape or "nothing" for shape in shapes)
            raise UserError(
                f"{where} has {theirs} at {name!r}",
                f"{ours} there, as the model has",
                remedy,
            )


def save_checkpoint(path: str | Path, state: dict[str, Tensor], header: Header) -> None:
    """Writes a checkpoint of ours, whole or not at all."""
    text = json.dumps({"format": FORMAT, "model": header.model, "settings": header.settings})
    with atomic(path) as temporary:
        save_file({k: v.contiguous() for k, v in state.items()}, temporary, {HEADER: text})


def read_header(path: str | Path) -> Header | None:
    """What one of our checkpoints says of itself; None for anybody else's file.

    Raises UserError where the file was written by a newer pmsplat, or cannot be read.
    """
    path = _existing(path)
    if path.suffix != ".safetensors":
        return None
    with _open(path) as file:
        text = (file.metadata() or {}).get(HEADER)
    if text is None:
        return None
    try:
        said = json.loads(text)
        version, header = said["format"], Header(str(said["model"]), dict(said["settings"]))
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    if version != FORMAT:
        raise UserError(
            f"{path} in checkpoint format {version!r}",
            f"format {FORMAT}",
            "load it with the version of pmsplat that wrote it",
        )
    return header


@dataclass(frozen=True)
class Source:
    """A released file on the Hugging Face hub: the repository, its commit, the file's path in it,
    and its SHA-256, or the first characters of it ("" where none was published)."""

    repository: str
    revision: str
    file: str
    sha256: str

    @property
    def name(self) -> str:
        """What the file is called in `pretrained/`."""
        return Path(self.file).name

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"https://huggingface.co/{self.repository}/resolve/{self.revision}/{self.file}"


def pretrained_folder() -> Path:
    """Where downloaded weights are kept: `pretrained/` of the repository, else the user's cache."""
    here = Path(__file__).resolve().parents[3] / "pretrained"
    return here if here.is_dir() else Path.home() / ".cache" / "pmsplat"


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file in hexadecimal (1 s for about 1.5 GB)."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(source: Source, folder: Path | None = None) -> Path:
    """A released file, verified: from `folder` (`pretrained_folder()`), or downloaded into it.

    A file that is there is hashed each time, if its hash was published. A download that was
    interrupted goes on where it stopped; it is checked against `source.sha256` and the hub's own
    SHA-256, and appears whole or not at all, whatever other processes fetch at the same time.
    Raises UserError where the file is another one, or is not there and cannot be downloaded.
    """
    folder = folder or pretrained_folder()
    path = folder / source.name
    if not path.is_file():
        with _explained(source, folder):
            _download(source, path)
    elif source.sha256 and not (digest := sha256(path)).startswith(source.sha256):
        raise UserError(
            f"{path} with SHA-256 {digest[:16]}…",
            f"the released file, {source.sha256[:16]}…",
            f"move it away to have it downloaded again, or put {source.url} in its place",
        )
    return path


def _download(source: Source, path: Path) -> None:
    """Downloads into `.incoming/` beside `path`, verifies, renames.

    The parts of huggingface_hub's `hf_hub_download`, which itself starts again from nothing in a
    new process.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    url, told = _located(source)
    wanted = source.sha256
    if told.etag and re.fullmatch("[0-9a-f]{64}", told.etag):  # so the hub marks large files
        wanted = told.etag
    if not wanted or not wanted.startswith(source.sha256):
        raise _Unobtainable(f"{source.repository} offers a file with SHA-256 {wanted[:16] or '?'}…")
    staging = path.parent / ".incoming"
    staging.mkdir(parents=True, exist_ok=True)
    part = staging / f"{path.name}.{wanted[:16]}.part"
    with WeakFileLock(staging / f"{path.name}.lock"):
        if path.is_file():  # another process was quicker
            return
        with part.open("ab") as file:
            if told.size is not None and file.tell() > told.size:
                file.truncate(0)
                file.seek(0)
            _check_space(staging, (told.size or 0) - file.tell())
            http_get(
                url,
                file,
                resume_size=file.tell(),
                headers=build_hf_headers(),
                expected_size=told.size,
            )
        if not (digest := sha256(part)).startswith(wanted):
            part.unlink()
            raise _Unobtainable(f"what {source.repository} sent has SHA-256 {digest[:16]}…")
        os.replace(part, path)


def _located(source: Source) -> tuple[str, Any]:
    """The file's address and what the hub says of it.

    Where it is not at its revision any more but its hash is known, the newest one will do: the hash
    decides.
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


class _Unobtainable(Exception):
    """Why there is no download, in a few words."""


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _Unobtainable(
            f"there is no room: it needs {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free"
        )


@contextmanager
def _explained(source: Source, folder: Path) -> Iterator[None]:
    """Turns whatever stops a download into one sentence with the way to do it by hand."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        yield
        return
    except _Unobtainable as error:
        why, cause = str(error), error
    except OfflineModeIsEnabled as error:
        why, cause = "downloads are switched off by HF_HUB_OFFLINE", error
    except HfHubHTTPError as error:
        why, cause = _answered(source, error.response.status_code), error
    except HTTPError as error:  # of the transport
        why, cause = f"there is no connection to the hub ({_first_line(error)})", error
    except OSError as error:
        why, cause = _unwritable(error), error
    wanted = f"{source.name}" + (f" with SHA-256 {source.sha256[:16]}…" if source.sha256 else "")
    raise UserError(
        f"{source.name} is not in {folder}, and {why}",
        wanted,
        f"try again, or put {source.url} there by hand, or give its path",
    ) from cause


def _answered(source: Source, status: int) -> str:
    """What a status of the hub means."""
    if status == 404:
        return f"{source.repository} has no {source.file} at revision {source.revision}"
    if status in (401, 403):
        return f"{source.repository} may not be read (status {status}; HF_TOKEN holds a token)"
    return f"the hub answers with status {status}"


def _unwritable(error: OSError) -> str:
    if error.errno is None:  # raised for a transfer of the wrong length
        return f"the transfer broke off ({_first_line(error)})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"there is no room for it ({error.strerror})"
    return f"the folder cannot be written ({error.strerror})"


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file at {path}", "a checkpoint", "check the path")
    return path


def _check_kind(path: Path) -> None:
    """UserError for what is no torch file at all; downloads often leave pages and pointers."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith((b"PK", b"\x80")):  # of a zip archive, and of a pickle
        return
    kinds = {b"<": "a web page", b"version https://git-lfs": "a git-LFS pointer"}
    kind = next((kind for beginning, kind in kinds.items() if start.startswith(beginning)), None)
    raise UserError(
        f"{path} ({path.stat().st_size} bytes), which is {kind or 'another kind of file'}",
        "a checkpoint",
        "download the file itself, for a published model by `pmsplat models fetch`",
    )


def _fault(key: Any, value: Any, size: int, parts: set[int] | None) -> str | None:
    """What is wrong with an entry of the state dict of a file with `size` bytes, if anything."""
    if not isinstance(key, str) or not isinstance(value, Tensor):
        return "is not a tensor"
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        return "is not an ordinary tensor"
    memory = value.untyped_storage().nbytes()
    if value.numel() * value.element_size() > size or (parts is not None and memory not in parts):
        return "is larger than what the file holds of it"
    return None


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    size = path.stat().st_size
    return UserError(
        f"{path} ({size} bytes) cannot be read as a checkpoint ({_first_line(error)})",
        "a whole checkpoint of tensors",
        "it may be cut short or be another kind of file: download or copy it again",
    )


def _first_line(error: Exception) -> str:
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip() or type(error).__name__
    return text.splitlines()[0].partition(". ")[0][:200]
