"""Make, convert, index and look at data

pmsplat data convert kitchen/ datasets/mine/test --size 360x640
    a folder of photos with cameras (COLMAP, transforms.json), a video or bare photos -> one scene
    more in the chunks of a split (RealEstate10K's format), with near, far and, if available, depth
pmsplat data synthetic datasets/synthetic --scenes 64
    procedural rooms with exact depth: train, test and evaluation index
pmsplat data index datasets/mine mine.json --gap 8 --targets 3
    an evaluation index: which frames are looked at, and which are measured
pmsplat data index datasets/re10k out.json --gap 75 --outside 30 --targets 20 --start 30
    one whose targets all lie outside the context views, by up to 30 frames
pmsplat data index datasets/dl3dv out.json --spread 40 --context 8 --targets 8
    one of the first 40 frames: context views far apart in space, as ReSplat's evaluation has them
pmsplat data info datasets/mine/test
    what is in a split, a chunk, or a folder of photos
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ._shared import add_photos, output, photo_options, size, terminal

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Index
    from ..io.chunks import Split
    from ..scene.photos import Scene


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


def configure(parser: argparse.ArgumentParser) -> None:
    """The four sub-verbs and their options."""
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    convert = verbs.add_parser("convert", help="photos -> a scene in chunks")
    convert.add_argument("input", help="a folder of photos, a video, a chunk scene")
    convert.add_argument("output", type=Path, help="a split folder, such as datasets/mine/test")
    convert.add_argument("--scene", help="name of the scene (default: that of the input)")
    convert.add_argument(
        "--size", type=size, metavar="HxW", help="scale to cover it and cut the centre"
    )
    convert.add_argument("--every", type=int, default=1, metavar="N", help="take each N-th photo")
    add_photos(convert)
    convert.set_defaults(action=_convert)

    synthetic = verbs.add_parser("synthetic", help="procedural rooms with exact depth")
    synthetic.add_argument("output", type=Path, help="root folder, gets train/ and test/")
    synthetic.add_argument("--scenes", type=int, default=64)
    synthetic.add_argument("--test-scenes", type=int, default=16)
    synthetic.add_argument("--frames", type=int, default=16, help="photos of a scene, 5 cm apart")
    synthetic.add_argument(
        "--size", type=size, default=(64, 64), metavar="HxW", help="of the photos (default: 64x64)"
    )
    synthetic.add_argument("--seed", type=int, default=0)
    synthetic.set_defaults(action=_synthetic)

    index = verbs.add_parser("index", help="an evaluation index")
    index.add_argument("root", type=Path, help="a dataset (its test split is taken) or a split")
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

    info = verbs.add_parser("info", help="what is in a split, a chunk, or a folder of photos")
    info.add_argument("path")
    add_photos(info)
    info.add_argument(
        "--write-index", action="store_true", help="write index.json from the chunks of a split"
    )
    info.set_defaults(action=_info)


def run(arguments: argparse.Namespace) -> None:
    """Runs the chosen sub-verb."""
    arguments.action(arguments)


def _convert(arguments: argparse.Namespace) -> None:
    from ..data import to_chunk_scene
    from ..errors import UserError
    from ..io.chunks import append, check_new
    from ..scene import open_scene

    if arguments.every < 1:
        raise UserError(f"--every {arguments.every}", "1 or more", "take every photo with 1")
    check_new(arguments.output, [arguments.scene] if arguments.scene else [])
    shown = terminal()
    scene = open_scene(arguments.input, photo_options(arguments), tell=shown.tell)
    key = arguments.scene or scene.name
    check_new(arguments.output, [key])
    indices = range(0, len(scene), arguments.every)
    converted = to_chunk_scene(scene, key, arguments.size, indices, shown.track)
    chunk = append(arguments.output, [converted])
    output().print(f"scene {key!r}: {len(converted)} photos in {chunk}")


def _synthetic(arguments: argparse.Namespace) -> None:
    from ..data import synthetic

    synthetic.make(
        synthetic.Config(
            root=str(arguments.output),
            scenes=arguments.scenes,
            test_scenes=arguments.test_scenes,
            frames=arguments.frames,
            size=list(arguments.size),
            seed=arguments.seed,
        )
    )
    output().print(f"{arguments.scenes} + {arguments.test_scenes} rooms in {arguments.output}")


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


def _info(arguments: argparse.Namespace) -> None:
    from ..io import chunks
    from ..scene import open_scene

    folder = Path(arguments.path)
    if arguments.write_index:
        _describe_split(chunks.write_index(folder))
    elif (folder / chunks.INDEX).is_file():
        _describe_split(chunks.read_split(folder))
    else:
        options = photo_options(arguments)
        _describe_scene(open_scene(arguments.path, options, tell=terminal().tell))


def _describe_split(split: "Split") -> None:
    from rich.table import Table

    table = Table("chunk", "scenes", "photos", "size", "near, far", "depth", "unusable")
    for name in terminal().track(sorted(split.keys), "reading chunks", len(split.keys)):
        chunk = split.chunk(name)
        scenes = list(chunk.scenes.values())
        sizes = {scene.image(0).shape[:2] for scene in scenes[:1]}
        table.add_row(
            name,
            str(len(chunk.scenes) + len(chunk.faults)),
            str(sum(map(len, scenes))),
            ", ".join(f"{height}x{width}" for height, width in sizes),
            _count(scene.near is not None for scene in scenes),
            _count(scene.depths is not None for scene in scenes),
            ", ".join(f"{key}: {fault}" for key, fault in chunk.faults.items()),
        )
    output().print(table)


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


def _centers(split: "Split") -> "dict[str, Tensor]":
    """The camera centers of every usable scene, in the order of the index."""
    centers = {}
    for name in terminal().track(list(split.keys), "reading chunks", len(split.keys)):
        scenes = split.chunk(name).scenes
        known = (key for key in split.keys[name] if key in scenes)
        centers |= {key: scenes[key].c2w[:, :3, 3].clone() for key in known}
    return centers


def _split(root: Path) -> "Split":
    from ..io import chunks

    return chunks.read_split(root if (root / chunks.INDEX).is_file() else root / "test")


def _count(flags: Iterable[bool]) -> str:
    counted = list(flags)
    return f"{sum(counted)} of {len(counted)}"
