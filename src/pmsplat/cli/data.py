"""Fetch, make, convert, check, index and look at data

pmsplat data fetch re10k --subset test
    a data set of chunks from the hub: resumed where it stopped, each file verified
pmsplat data convert kitchen/ datasets/mine/test --size 360x640
    a folder of photos with cameras (COLMAP, transforms.json), a video or bare photos -> one scene
    more in the chunks of a split (RealEstate10K's format), with near, far and, if available, depth
pmsplat data convert DL3DV-10K/ datasets/dl3dv/train --size 270x480 --jobs 16
    a folder of scenes -> chunks of 100 MB; what is dropped is named in conversion.json
pmsplat data synthetic datasets/synthetic --scenes 64
    procedural rooms with exact depth: train, test and evaluation index
pmsplat data index datasets/mine mine.json --gap 8 --targets 3
    an evaluation index: which frames are looked at, and which are measured
pmsplat data index datasets/re10k out.json --gap 75 --outside 30 --targets 20 --start 30
    one whose targets all lie outside the context views, by up to 30 frames
pmsplat data index datasets/dl3dv out.json --spread 40 --context 8 --targets 8
    one of the first 40 frames: context views far apart in space, as ReSplat's evaluation has them
pmsplat data protocols
    the evaluation protocols in use, by name
pmsplat data index datasets/dl3dv --protocol dl3dv-8v-n40
    the index of one of them, for `pmsplat evaluate … protocol=dl3dv-8v-n40`
pmsplat data verify datasets/re10k
    every byte, photo and camera of a split, or of all splits; writes down what training leaves out
pmsplat data inspect datasets/re10k --output re10k.html
    a page to look at: totals, and photographs and camera paths of a sample of scenes
pmsplat data info datasets/mine/test
    what is in a split, a chunk, or a folder of photos
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ._data_convert import add_convert
from ._data_fetch import add_fetch
from ._data_index import add_index, add_protocols
from ._data_inspect import add_inspect
from ._data_verify import add_verify
from ._shared import add_photos, output, photo_options, size, terminal

if TYPE_CHECKING:
    from ..io.chunks import Split
    from ..scene.photos import Scene


def configure(parser: argparse.ArgumentParser) -> None:
    """The actions and their options."""
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    add_fetch(verbs)
    add_convert(verbs)

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

    add_index(verbs)
    add_protocols(verbs)
    add_verify(verbs)
    add_inspect(verbs)

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


def _info(arguments: argparse.Namespace) -> None:
    from ..io import chunks
    from ..scene import open_scene

    folder = Path(arguments.path)
    if chunks.is_remote(arguments.path) and not arguments.write_index:
        _describe_split(chunks.read_split(arguments.path))
    elif arguments.write_index:
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


def _count(flags: Iterable[bool]) -> str:
    counted = list(flags)
    return f"{sum(counted)} of {len(counted)}"
