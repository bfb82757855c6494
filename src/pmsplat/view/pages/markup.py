"""HTML and SVG as values. Text is escaped unless it is markup already, so data stays data."""

import html
from collections.abc import Iterable

EMPTY = {"meta", "link", "img", "input", "br", "hr"}  # elements without an end tag
Attribute = str | float | bool | None


class Markup(str):
    """Text that is HTML: made by `tag` and `join`, or read from our own files."""


def escape(text: str) -> Markup:
    """Text as HTML, also inside of quotes; markup stays as it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(text, quote=True))


def tag(name: str, /, *children: str | None, **attributes: Attribute) -> Markup:
    """An element; None among children is left out.

    `class_` and `for_` are the attributes class and for, and `data_side` is data-side. True is an
    attribute without a value; None and False are left out.
    """
    written = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        written.append(key if value is True else f'{key}="{escape(_write(value))}"')
    opened = f"<{' '.join(written)}>"
    return Markup(opened) if name in EMPTY else Markup(f"{opened}{join(children)}</{name}>")


def join(parts: Iterable[str | None], between: str = "") -> Markup:
    """Markup one behind the other, None left out."""
    return Markup(escape(between).join(escape(part) for part in parts if part is not None))


def _write(value: Attribute) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
