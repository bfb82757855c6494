"""`pmsplat data index`: which frames are looked at, and which are measured."""

import argparse
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._shared import add_overwrite, output, terminal

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Index, NamedProtocol
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
    index.add_argument(
        "output",
        type=Path,
        nargs="?",
        help="the JSON file to write (default, with --protocol: where it is looked for)",
    )
    index.add_argument(
        "--protocol",
        metavar="NAME",
        help="frames as this protocol has them (`pmsplat data protocols` lists all)",
    )
    index.add_argument(
        "--fetch",
        action="store_true",
        help="with --protocol: get the authors' file from where it is published",
    )
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
        "of the options above goes with --protocol alone",
    )
    add_overwrite(index, "replace an index of other frames")
    index.set_defaults(action=_index)


def add_protocols(verbs: Any) -> None:
    """The list of protocols."""
    protocols = verbs.add_parser("protocols", help="evaluation protocols by name")
    protocols.set_defaults(action=_list_protocols)


def _list_protocols(arguments: argparse.Namespace) -> None:
    from rich.table import Table

    from ..data import PROTOCOLS

    headings = ("protocol", "data", "views", "size", "scenes", "context; targets", "reported by")
    table = Table(*headings)
    for one in PROTOCOLS.values():
        made = one.said if not one.why else f"{one.said} *"
        size, scenes = "x".join(map(str, one.size)), str(one.scenes or "")
        table.add_row(one.name, one.data.name, str(one.views), size, scenes, made, one.used)
    table.caption = "* `data index --protocol` says why the frames are not the authors' own"
    output().print(table)


def _index(arguments: argparse.Namespace) -> None:
    from ..data import check_scenes, explain_left_out, read_index
    from ..errors import UserError

    if arguments.protocol:
        _protocol_index(arguments)
        return
    if arguments.fetch:
        raise UserError("--fetch without --protocol", "both", "leave --fetch out")
    if arguments.output is None:
        raise UserError("no file to write", "ROOT OUT.json", "name the file after the data")
    if arguments.within:
        wanted = "the frames of that index as they are, or new ones"
        _refuse(arguments, _NEW_FRAMES, "with --within", wanted)
    split = _split(arguments.root)
    if arguments.within:
        given = read_index(arguments.within)
        check_scenes(given, split, arguments.within)
        index, said = _take(given, split, arguments.within, "not in")
    else:
        index = _new_index(arguments, split)
        said = _left_out(explain_left_out(split, index, "too few frames"), arguments.root)
    where = _write(arguments, arguments.output, index)
    output().print("; ".join([where, *said]), soft_wrap=True, markup=False)


def _take(given: "Index", split: "Split", path: Path, why: str) -> "tuple[Index, list[str]]":
    """The scenes of an index that a split has; and what is in one of them alone."""
    from ..errors import count_of, name_some

    known = split.chunk_of
    others = [key for key in known if key not in given]
    said = _left_out({f"{why} {path}": others} if others else {}, split.place)
    if lost := [key for key in given if key not in known]:
        are = "is" if len(lost) == 1 else "are"
        said.append(f"{count_of(len(lost), 'scene')} of {path} {are} not there: {name_some(lost)}")
    return {key: frames for key, frames in given.items() if key in known}, said


def _left_out(reasons: dict[str, list[str]], root: str) -> list[str]:
    """Scenes that are left out of an index, in a few words: how many, why, and some names."""
    from ..errors import name_some

    if not (count := sum(map(len, reasons.values()))):
        return []
    noun, verb = ("other", "is") if count == 1 else ("others", "are")
    why = "; ".join(f"{reason} ({name_some(names)})" for reason, names in reasons.items())
    return [f"{count} {noun} of {root} {verb} left out: {why}"]


def _write(
    arguments: argparse.Namespace, path: Path, index: "Index", null: Collection[str] = ()
) -> str:
    """Writes an index, and says where it is.

    UserError where a file of other content is in its place: an index that is not to be replaced, or
    anything else.
    """
    from ..data import read_listing, write_index
    from ..errors import UserError, count_of

    said = f"{count_of(len(index), 'scene')} in {path}"
    if path.is_dir():
        raise UserError(f"{path} is a folder", "the name of a JSON file", f"write {path}/NAME.json")
    if path.exists():
        there = read_listing(path)
        if (list(there.index.items()), {*there.null}) == (list(index.items()), {*null}):
            return f"{said}, which has these frames already"
        if not arguments.overwrite:
            raise UserError(
                f"{path} is an index of other frames, of {count_of(len(there.index), 'scene')}",
                f"the frames to be written, of {count_of(len(index), 'scene')}, or no file there",
                "choose another name, or replace it with `overwrite=True`",
            )
    write_index(path, index, null)
    return said


def _protocol_index(arguments: argparse.Namespace) -> None:
    """The index of a protocol: the authors', or of the cameras of the data."""
    from ..data import check_scenes, explain_left_out, find_protocol, read_listing, read_walks
    from ..errors import UserError

    _refuse(arguments, _NEW_FRAMES, "with --protocol", "the frames of the protocol, or others")
    protocol, given = find_protocol(arguments.protocol), arguments.within
    split = _split(arguments.root)
    root = _beside(arguments.root)
    path = arguments.output or protocol.places(root)[-1]
    if arguments.fetch:
        given = _fetch(protocol, root)
    null: list[str] = []
    if given:
        index = protocol.choose(read_listing(given), given)
        check_scenes(index, split, given)
        index, left = _take(index, split, given, f"not of {protocol.name} by")
    elif protocol.rule is None:
        raise UserError(
            f"--protocol {protocol.name}, whose frames cannot be made again: {protocol.why}",
            "the authors' file",
            "add --fetch, or --within FILE",
        )
    else:
        walks = read_walks(split, track=terminal().track)
        index = protocol.rule(walks)
        null = [key for key in walks if key not in index]
        why = "no frames that its rule asks for"
        left = _left_out(explain_left_out(split, index, why), arguments.root)
    said = [_write(arguments, path, index, null), *left]
    said += [f"of the authors' {protocol.scenes:,}"] if given and protocol.scenes else []
    if not given and protocol.why:
        said.append(f"not the authors' frames, as {protocol.why}")
    output().print("; ".join(said), soft_wrap=True, markup=False)


def _fetch(protocol: "NamedProtocol", root: Path) -> Path:
    """The authors' file, beside the data; UserError where it is another than was published."""
    from ..data import read_listing
    from ..errors import UserError
    from ..io.addresses import fetch_file

    if protocol.url is None:
        raise UserError(
            f"--fetch for {protocol.name}, of which no file is published",
            "a protocol of a published file",
            "leave --fetch out: the frames follow from the cameras",
        )
    path = Path(root, protocol.file if protocol.bucket is None else f"authors_{protocol.file}")
    if not path.is_file():
        fetch_file(protocol.url, path)
    index = protocol.choose(read_listing(path), path)
    if protocol.is_official(index) is False:
        raise UserError(
            f"{path} has other frames than {protocol.name} had when it was published",
            f"the file of {protocol.url}",
            "remove it, or measure by it as an index of your own (dataset.index)",
        )
    return path


def _beside(root: str) -> Path:
    """Where an index of some data is looked for: its root; of data far away, the working folder."""
    from ..io import chunks

    if chunks.is_remote(root):
        return Path()
    return Path(root).parent if (Path(root) / chunks.INDEX).is_file() else Path(root)


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
        have = "has" if short == 1 else "have"
        output().print(
            f"{short} of the scenes {have} fewer than {first} frames: all of theirs are used"
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
    from ..data import centers_of, read_walks

    return centers_of(read_walks(split, track=terminal().track))


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
