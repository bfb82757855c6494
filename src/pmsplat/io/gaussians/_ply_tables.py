"""Reads the header and the tables of an untrusted .ply file, after a check of what it claims.

Greg Turk, "The PLY Polygon File Format", 1994. Binary tables are mapped into memory. Elements
behind the last wanted one are never read, so they may have lists.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from plyfile import PlyData, PlyParseError

from ...errors import UserError
from ._blocks import damage_error

HEADER_LIMIT = 1 << 20  # bytes: longest header that is read; comments may hold a picture
NUMBERS = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
           "float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2",
           "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4",
           "float64": "f8"}  # fmt: skip
ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass(frozen=True)
class Element:
    """One element of a header: its number of rows and its properties; the type of a list is ""."""

    name: str
    count: int
    types: tuple[str, ...] = ()
    properties: tuple[str, ...] = ()

    @property
    def has_lists(self) -> bool:
        return "" in self.types

    def make_dtype(self, order: str) -> np.dtype:
        fields = zip(self.properties, self.types, strict=True)
        return np.dtype([(name, order + NUMBERS[kind]) for name, kind in fields])


@dataclass(frozen=True)
class Header:
    """The header of a file: `comments` include obj_info; `start` is where its data begins."""

    form: str
    elements: tuple[Element, ...]
    comments: tuple[str, ...]
    start: int
    data_bytes: int

    def count_rest(self) -> int:
        """Bytes behind the last row of a binary file; 0 where that cannot be told."""
        if self.form == "ascii" or any(e.has_lists and e.count for e in self.elements):
            return 0
        rows = (e.count * e.make_dtype("<").itemsize for e in self.elements if e.count)
        return self.data_bytes - sum(rows)

    def get_element(self, name: str) -> Element:
        """The element of this name, without rows and properties where there is none."""
        found = (element for element in self.elements if element.name == name)
        return next(found, Element(name, 0))


def read_header(path: str | Path) -> Header:
    """Reads the header; raises UserError for a file that is missing or has another one."""
    source = Path(path)
    if not source.is_file():
        raise UserError(f"no file {path}", "a .ply file of Gaussians", "check the path")
    with source.open("rb") as file:
        head = file.read(HEADER_LIMIT)
    end = re.search(rb"\nend_header\r?\n", head)
    if not re.match(rb"ply\r?\n", head) or end is None:
        raise damage_error(path, "no .ply header")
    form, elements, comments = "", [], []
    for line in head[: end.start()].decode("utf-8", "replace").split("\n")[1:]:
        match line.split():
            case []:
                pass
            case ["comment" | "obj_info" as word, *_]:
                comments.append(line.strip()[len(word) :].strip())
            case ["format", ("ascii" | "binary_little_endian" | "binary_big_endian") as form, _]:
                pass
            case ["element", name, count] if re.fullmatch("[0-9]{1,19}", count):
                elements.append(Element(name, int(count)))
            case ["property", "list", _, _, name] if elements:
                elements[-1] = _add_property(elements[-1], "", name)
            case ["property", kind, name] if elements and kind in NUMBERS:
                elements[-1] = _add_property(elements[-1], kind, name)
            case _:
                raise damage_error(
                    path, f"its header has the line {line.strip()[:60]!r}, which is not .ply"
                )
    _check_names(path, elements)
    if not form:
        raise damage_error(path, "no format in its header")
    size = source.stat().st_size - end.end()
    return Header(form, tuple(elements), tuple(comments), end.end(), size)


def _check_names(path: str | Path, elements: list[Element]) -> None:
    names = [element.name for element in elements]
    if len(set(names)) < len(names):
        raise damage_error(path, "two elements of one name")
    for element in elements:
        if len(set(element.properties)) < len(element.properties):
            raise damage_error(path, "two properties of one name")


def _add_property(element: Element, kind: str, name: str) -> Element:
    types, properties = (*element.types, kind), (*element.properties, name)
    return Element(element.name, element.count, types, properties)


def read_tables(path: str | Path, header: Header, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads the elements of the names `wanted` that the file has.

    Raises UserError where the data is shorter than the header claims, before it allocates memory,
    and where a wanted element, or rows before one, has lists.
    """
    _check_size(path, header)
    last = max((i for i, e in enumerate(header.elements) if e.name in wanted), default=-1)
    before = [e for e in header.elements[: last + 1] if e.count or e.name in wanted]
    for element in before:
        if element.has_lists:
            raise damage_error(path, f"its element {element.name!r} has lists")
    if header.form == "ascii":
        return _read_text(path, header, before)
    tables, place = {}, header.start
    for element in before:
        dtype = element.make_dtype(ORDERS[header.form])
        size = element.count * dtype.itemsize
        if element.name in wanted:
            mapped = np.memmap(path, np.uint8, "r", place, (size,)) if size else np.empty(0, "u1")
            tables[element.name] = (
                mapped.view(dtype) if dtype.itemsize else np.empty(element.count, dtype)
            )
        place += size
    return tables


def _check_size(path: str | Path, header: Header) -> None:
    """Raises UserError where the data cannot hold the rows that the header claims."""
    claimed = 0
    for element in header.elements:
        sizes = [np.dtype(NUMBERS[kind]).itemsize if kind else 1 for kind in element.types]
        row = 2 * len(sizes) if header.form == "ascii" else sum(sizes)
        claimed += element.count * max(row, 1)
        if claimed > header.data_bytes:
            rows = "Gaussians" if element.name == "vertex" else f"rows of {element.name!r}"
            raise damage_error(path, f"{element.count} {rows} in {header.data_bytes} bytes")


def _read_text(path: str | Path, header: Header, before: list[Element]) -> dict[str, np.ndarray]:
    """Reads elements from text: `before` are the first of the file that have rows."""
    lines = ["ply", "format ascii 1.0"]
    for element in before:
        lines.append(f"element {element.name} {element.count}")
        fields = zip(element.types, element.properties, strict=True)
        lines += [f"property {kind} {name}" for kind, name in fields]
    head = "\n".join([*lines, "end_header", ""]).encode("ascii", "replace")
    body = Path(path).read_bytes()[header.start :]
    try:
        data = PlyData.read(io.BytesIO(head + body))
    except (PlyParseError, ValueError, OverflowError) as error:
        raise damage_error(path, str(error)) from error
    return {element.name: element.data for element in data.elements}
