"""Predict the depth of photographs: numbers, 16-bit pictures, colours, errors against a sensor

INPUT is a folder with cameras (transforms.json, COLMAP's sparse/0, the folders of capture apps and
others: see docs/photos.md), a chunk of scenes (DATA/test:KEY), a video, or a folder of bare photos;
the last two are posed first, by pycolmap or a network (--poses). `pmsplat data info INPUT` lists
what is found there.

    pmsplat depth desk/ --model depthsplat-depth-small-352x640-randview2-8 --size 352x640 \\
        --output desk-depth/

Every photo gets depth: z in the unit of the input's cameras. Photos that see the same things go
through the model together, up to N at a time; a model of Gaussians will do too. With --context,
only these photos, all together. A short report says at the end whether the photos fit each other
and the model, and what would help.

In the output folder afterwards: depth/ (.npy, and .png of 16 bits: depth_scale in cameras.json is
one count), color/, confidence/ (.png of 16 bits: 65535 is sure), sheet.png, cameras.json, and
metrics.json: AbsRel, RMSE and delta < 1.25 where
the input has sensor depth, as predicted and after scaling each photo to the sensor's median.
"""

import argparse
from pathlib import Path

from ..errors import count_of
from ._shared import (
    add_device,
    add_graph,
    add_model,
    add_overwrite,
    add_photos,
    add_precision,
    build_options,
    chosen_model,
    context,
    photo_options,
    size,
    terminal,
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
        "--views", type=int, metavar="N", help="photos at a time, at most (default: 4)"
    )
    parser.add_argument(
        "--context", type=context, metavar="auto|0,5,9", help="these photos only (default: all)"
    )
    parser.add_argument(
        "--size",
        type=size,
        metavar="HxW",
        help="of the pictures (default: that of the photos, at most 960 on the longer side, and no "
        "side more than 1.5 times that in training)",
    )
    add_photos(parser)
    add_device(parser)
    add_graph(parser)
    add_precision(parser)
    add_overwrite(parser)


def run(arguments: argparse.Namespace) -> None:
    """Predicts depth, and says how good it is and where."""
    from ..tasks.depth import Options, depth

    show = terminal(arguments)
    options = build_options(Options, arguments, photos=photo_options(arguments))
    summary = depth(
        arguments.input,
        chosen_model(arguments, show.tell),
        arguments.output,
        options,
        arguments.weights,
        tell=show.tell,
        track=show.track,
    )
    for how, accuracy in (
        ("as predicted", summary.as_predicted),
        ("after median scaling", summary.median_scaled),
    ):
        if accuracy is not None:
            mean = accuracy.mean
            show.tell(
                f"Against sensor depth of {count_of(len(accuracy.photos), 'photo')}, {how}: "
                f"AbsRel {mean.abs_rel:.3f}, RMSE {mean.rmse:.3f}, delta<1.25 {mean.delta1:.3f}."
            )
    show.tell(f"Depth of {count_of(len(summary.photos), 'photo')} is in {arguments.output}/.")
