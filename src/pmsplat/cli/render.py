"""Draw any trained Gaussians: colour, depth, alpha, normals and attributes, and a video

SCENE is a file of Gaussians (.ply and the other formats that `pmsplat convert` reads). CAMERAS is
the cameras.json of INRIA's 3D Gaussian Splatting or ours, transforms.json, a COLMAP model, or a
folder or chunk with cameras.

    pmsplat render point_cloud.ply --cameras cameras.json --photos images/ --output drawn/
    pmsplat render point_cloud.ply --orbit 120 --output around/

Depth is z in the unit of the scene, splatted with the weights of the colour, so it needs no
training. With --orbit the camera goes around the scene, with the lens and the upward direction of
CAMERAS if they are given too; without, -y is up, or --up y.

In the output folder afterwards: color/, depth/ (.npy and 16-bit .png; one count is depth_scale in
cameras.json), depth_color/, alpha/, normals/; with --median depth_median/; with --attributes
attributes/; sheet.png, video.mp4, cameras.json, and metrics.json: PSNR against --photos, of the
whole picture and inside the scene (alpha of one half or more).
"""

import argparse
from pathlib import Path

from ..errors import count_of
from ._shared import (
    add_backend,
    add_device,
    add_overwrite,
    add_rules,
    build_options,
    rgb,
    size,
    terminal,
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument("scene", metavar="SCENE", type=Path, help="a file of Gaussians")
    parser.add_argument("--cameras", metavar="CAMERAS", help="see above")
    parser.add_argument("--orbit", type=int, metavar="N", help="draw N pictures around the scene")
    parser.add_argument(
        "--up", metavar="AXIS", help="the axis that points up: x, y, z or --up=-z (default: -y)"
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        type=Path,
        help="folder of results; an earlier result in it is replaced whole",
    )
    parser.add_argument(
        "--photos", "--images", type=Path, metavar="DIR", help="photos to compare with"
    )
    parser.add_argument(
        "--attributes", type=Path, metavar="FILE.npy", help="[gaussian, channel], drawn too"
    )
    parser.add_argument(
        "--median", action="store_true", help="also the depth of half transmittance"
    )
    parser.add_argument(
        "--every", type=int, metavar="N", help="draw every N-th camera (default: 1)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="draw at most N cameras")
    parser.add_argument(
        "--size", type=size, metavar="HxW", help="of the pictures (default: that of the cameras)"
    )
    parser.add_argument(
        "--background", type=rgb, metavar="R,G,B", help="or a name: black, white (default: black)"
    )
    parser.add_argument(
        "--no-video", dest="video", action="store_false", help="write pictures alone"
    )
    parser.add_argument("--fps", type=float, help="of the video (default: 4, on an orbit 30)")
    add_rules(parser)
    add_backend(parser)
    add_device(parser)
    add_overwrite(parser)


def run(arguments: argparse.Namespace) -> None:
    """Draws, and says how close it comes to the photos."""
    from ..tasks.render import Options, render

    show = terminal()
    options = build_options(Options, arguments)
    summary = render(
        arguments.scene,
        arguments.cameras,
        arguments.output,
        options,
        tell=show.tell,
        track=show.track,
    )
    means = ", ".join(f"{name} {value:.3f}" for name, value in summary.means.items())
    show.tell(f"Means over {count_of(len(summary.views), 'picture')}: {means}.")
    show.tell(f"The pictures are in {arguments.output}/.")
