"""A page about a data set of chunks: how much there is, and what some of its scenes look like."""

from pathlib import Path

from ...errors import UserError
from ...progress import Track, silently
from ...view.pages.frame import check_place, write_page
from ..verify import find_splits
from ._page import make_page
from ._survey import survey_splits

__all__ = ["inspect"]

SCENES = 24


def inspect(
    path: str | Path, output: str | Path, scenes: int = SCENES, track: Track = silently
) -> Path:
    """Writes one page of HTML about a split of chunks, or about every split of a dataset; its path.

    `scenes` of them, spread evenly over the index, are opened and shown; splits share the number.
    What `verify` found out is told too. Nothing is written into the dataset. Raises UserError for
    a path without chunks or without an index, and for a place where another page is.
    """
    output = Path(output)
    if scenes < 1:
        raise UserError(f"`scenes` {scenes}", "at least 1", "leave it out for a sample of 24")
    if output.is_dir():
        raise UserError(
            f"{output}, which is a folder",
            "the name of a page as `output`",
            f"choose {output / 'page.html'}",
        )
    check_place(output)
    splits = survey_splits(find_splits(path), scenes, track)
    return write_page(output, make_page(Path(path), splits))
