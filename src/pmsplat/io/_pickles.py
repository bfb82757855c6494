"""Reads foreign torch files, which are pickles, as data: no name in them is ever imported.

`torch.load(weights_only=True)` builds only tensors and plain containers, and refuses a file that
names anything else, such as the hyperparameters and callbacks in Lightning's checkpoints. Here a
placeholder stands for each such name and ignores what the pickle does with it. A first pass finds
the names, and which of them the pickle fills like a dict or a list, since torch's reader fills only
plain ones. Names that only an attack would use are still refused.
"""

import pickle
import struct
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import serialization

DAMAGED = (  # exceptions of torch's reader for files that are cut, garbled or of another kind
    RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
    AssertionError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
RUN_CODE = {  # functions of Python that only an attack would name
    "eval", "exec", "compile", "open", "__import__", "breakpoint", "input", "setattr", "delattr",
    "globals", "locals", "vars",
}  # fmt: skip
UNZIPPED_PICKLES = 4  # of the old kind of file: magic number, version, system, content


class _Stays(type):
    """Metaclass of a class that is its own only instance: calls and states have no effect."""

    def __call__(cls, *_arguments: Any, **_keywords: Any) -> Any:
        return cls

    def __setstate__(cls, _state: Any) -> None:
        return None


class Foreign(metaclass=_Stays):
    """The placeholder for every foreign class, function and object."""

    def __new__(cls, *_arguments: Any, **_keywords: Any) -> Any:
        return cls


class _Dict:
    """The placeholder for subclasses of dict."""

    def __new__(cls, *_arguments: Any) -> Any:
        return OrderedDict()  # torch's reader fills it like a dict, and gives it a state too


class _List:
    """The placeholder for list-like classes."""

    def __new__(cls, *_arguments: Any) -> Any:
        return []


class _Watched(_Stays):
    """Metaclass of the stand-in of one name in the first pass: it notes how it is filled."""

    placeholder: type = Foreign

    def __setitem__(cls, _key: Any, _value: Any) -> None:
        cls.placeholder = _Dict

    def extend(cls, _values: Any) -> None:
        cls.placeholder = _List

    append = extend


class _Names(pickle._Unpickler):  # the one in C allocates whatever a garbled file asks for
    """The first pass: reads a pickle without its tensors; every name is a stand-in."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="bytes")
        self.found: dict[str, _Watched] = {}

    def find_class(self, module: str, name: str) -> Any:
        # Files use names of Python 2; torch's reader knows the new names of most, but not of all.
        new = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        if new[0] == "builtins":
            if new[1] == "bytearray":
                raise _RunsCode("it names bytearray, which can allocate any amount of memory")
            if new[1] in RUN_CODE:
                raise _RunsCode(f"it names {'.'.join(new)}, which runs code")
        stand_in = _Watched(name, (), {"__new__": Foreign.__new__})
        stand_in = self.found.setdefault(".".join(new), stand_in)
        return self.found.setdefault(f"{module}.{name}", stand_in)

    def persistent_load(self, pid: Any) -> Any:
        return Foreign


class _RunsCode(pickle.UnpicklingError):
    """A name that is refused; other faults that the first pass meets are damage."""


def load(path: Path) -> Any:
    """Returns the content of a torch file on the CPU, with `Foreign` for each foreign object.

    Tensors of a zip file are mapped into memory and read when they are used. Raises
    `pickle.UnpicklingError` if the file names something that runs code; one of `DAMAGED` if it
    cannot be read.
    """
    zipped = zipfile.is_zipfile(path)
    with _allow_only(_choose_placeholders(path, zipped)):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def part_sizes(path: Path) -> set[int] | None:
    """Returns the sizes in bytes of the parts of a zip file; None for another file.

    The memory of each tensor is one part.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return {record.file_size for record in archive.infolist()}


def _choose_placeholders(path: Path, zipped: bool) -> dict[str, type]:
    """Returns the placeholder for every name in a file; torch's reader prefers its own classes."""
    if not zipped:
        with path.open("rb") as file:
            return _read_names(file, UNZIPPED_PICKLES)
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise ValueError("it is a TorchScript program, not a state dict")
        content = None
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:  # torch would map the packed bytes
                raise ValueError(f"its part {record.filename} is compressed")
            if record.filename.endswith("/data.pkl"):
                content = record
        if content is None:
            raise ValueError("it has no data.pkl")
        with archive.open(content) as file:
            return _read_names(file, 1)


def _read_names(file: IO[bytes], pickles: int) -> dict[str, type]:
    """Returns the names in so many pickles one after another, with their placeholders."""
    names: dict[str, type] = {}
    for _ in range(pickles):
        reader = _Names(file)
        try:
            reader.load()
        except _RunsCode:
            raise
        except pickle.UnpicklingError as error:
            raise ValueError(str(error)) from error
        names |= {name: stand_in.placeholder for name, stand_in in reader.found.items()}
    return names


@contextmanager
def _allow_only(placeholders: dict[str, type]) -> Iterator[None]:
    """Allows torch's reader only these names; restores the names that others registered."""
    others = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    if placeholders:  # no pickle can name `_Stays` here, because names end at a new line
        named = [(placeholder, name) for name, placeholder in placeholders.items()]
        serialization.add_safe_globals([*named, (_Stays, "\n")])
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(others)
