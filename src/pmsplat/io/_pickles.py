"""Reads foreign torch files, which are pickles, as data: no name in them is ever imported.

`torch.load(weights_only=True)` builds only tensors and plain containers, and refuses a file that
names anything else, such as the hyperparameters and callbacks in Lightning's checkpoints. Here a
placeholder stands for each such name and ignores what the pickle does with it. Names that only an
attack would use are still refused.
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

DAMAGED = (  # exceptions of torch's reader for files that are cut, garbled or of another kind
    RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError,
    AssertionError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


class _Stays(type):
    """Metaclass of a class that is its own only instance: calls and states have no effect."""

    def __call__(cls, *_arguments: Any) -> Any:
        return cls

    def __setstate__(cls, _state: Any) -> None:
        return None


class Foreign(metaclass=_Stays):
    """The placeholder for every foreign class, function and object."""

    def __new__(cls, *_arguments: Any) -> Any:
        return cls


class _Dict:
    """The placeholder for subclasses of dict: torch's reader fills only plain dicts."""

    def __new__(cls, *_arguments: Any) -> Any:
        return {}


class _List:
    """The placeholder for list-like classes: torch's reader appends only to plain lists."""

    def __new__(cls, *_arguments: Any) -> Any:
        return []


CONTAINERS = {"defaultdict": _Dict, "AttributeDict": _Dict, "deque": _List}


def load(path: Path) -> Any:
    """Returns the content of a torch file on the CPU, with `Foreign` for each foreign object.

    Tensors of a zip file are mapped into memory and read when they are used. Raises
    `pickle.UnpicklingError` if the file names something that runs code, or if it is of the old,
    unzipped kind and names anything foreign; one of `DAMAGED` if it cannot be read.
    """
    zipped = zipfile.is_zipfile(path)
    with _allow_only([]):
        foreign = _find_foreign_names(path) if zipped else []
    with _allow_only([(_choose_placeholder(name), name) for name in foreign]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def part_sizes(path: Path) -> set[int] | None:
    """Returns the sizes in bytes of the parts of a zip file; None for another file.

    The memory of each tensor is one part.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return {record.file_size for record in archive.infolist()}


def _find_foreign_names(path: Path) -> list[str]:
    """Returns the names in the pickle of a zip file that are not torch's own."""
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:  # torch would map the packed bytes
                raise ValueError(f"its part {record.filename} is compressed")
            if record.filename.endswith("/data.pkl") and b"\nbytearray\n" in archive.read(record):
                raise pickle.UnpicklingError(
                    "it names bytearray, which can allocate any amount of memory"
                )
    return serialization.get_unsafe_globals_in_checkpoint(path)


def _choose_placeholder(name: str) -> type:
    """Returns the placeholder for `name`; refuses built-in functions of Python.

    `getattr` is the exception: the states of older optimisers name methods through it.
    """
    module, _, short = name.rpartition(".")
    if module == "builtins" and short != "getattr" and not _is_class(short):
        raise pickle.UnpicklingError(f"it names {name}, which runs code")
    return CONTAINERS.get(short, Foreign)


def _is_class(name: str) -> bool:
    return isinstance(getattr(builtins, name, None), type)


@contextmanager
def _allow_only(placeholders: list[tuple[type, str]]) -> Iterator[None]:
    """Allows torch's reader only these names; restores the names that others registered."""
    others = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    if placeholders:  # no pickle can name `_Stays` here, because names end at a new line
        serialization.add_safe_globals([*placeholders, (_Stays, "\n")])
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(others)
