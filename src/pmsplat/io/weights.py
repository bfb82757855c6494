"""Checkpoints: others' read safely, ours written with what is needed to build the model again.

Ours are safetensors files whose header names the model and its settings. Others' are torch files,
which are pickles: they are read as data, never executed.
"""

import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from .files import atomic

FORMAT = 1  # of our own checkpoints
HEADER = "pmsplat"
WRAPPERS = ("state_dict", "model")  # under which official files keep their parameters


@dataclass(frozen=True)
class Header:
    """What our checkpoints say of themselves: the model's name and its constructor's settings."""

    model: str
    settings: dict[str, Any]


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a torch or safetensors checkpoint by its key, on the CPU.

    A wrapper (`state_dict`, `model`) is taken off. Nothing in the file is executed. Raises
    UserError for a file that is missing, truncated, no checkpoint, or asks for code to be run.
    """
    path = _existing(path)
    if path.suffix == ".safetensors":
        with _open(path) as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors ({_first_line(error)})",
            "a file of tensors, which can be read without running code from it",
            "get the checkpoint from its authors again",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise _damaged(path, TypeError(f"it holds a {type(content).__name__}"))
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise _damaged(path, TypeError(f"{key!r} is a {type(value).__name__}, not a tensor"))
    return content


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


def pretrained_folder() -> Path:
    """Where downloaded weights are kept: `pretrained/` of the repository, else the user's cache."""
    here = Path(__file__).resolve().parents[3] / "pretrained"
    return here if here.is_dir() else Path.home() / ".cache" / "pmsplat"


def fetch(repository: str, name: str) -> Path:
    """A file of a Hugging Face repository, from `pretrained_folder()` or downloaded into it.

    Raises UserError where it is not there and cannot be downloaded.
    """
    folder = pretrained_folder()
    if (folder / name).is_file():
        return folder / name
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name, local_dir=folder))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"no {name} in {folder}, and no way to download it ({_first_line(error)})",
            "the file, or a connection to huggingface.co",
            f"fetch it from https://huggingface.co/{repository} and put it there, or give its path "
            "as weights",
        ) from error


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file at {path}", "a checkpoint", "check the path")
    return path


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
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].partition(". ")[0][:200]
