"""Writes files of tensors: a disk that is full is an OSError, as it is to every other writer."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_torch(content: Any, path: Path) -> None:
    """Writes a file for `torch.load`; OSError where it did not reach the disk."""
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        # torch raises one of its own while it handles that of the file; neither names the file
        problem = error if isinstance(error, OSError) else error.__context__
        if not isinstance(problem, OSError):
            raise
        raise _at(path, problem.errno) from error


def save_safetensors(tensors: dict[str, Tensor], path: Path, header: Mapping[str, str]) -> None:
    """Writes a safetensors file with strings in its header; OSError as `save_torch`."""
    try:
        save_file(tensors, path, dict(header))
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise _at(path, int(number[1])) from error


def _at(path: Path, number: int | None) -> OSError:
    return OSError(number, os.strerror(number or 0), str(path))
