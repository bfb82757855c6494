"""`pmsplat data inspect`: a page about a data set of chunks."""

import argparse
from pathlib import Path
from typing import Any

from ._shared import terminal

_HELP = """Writes one page of HTML about a split of chunks, or about every split of a dataset.

It tells how many scenes, photographs and megabytes there are, what `pmsplat data verify` found if
it has been run, and shows a sample of the scenes, spread evenly over the index: photographs, the
path of the camera seen from above, its lens, near and far, and what is odd. The page needs no
network and no other file. Nothing is written into the dataset."""


def add_inspect(verbs: Any) -> None:
    """The action and its options."""
    inspect = verbs.add_parser(
        "inspect",
        help="a page about a dataset: totals, and a sample of scenes to look at",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inspect.add_argument("path", help="a dataset (all its splits are taken) or a split")
    inspect.add_argument(
        "--output", type=Path, required=True, metavar="PAGE", help="the page, such as page.html"
    )
    inspect.add_argument(
        "--scenes", type=int, default=24, metavar="N", help="in the sample (default: 24)"
    )
    inspect.set_defaults(action=_inspect)


def _inspect(arguments: argparse.Namespace) -> None:
    from ..tasks.inspect import inspect

    shown = terminal(arguments)
    page = inspect(arguments.path, arguments.output, arguments.scenes, shown.track)
    shown.tell(f"Open {page} in a browser.")
