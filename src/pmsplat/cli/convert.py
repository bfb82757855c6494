"""Turn a file of Gaussians into another format, crop, thin out or move it, export its cameras

The content of IN decides its format, the name of OUT the other: .ply, .compressed.ply, .splat,
.spz, .glb, .usdc, .usda, .usdz. Read only: .gltf, .sog (or its meta.json), .ksplat, and any of them
gzipped (.ply.gz). Formats that say which way is up are turned, harmonics included; what a .ply says
is up ("comment Vertical Axis: z") is up there, unless --transform turns the scene.

    pmsplat convert point_cloud.ply scene.glb
    pmsplat convert scene.ply small.spz --min-opacity 0.05 --sh-degree 1 --crop=-2,-2,0,2,2,4
    pmsplat convert scene.ply moved.ply --transform=0,-1,0,0,1,0,0,0,0,0,1,2,0,0,0,1

What is kept is chosen in the world of IN: by a box around the means, by opacity, by what the
cameras see. --transform comes last: a rotation times one scale, and a translation, 16 numbers row
by row, or a file with them. Numbers that begin with a minus need the = between option and value.

With --cameras, a folder OUT-cameras/ appears beside OUT: sparse/0 (COLMAP) and transforms.json
(nerfstudio) of these cameras, moved like the scene, with the Gaussians' centres as points, for
other trainers to start from; put the photos into its images/. INRIA's cameras.json names photos
without suffix: they are looked up in images/ beside it.
"""

import argparse
import os
import re
from math import isfinite, isnan
from pathlib import Path

from ._shared import build_options, terminal


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    cameras = "cameras.json (INRIA's or ours), transforms.json, a COLMAP model, a chunk or a video"
    parser.add_argument("input", metavar="IN", type=Path, help="a file of Gaussians")
    parser.add_argument("output", metavar="OUT", type=Path, help="the file to write")
    parser.add_argument(
        "--crop", type=box, metavar="X0,Y0,Z0,X1,Y1,Z1", help="keep means in this box"
    )
    parser.add_argument(
        "--min-opacity", type=float, metavar="A", help="keep this opacity or more (default: 0)"
    )
    parser.add_argument(
        "--seen-by", metavar="CAMERAS", help=f"keep what one camera sees, of {cameras}"
    )
    parser.add_argument("--sh-degree", type=int, metavar="N", help="drop harmonics above degree N")
    parser.add_argument(
        "--gaussians",
        type=int,
        metavar="N",
        help="leave at most so many: merge neighbours, then drop those that hide least",
    )
    parser.add_argument(
        "--transform",
        type=matrix,
        metavar="16 NUMBERS|FILE",
        help="move the scene by a 4x4 matrix, row by row",
    )
    parser.add_argument(
        "--spz-version", type=int, choices=(3, 4), help="of an .spz file (default: 3)"
    )
    parser.add_argument("--cameras", metavar="CAMERAS", help="export these beside OUT")
    parser.add_argument(
        "--colmap-text", action="store_true", help="write sparse/0 as .txt, not .bin"
    )


def run(arguments: argparse.Namespace) -> None:
    """Converts, and says how much of it."""
    import torch

    from ..tasks.convert import Box, Options, convert

    show = terminal(arguments)
    crop, rows = arguments.crop, arguments.transform
    options = build_options(
        Options,
        arguments,
        crop=None if crop is None else Box(crop[:3], crop[3:]),
        similarity=None if rows is None else torch.tensor(rows, dtype=torch.float64).reshape(4, 4),
    )
    summary = convert(arguments.input, arguments.output, options, tell=show.tell)
    size = arguments.output.stat().st_size / 1e6
    show.tell(f"{summary.written} Gaussians are in {arguments.output} ({size:.1f} MB).")
    if summary.cameras is not None:
        show.tell(f"Their cameras are in {summary.cameras}/.")


def box(text: str) -> tuple[float, ...]:
    """-1,-1,0,1,1,4: the low and the high corner of a box, as an option has them."""
    values = numbers(text)
    if values is None or len(values) != 6:
        raise argparse.ArgumentTypeError(
            f"{text!r}; wanted six numbers, the low corner first, such as -1,-1,0,1,1,inf"
        )
    for name, low, high in zip("xyz", values[:3], values[3:], strict=True):
        if low > high:
            raise argparse.ArgumentTypeError(
                f"{text!r}, where {name} goes from {low:g} to {high:g}; wanted the low corner first"
            )
    return values


def matrix(text: str) -> tuple[float, ...]:
    """16 numbers with commas, or from a file that has them (JSON will do)."""
    values = numbers(text)
    if values is None and os.path.isfile(text) and os.path.getsize(text) < 1 << 16:
        values = numbers(Path(text).read_text(errors="replace"))
    if values is None or len(values) != 16 or not all(map(isfinite, values)):
        raise argparse.ArgumentTypeError(
            f"{text!r}; wanted 16 finite numbers, row by row, or a file with them"
        )
    return values


def numbers(text: str) -> tuple[float, ...] | None:
    """The numbers of a text, apart by commas, spaces or brackets; None for others and for nan."""
    try:
        values = tuple(float(word) for word in re.split(r"[\s,\[\]]+", text) if word)
    except ValueError:
        return None
    return None if any(map(isnan, values)) else values
