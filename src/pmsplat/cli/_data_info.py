"""`pmsplat data info`: what is in a data set, a split, a chunk, or a folder of photos."""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import count_of, name_some
from ._shared import add_photos, output, photo_options, terminal

if TYPE_CHECKING:
    from ..io.chunks import Quarantine, Split
    from ..scene.photos import Scene

_COLUMNS = ("scenes", "photos", "size", "near, far", "depth", "unusable")


def add_info(verbs: Any) -> None:
    """The action and its options."""
    info = verbs.add_parser(
        "info", help="what is in a data set, a split, a chunk, or a folder of photos"
    )
    info.add_argument("path", help="a dataset (all its splits are taken), a split, or photos")
    add_photos(info)
    info.add_argument(
        "--write-index", action="store_true", help="write index.json from the chunks of a split"
    )
    info.set_defaults(action=_info)


@dataclass(frozen=True)
class _Content:
    """What is in a chunk, or in all chunks of a split.

    `usable` of its scenes have `photos`; some of them near and far, or depth. `faults` say why the
    others cannot be used, one for a whole chunk.
    """

    scenes: int
    usable: int
    photos: int
    sizes: tuple[str, ...]
    with_range: int
    with_depth: int
    faults: tuple[str, ...]

    @classmethod
    def read(cls, split: "Split", name: str, known: "Quarantine") -> "_Content":
        """Of a chunk, which need not be readable; `known` is what training leaves out."""
        from ..errors import UserError
        from ..io.chunks import Unreachable

        if name in known.chunks:
            return cls(len(split.keys[name]), 0, 0, (), 0, 0, (known.chunks[name],))
        try:
            chunk, listed = split.chunk(name), set(split.keys[name])
            stray = [key for key in chunk.scenes if key not in listed]
            faults = chunk.faults | dict.fromkeys(stray, "not of this chunk in the index")
            faults |= {key: known.scenes[key] for key in chunk.scenes if key in known.scenes}
            scenes = [scene for key, scene in chunk.scenes.items() if key not in faults]
            shapes = [scene.image(0).shape[:2] for scene in scenes[:1]]
        except Unreachable:
            raise
        except UserError as error:
            fault = error.got.replace(f"{split.place}/", "")
            return cls(len(split.keys[name]), 0, 0, (), 0, 0, (fault,))
        return cls(
            scenes=len(scenes) + len(faults),
            usable=len(scenes),
            photos=sum(map(len, scenes)),
            sizes=tuple(f"{height}x{width}" for height, width in shapes),
            with_range=sum(scene.near is not None for scene in scenes),
            with_depth=sum(scene.depths is not None for scene in scenes),
            faults=tuple(f"{key}: {fault}" for key, fault in faults.items()),
        )

    @classmethod
    def join(cls, parts: "Iterable[_Content]") -> "_Content":
        """Of several chunks."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        sums: list[Any] = [sum(column, type(column[0])()) for column in columns]
        return cls(*sums)

    @property
    def cells(self) -> tuple[str, ...]:
        """In the order of _COLUMNS."""
        known = (self.with_range, self.with_depth)
        some = [f"{number} of {self.usable}" for number in known]
        sizes = ", ".join(dict.fromkeys(self.sizes))
        return str(self.scenes), str(self.photos), sizes, *some, name_some(self.faults)


def _info(arguments: argparse.Namespace) -> None:
    from ..io import chunks
    from ..scene import open_scene

    if arguments.write_index:
        chunks.check_local(arguments.path)
    places = _find_splits(arguments.path)
    for place in (places or [arguments.path]) if arguments.write_index else []:
        chunks.write_index(place)
    if places == [arguments.path]:
        _describe_split(chunks.read_split(arguments.path))
    elif places:
        _describe_splits(places)
    else:
        options = photo_options(arguments)
        _describe_scene(open_scene(arguments.path, options, tell=terminal().tell))


def _find_splits(path: str) -> list[str]:
    """The split at a path, itself, or those in it; none where no chunks are there."""
    from ..errors import UserError
    from ..io import chunks
    from ..tasks.verify import find_splits

    if not chunks.is_remote(path):
        folder = Path(path)
        if (folder / chunks.INDEX).is_file() or any(folder.glob("*.torch")):
            return [path]
        return list(map(str, find_splits(path))) if any(folder.glob("*/*.torch")) else []
    inside = [f"{path.rstrip('/')}/{name}" for name in ("train", "test")]
    found, problem = [], None
    for place in (path, *inside):
        try:
            chunks.read_split(place)
        except chunks.Unreachable:
            raise
        except UserError as error:
            problem = problem or error
            continue
        if place == path:
            return [path]
        found.append(place)
    if not found and problem:
        raise problem
    return found


def _read_contents(split: "Split") -> dict[str, _Content]:
    """What is in each chunk of a split."""
    names = terminal().track(sorted(split.keys), "reading chunks", len(split.keys))
    known = split.quarantine()
    return {name: _Content.read(split, name, known) for name in names}


def _describe_split(split: "Split") -> None:
    from rich.table import Table

    table, contents = Table("chunk", *_COLUMNS), _read_contents(split)
    for name, content in contents.items():
        table.add_row(name, *content.cells)
    output().print(table)
    _say_total(split.place, contents)


def _describe_splits(places: list[str]) -> None:
    """A row for each split of a data set; UserError where none can be read."""
    from rich.table import Table

    from ..errors import UserError
    from ..io import chunks

    table, read, problem = Table("split", "chunks", *_COLUMNS), {}, None
    for place in places:
        try:
            read[place] = contents = _read_contents(chunks.read_split(place))
        except chunks.Unreachable:
            raise
        except UserError as error:
            problem = error
            table.add_row(Path(place).name, *[""] * len(_COLUMNS), error.got)
            continue
        whole = _Content.join(contents.values())
        table.add_row(Path(place).name, str(len(contents)), *whole.cells)
    if not read and problem:
        raise problem
    output().print(table)
    for place, contents in read.items():
        _say_total(place, contents)


def _say_total(place: str, contents: dict[str, _Content]) -> None:
    """How much of a split can be used, and which chunks cannot be read."""
    whole = _Content.join(contents.values())
    unused = whole.scenes - whole.usable
    said = f"{place}: {count_of(whole.scenes, 'scene')} in {count_of(len(contents), 'chunk')}"
    said += f", {count_of(whole.photos, 'photo')}"
    if unused:
        said += f"; {unused} of the scenes cannot be used"
    if lost := [name for name, content in contents.items() if not content.usable]:
        said += f", all of {name_some(lost)}"
    output().print(f"{said}.", soft_wrap=True, markup=False)


def _describe_scene(scene: "Scene") -> None:
    from rich.table import Table

    table = Table("", "photo", "size (HxW)", "fx, fy", "cx, cy", "near", "far", "position")
    cameras = scene.cameras
    for i, photo in enumerate(scene.photos):
        (fx, _, cx), (_, fy, cy), _ = cameras.K[0, i].tolist()
        place = cameras.c2w[0, i, :3, 3].tolist()
        table.add_row(
            str(i),
            photo.name,
            f"{photo.size[0]}x{photo.size[1]}",
            f"{fx:.4f}, {fy:.4f}",
            f"{cx:.4f}, {cy:.4f}",
            f"{cameras.near[0, i]:.4g}",
            f"{cameras.far[0, i]:.4g}",
            " ".join(f"{x:.2f}" for x in place),
        )
    output().print(table)
    output().print(f"The photos are in the order of {scene.order}.")
    output().print(f"Near and far come from {scene.range_source}.")
    output().print(f"Cameras: {scene.poses}.")
    if any(scene.origin):
        output().print("Positions count from " + ", ".join(map(repr, scene.origin)) + ".")
    for photo in scene.left_out:
        output().print(f"Left out: {photo.name}: {photo.reason}.")
