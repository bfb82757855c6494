"""`pmsplat data index`: which frames are looked at, and which are measured."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._shared import output, terminal

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Index
    from ..io.chunks import Split


_NEW_FRAMES = [
    "gap",
    "context",
    "targets",
    "outside",
    "start",
    "between",
    "spread",
    "every",
    "seed",
]


def add_index(verbs: Any) -> None:
    """The action and its options."""
    index = verbs.add_parser("index", help="an evaluation index")
    index.add_argument("root", help="a dataset (its test split is taken) or a split")
    index.add_argument("output", type=Path, help="the JSON file to write")
    index.add_argument(
        "--gap", type=int, metavar="N", help="frames from first to last context view (default: 8)"
    )
    index.add_argument("--context", type=int, metavar="N", help="context views (default: 2)")
    index.add_argument("--targets", type=int, metavar="N", help="target views (default: 3)")
    index.add_argument(
        "--outside", type=int, metavar="N", help="targets up to N frames outside, not between"
    )
    index.add_argument(
        "--start", type=int, metavar="FRAME", help="with --outside: the first context view"
    )
    index.add_argument(
        "--between", type=int, metavar="N", help="with --outside: N more targets, between"
    )
    index.add_argument(
        "--spread",
        type=int,
        metavar="N",
        help="of the first N frames: context views far apart in space, targets among the others",
    )
    index.add_argument(
        "--every", type=int, metavar="N", help="with --spread: every N-th frame is a target"
    )
    index.add_argument(
        "--seed", type=int, metavar="N", help="random seed for choosing frames (default: 0)"
    )
    index.add_argument(
        "--within",
        type=Path,
        metavar="INDEX",
        help="copy this index, dropping scenes that the data lacks; "
        "cannot be combined with the options above",
    )
    index.set_defaults(action=_index)


def _index(arguments: argparse.Namespace) -> None:
    from ..data import check_scenes, read_index, write_index

    if arguments.within:
        wanted = "the frames of that index as they are, or new ones"
        _refuse(arguments, _NEW_FRAMES, "with --within", wanted)
    split = _split(arguments.root)
    if arguments.within:
        index = read_index(arguments.within)
        known = split.chunk_of
        index = {key: frames for key, frames in index.items() if key in known}
    else:
        index = _new_index(arguments, split)
    check_scenes(index, split, arguments.output)
    write_index(arguments.output, index)
    left = len(split.chunk_of) - len(index)
    out = f"; {left} others of {arguments.root} are left out" if left else ""
    output().print(f"{len(index)} scenes in {arguments.output}{out}", soft_wrap=True)


def _new_index(arguments: argparse.Namespace, split: "Split") -> "Index":
    import torch

    from ..data import make_index, make_outside_index

    if arguments.spread is not None:
        return _spread_index(arguments, split)
    _refuse(arguments, ["every"], "without --spread", "both")
    if arguments.outside is None:
        _refuse(arguments, ["start", "between"], "without --outside", "both")
    for name, default in (("gap", 8), ("context", 2), ("targets", 3), ("seed", 0)):
        if getattr(arguments, name) is None:  # not by argparse: --within wants to know what is said
            setattr(arguments, name, default)
    generator = torch.Generator().manual_seed(arguments.seed)
    lengths = {key: len(places) for key, places in _centers(split).items()}
    asked = lengths, arguments.gap, arguments.context, arguments.targets
    if arguments.outside is None:
        return make_index(*asked, generator)
    outside, start, between = arguments.outside, arguments.start, arguments.between or 0
    return make_outside_index(*asked, outside, generator, start, between)


def _spread_index(arguments: argparse.Namespace, split: "Split") -> "Index":
    from ..data import make_regular_index, make_spread_index

    others = ["gap", "outside", "start", "between", "seed"]
    _refuse(arguments, others, "with --spread", "one rule for the frames")
    views = 2 if arguments.context is None else arguments.context
    if arguments.every is not None:
        _refuse(arguments, ["targets"], "with --every", "as many targets as that gives")
    centers, first = _centers(split), arguments.spread
    if arguments.every is not None:
        index = make_regular_index(centers, first, views, arguments.every)
    else:
        targets = 3 if arguments.targets is None else arguments.targets
        index = make_spread_index(centers, first, views, targets)
    if short := sum(len(centers[key]) < first for key in index):
        output().print(
            f"{short} of the scenes have fewer than {first} frames: all of theirs are used"
        )
    return index


def _refuse(arguments: argparse.Namespace, options: Iterable[str], where: str, wanted: str) -> None:
    """Raises UserError for the first of the options that is given."""
    from ..errors import UserError

    for option in options:
        if getattr(arguments, option) is not None:
            raise UserError(f"--{option} {where}", wanted, f"leave --{option} out")


def _centers(split: "Split") -> "dict[str, Tensor]":
    """The camera centers of every usable scene, in the order of the index."""
    centers = {}
    for name in terminal().track(list(split.keys), "reading chunks", len(split.keys)):
        scenes = split.chunk(name).scenes
        known = (key for key in split.keys[name] if key in scenes)
        centers |= {key: scenes[key].c2w[:, :3, 3].clone() for key in known}
    return centers


def _split(root: str) -> "Split":
    from ..errors import UserError
    from ..io import chunks

    if not chunks.is_remote(root):
        folder = Path(root)
        return chunks.read_split(folder if (folder / chunks.INDEX).is_file() else folder / "test")
    try:
        return chunks.read_split(f"{root.rstrip('/')}/test")
    except chunks.Unreachable:
        raise
    except UserError:  # it has no test split: it is one
        return chunks.read_split(root)
