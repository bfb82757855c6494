"""Hooks of mkdocs: README.md is the front page, pictures and links outside docs/ are found.

Pages link as GitHub wants it, relative to their own file. What they link outside docs/ is either a
picture, which becomes a file of the site, or a file of the repository, which is linked there.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PICTURES = (".png", ".svg")
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pictures of assets/ and benchmarks/ to the site."""
    for folder in ("assets", "benchmarks"):
        for path in sorted((ROOT / folder).iterdir()):
            if path.suffix in PICTURES:
                name = path.relative_to(ROOT).as_posix()
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts README.md in the place of the front page, and turns links into those of the site."""
    source = f"docs/{page.file.src_uri}"
    if page.file.src_uri == "index.md":
        source, markdown = "README.md", (ROOT / "README.md").read_text()
    here = posixpath.dirname(page.file.src_uri)

    def of_the_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        anchor = link[2] or ""
        if target.startswith("docs/"):
            place = posixpath.relpath(target.removeprefix("docs/"), here or ".")
        elif target.endswith(PICTURES):
            place = posixpath.relpath(target, here or ".")
        else:
            place = f"{config.repo_url.rstrip('/')}/blob/main/{target}"
        return f"]({place}{anchor})"

    return LINK.sub(of_the_site, markdown)
