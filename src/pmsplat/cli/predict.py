"""Turn photographs into 3D Gaussians, depth maps, novel views and a video

INPUT is a folder with cameras (transforms.json, COLMAP's sparse/0, the folders of capture apps and
others: see docs/photos.md), a chunk of scenes (DATA/test:KEY), a video, or a folder of bare photos;
the last two are posed first, by pycolmap or a network (--poses). `pmsplat data info INPUT` lists
what is found there.

    pmsplat predict kitchen/ --model depthsplat-gs-small-re10k-256x256-view2 --size 256x256 \\
        --output kitchen-3d/

A few photos, of which two or more cover as much as possible of what all show, are shown to the
model; what it was not shown is rendered and compared. --views 32, or all, shows it more: in groups,
whose Gaussians are fused, and --gaussians 200000 leaves no more than that. A short report says at
the end whether the photos fit each other and the model, and what would help. In the output folder
afterwards: gaussians.ply (drag it into any 3DGS viewer), sheet.png, video.mp4, depth/, confidence/
(how sure the model is of that depth), render/, metrics.json and cameras.json, all in the unit and
the axes of the input's cameras.
"""

import argparse
from pathlib import Path

from ._shared import (
    add_device,
    add_model,
    add_overwrite,
    add_passes,
    add_photos,
    add_precision,
    build_options,
    chosen_model,
    context,
    photo_options,
    size,
    terminal,
    views,
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument("input", metavar="INPUT", help="photos, video or chunk, see above")
    add_model(parser)
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        type=Path,
        help="folder of results; an earlier result in it is replaced whole",
    )
    parser.add_argument(
        "--views", type=views, metavar="N|all", help="context views (default: up to 4)"
    )
    parser.add_argument(
        "--context",
        type=context,
        metavar="auto|0,5,9",
        help="these photos instead (default: auto, by coverage and baseline)",
    )
    parser.add_argument(
        "--group",
        type=int,
        metavar="N",
        help="views that go through the network together, at most (default: as it learned, or 4)",
    )
    parser.add_argument(
        "--fuse",
        metavar="HOW",
        help="how groups become one scene: voxels (default), shares or union, see docs/photos.md",
    )
    parser.add_argument(
        "--gaussians", type=int, metavar="N", help="leave at most so many (default: all)"
    )
    parser.add_argument(
        "--size",
        type=size,
        metavar="HxW",
        help="of the pictures (default: that of the photos, at most 960 on the longer side, and no "
        "side more than 1.5 times that in training)",
    )
    add_passes(parser)
    parser.add_argument(
        "--refine-poses",
        type=int,
        metavar="K",
        help="refine the cameras of the context by three rounds of K steps, such as 60, on what "
        "its views show of each other (default: they stay), see docs/photos.md",
    )
    parser.add_argument(
        "--held-out", type=int, metavar="N", help="photos to compare, at most (default: 12)"
    )
    parser.add_argument(
        "--stabilize", "--stabilise", action="store_true", help="a steadier camera in the video"
    )
    parser.add_argument("--fps", type=int, help="of the video (default: 30)")
    parser.add_argument(
        "--confidence",
        action="store_true",
        help="also write the confidence of each Gaussian, as a column of gaussians.ply",
    )
    add_photos(parser)
    add_device(parser)
    add_precision(parser)
    add_overwrite(parser)


def run(arguments: argparse.Namespace) -> None:
    """Predicts, and says where everything is."""
    from ..tasks.predict import Options, predict

    show = terminal(arguments)
    options = build_options(Options, arguments, photos=photo_options(arguments))
    summary = predict(
        arguments.input,
        chosen_model(arguments, show.tell),
        arguments.output,
        options,
        arguments.weights,
        tell=show.tell,
        track=show.track,
    )
    means = ", ".join(f"{name} {value:.3f}" for name, value in summary.means.items())
    if means:
        count = len(summary.held_out)
        seen = f"{count} held-out photo{'s' * (count > 1)}" if count else "the views"
        show.tell(f"Means over {seen}: {means}.")
    show.tell(f"{summary.gaussians} Gaussians and the rest are in {arguments.output}/.")
