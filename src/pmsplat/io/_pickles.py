"""Torch files of others, which are pickles, read as data: nothing that they name is ever imported.

`torch.load(weights_only=True)` builds nothing but tensors and plain containers, and refuses a file
that names anything else, as the checkpoints of Lightning do (hyperparameters, callbacks). Here such
names get a placeholder that swallows whatever the pickle does with it. What only an attack would
name is still refused.
"""

import builtins
import pickle
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import serialization

DAMAGED = (  # what torch's reader meets in a file that is cut, garbled or of another kind
    RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError,
    AssertionError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


class _Stays(type):
    """Makes a class that is its own only object: calling it and giving it a state do nothing."""

    def __call__(cls, *_arguments: Any) -> Any:
        return cls

    def __setstate__(cls, _state: Any) -> None:
        return None


class Foreign(metaclass=_Stays):
    """The placeholder of every foreign class, function and object."""

    def __new__(cls, *_arguments: Any) -> Any:
        return cls


class _Dict:
    """The placeholder of a subclass of dict, which a pickle fills: torch fills true dicts alone."""

    def __new__(cls, *_arguments: Any) -> Any:
        return {}


class _List:
    """The same for what a pickle appends to."""

    def __new__(cls, *_arguments: Any) -> Any:
        return []


CONTAINERS = {"defaultdict": _Dict, "AttributeDict": _Dict, "deque": _List}


def load(path: Path) -> Any:
    """The content of a torch file on the CPU, with `Foreign` for each foreign object in it.

    Tensors of a zip file stay in it, mapped into memory, until they are used. Raises
    `pickle.UnpicklingError` where the file names what runs code, or is of the old, unzipped kind
    and names anything foreign; one of `DAMAGED` where it cannot be read.
    """
    zipped = zipfile.is_zipfile(path)
    with _allowed([]):
        foreign = _foreign_names(path) if zipped else []
    with _allowed([(_placeholder(name), name) for name in foreign]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def part_sizes(path: Path) -> set[int] | None:
    """The bytes of each part of a zip file, one of which each tensor's memory is; else None."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return {record.file_size for record in archive.infolist()}


def _foreign_names(path: Path) -> list[str]:
    """What the pickle in a zip file names beside torch's own parts."""
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:  # torch would map the packed bytes
                raise ValueError(f"its part {record.filename} is compressed")
            if record.filename.endswith("/data.pkl") and b"\nbytearray\n" in archive.read(record):
                raise pickle.UnpicklingError("it names bytearray, which takes memory at will")
    return serialization.get_unsafe_globals_in_checkpoint(path)


def _placeholder(name: str) -> type:
    """What takes the place of `name`; a function of Python itself is refused.

    `getattr` alone is not: older optimisers' states name methods by it.
    """
    module, _, short = name.rpartition(".")
    if module == "builtins" and short != "getattr" and not _is_class(short):
        raise pickle.UnpicklingError(f"it names {name}, which runs code")
    return CONTAINERS.get(short, Foreign)


def _is_class(name: str) -> bool:
    return isinstance(getattr(builtins, name, None), type)


@contextmanager
def _allowed(placeholders: list[tuple[type, str]]) -> Iterator[None]:
    """Lets torch's reader use these and nothing else; what others registered comes back after."""
    others = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    if placeholders:  # no pickle can name the second, since names end at a new line
        serialization.add_safe_globals([*placeholders, (_Stays, "\n")])
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(others)
