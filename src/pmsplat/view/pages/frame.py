"""The frame of every page: head, navigation, sections, style and script, all in one file."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...errors import UserError
from ...io.files import write_text
from .markup import Markup, join, tag

HERE = Path(__file__).parent
GENERATOR = '<meta name="generator" content="pmsplat">'
PAGE = "index.html"


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading of its own; `id` is its address."""

    id: str
    heading: str
    body: Markup


@dataclass(frozen=True)
class Page:
    """`kind` says what sort of page it is, `title` which one; `intro` stands below the title.

    `skip` leads past all that to the first section; `closing` is the last line. `scripts` are files
    of this folder that run after that of every page, in their order; they may start workers.
    """

    kind: str
    title: str
    intro: Markup
    sections: Sequence[Section]
    skip: str = "Skip to the results"
    scripts: Sequence[str] = ()
    closing: str = "Made by pmsplat. Everything on this page is in its folder."


def check_place(path: Path) -> None:
    """Raises UserError where a file is that is not one of our pages."""
    if path.exists() and (not path.is_file() or GENERATOR.encode() not in path.read_bytes()[:2000]):
        raise UserError(
            f"{path}, which is another page",
            "a place without one, or one with a page of pmsplat, which is replaced",
            "choose another place",
        )


def write_page(path: Path, page: Page) -> Path:
    """Writes a page, all or nothing; its path. Nothing in it is loaded from a network."""
    check_place(path)
    write_text(path, _render(page))
    return path


def render_fragment(title: str, body: Markup, scripts: Sequence[str] = ()) -> str:
    """A document of a fragment alone, to stand in a frame of another page; `scripts` as in Page."""
    bare = Markup("body { background: none; } body > * { margin-top: 0; }")
    return _render_document(title, [body], scripts, bare)


def _render(page: Page) -> str:
    links = [tag("a", s.heading, href=f"#{s.id}") for s in page.sections]
    body = [
        tag("a", page.skip, class_="skip", href=f"#{page.sections[0].id}"),
        tag(
            "header",
            tag("p", page.kind, class_="eyebrow"),
            tag("h1", page.title),
            page.intro,
            tag("nav", *links, aria_label="Sections") if len(links) > 1 else None,
            class_="hero",
        ),
        tag("main", *(_render_section(section) for section in page.sections)),
        tag("footer", tag("p", page.closing)),
    ]
    return _render_document(f"{page.title} · {page.kind}", body, ("page.js", *page.scripts))


def _render_document(
    title: str, body: Sequence[Markup], names: Sequence[str], style: str = ""
) -> str:
    """A document with our style, `style` after it, and the scripts of these names at its end."""
    scripts = [read_asset(name) for name in names]
    # A browser follows this policy: no network, and no script but ours, whatever the data says.
    policy = (
        "default-src 'none'; img-src 'self' data: file:; media-src 'self' data: file:; "
        f"style-src 'unsafe-inline'; script-src {' '.join(map(_hash_script, scripts))}"
    )
    if set(names) - {"page.js"}:
        policy += " 'wasm-unsafe-eval'; worker-src blob:"
    head = [
        tag("meta", charset="utf-8"),
        Markup(GENERATOR),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", join([read_asset("page.css"), Markup(style)])),
    ]
    ending = [tag("script", script) for script in scripts]
    whole = tag("html", tag("head", *head), tag("body", *body, *ending), lang="en")
    return f"<!doctype html>\n{whole}\n"


def _render_section(section: Section) -> Markup:
    heading = tag("h2", section.heading, id=f"{section.id}-heading")
    return tag(
        "section", heading, section.body, id=section.id, aria_labelledby=f"{section.id}-heading"
    )  # fmt: skip


def _hash_script(script: str) -> str:
    """How a policy allows this script and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


@cache
def read_asset(name: str) -> Markup:
    """The text of a file of this folder."""
    return Markup((HERE / name).read_text(encoding="utf-8"))
