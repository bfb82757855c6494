"""A page taken apart by Python's own parser."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

EMPTY = {"meta", "link", "img", "input", "br", "hr"}


@dataclass
class Element:
    name: str
    attributes: dict[str, str | None]
    text: str = ""
    inside: list["Element"] = field(default_factory=list)

    def all(self, name: str, **attributes: str) -> list["Element"]:
        """Every element of that name below, in order; `class_` is one of its classes."""
        found = []
        for child in self.inside:
            if child.name == name and all(child._has(k, v) for k, v in attributes.items()):
                found.append(child)
            found += child.all(name, **attributes)
        return found

    def _has(self, key: str, value: str) -> bool:
        if key == "class_":
            return value in (self.attributes.get("class") or "").split()
        return self.attributes.get(key.replace("_", "-")) == value


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].inside.append(element)
        if tag not in EMPTY:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, f"{tag} closes {self.open[-1].name}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data


def read_page(path: Path) -> Element:
    """The elements of a page; every one of them ends where it should."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == [reader.root]
    return reader.root


def levels(page: Element) -> list[int]:
    """The levels of all headings, in order."""

    def walk(element: Element) -> list[int]:
        own = element.name in {f"h{i}" for i in range(1, 7)}
        below = [level for child in element.inside for level in walk(child)]
        return ([int(element.name[1])] if own else []) + below

    return walk(page)
