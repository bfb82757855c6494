"""`pmsplat data verify`: every byte, photo and camera of a split of chunks."""

import argparse
from typing import TYPE_CHECKING, Any

from ._shared import output, terminal

if TYPE_CHECKING:
    from ..tasks.verify import Verified

_HELP = """Checks every byte of a split of chunks, or of all splits of a dataset.

Chunks are compared with their checksums, photos and depth maps decoded, cameras, intrinsics and
time stamps looked at, keys and photographs compared, and index.json with what is there. A table
names each trouble once. What cannot be used is written to SPLIT/quarantine.json, which training
and evaluation leave out; then the exit code is 2. What is only odd, such as another resolution, is
named and used.

What was found out about each chunk is kept in SPLIT/verified.jsonl, so an interrupted run goes on
where it stopped, and the next looks only at chunks that are new or have changed."""


def add_verify(verbs: Any) -> None:
    """The action and its options."""
    verify = verbs.add_parser(
        "verify",
        help="every byte, photo and camera of a split",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verify.add_argument("path", help="a dataset (all its splits are taken) or a split")
    verify.add_argument(
        "--jobs", type=int, metavar="N", help="processes (default: one for each processor)"
    )
    verify.add_argument(
        "--again", action="store_true", help="look at chunks that have not changed too"
    )
    verify.set_defaults(action=_verify)


def _verify(arguments: argparse.Namespace) -> None:
    from ..errors import UserError, count_of
    from ..tasks.verify import verify

    shown = terminal(arguments)
    splits = verify(arguments.path, arguments.jobs, arguments.again, shown.tell, shown.track)
    for split in splits:
        _show(split)
    if broken := [split for split in splits if not split.is_whole]:
        unused, scenes = (sum(s.scenes - s.whole for s in broken), sum(s.scenes for s in splits))
        raise UserError(
            f"{arguments.path} has troubles: {unused} of {count_of(scenes, 'scene')} cannot be "
            "used",
            "every scene whole and in the index",
            _remedy(broken),
        )


def _remedy(broken: "list[Verified]") -> str:
    if unindexed := [split.folder for split in broken if not split.indexed]:
        return f"write an index with `pmsplat data info {unindexed[0]} --write-index`"
    return "train without them, as quarantine.json says, or get their chunks again and repeat this"


def _show(split: "Verified") -> None:
    from rich.table import Table

    from ..errors import count_of, name_some

    if split.rows:
        table = Table("found in " + str(split.folder), "scenes", "which", "")
        for row in split.rows:
            count = "?" if row.scenes is None else str(row.scenes)
            effect = "used" if row.used else "left out"
            table.add_row(row.reason, count, name_some(row.names), effect)
        output().print(table)
    sizes = ", ".join(
        f"{h}x{w} ({count_of(count, 'scene')})" for (h, w), count in split.sizes.items()
    )
    unused, known = split.scenes - split.whole, ""
    if split.found:
        verb = "has" if split.found == 1 else "have"
        known = f" {count_of(split.found, 'chunk')} {verb} not changed since the last look."
    output().print(
        f"{split.folder}: {count_of(split.chunks, 'chunk')}, {count_of(split.scenes, 'scene')}: "
        f"{split.whole} can be used, with {count_of(split.photos, 'photo')}"
        f"{' of ' + sizes if sizes else ''}; {unused} {'is' if unused == 1 else 'are'} left out."
        f"{known}",
        soft_wrap=True,
    )
    for note in split.notes:
        output().print(note, soft_wrap=True)
