"""`pmsplat data fetch`: a data set of chunks from the hub."""

import argparse
from pathlib import Path
from typing import Any

from ._shared import output, terminal

_HELP = """Downloads a data set of chunks from the Hugging Face hub.

re10k, acid, dl3dv-480p and dl3dv-960p are there in chunks; of others it says where they are. How
much there is to download, and how much room, is said first. An interrupted run goes on where it
stopped. Every file is compared with the hash that the hub has of it. Set HF_TOKEN for data that may
only be read with an account."""


def add_fetch(verbs: Any) -> None:
    """The action and its options."""
    fetch = verbs.add_parser(
        "fetch",
        help="a data set of chunks from the hub",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fetch.add_argument("name", help="re10k, acid, dl3dv-480p, dl3dv-960p")
    fetch.add_argument(
        "--output", type=Path, metavar="DIR", help="where to (default: datasets/…, for its reader)"
    )
    fetch.add_argument(
        "--subset",
        action="append",
        default=[],
        metavar="PART",
        help="only this folder, or files of this pattern: test, 'train/0000*'; may be repeated",
    )
    fetch.add_argument(
        "--transfers", type=int, default=8, metavar="N", help="files at a time (default: 8)"
    )
    fetch.set_defaults(action=_fetch)


def _fetch(arguments: argparse.Namespace) -> None:
    from ..tasks.fetch import fetch

    shown = terminal(arguments)
    summary = fetch(
        arguments.name,
        arguments.output,
        arguments.subset,
        arguments.transfers,
        tell=shown.tell,
        track=shown.track,
    )

    def say(text: str) -> None:
        output().print(text, soft_wrap=True, markup=False)

    say(f"{summary.fetched} files fetched, {summary.found} there before: {summary.folder}/")
    if summary.ready:
        say(f"Ready: {', '.join(summary.ready)}. Check them: pmsplat data verify {summary.folder}")
    else:
        say(
            "No folder of it has an index.json yet: unpack archives until train/ and test/ hold "
            ".torch files, then run `pmsplat data info SPLIT --write-index`."
        )
