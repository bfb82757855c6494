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
pmsplat data info datasets/mine
    what is in a data set, a split, a chunk, or a folder of photos
"""

import argparse
from pathlib import Path

from ._data_convert import add_convert
from ._data_fetch import add_fetch
from ._data_index import add_index, add_protocols
from ._data_info import add_info
from ._data_inspect import add_inspect
from ._data_verify import add_verify
from ._shared import output, size


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

    add_info(verbs)


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
