"""Show Gaussians, their cameras and their depth on a page in the browser

SCENE is a file of Gaussians (.ply and the other formats that `pmsplat convert` reads), or a folder
that `pmsplat predict` or `pmsplat refine` wrote. Several are shown in one world, to hide, to drag
and to lay beside each other.

    pmsplat view kitchen-3d/
    pmsplat view point_cloud.ply --cameras cameras.json --photos images/
    pmsplat view kitchen-3d/ kitchen-3dgs/

The page shows the splats, live; colour, depth and alpha as pmsplat draws them for where you look
from (small while you move, sharp when you stop), and confidence, which `pmsplat predict
--confidence` writes; the cameras with their photos: a click on one looks through it. Add key frames
and save a video of the way through them: view.mp4 beside the scene, or --output. It is served to
this machine alone (127.0.0.1) until Ctrl-C.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ._shared import (
    Terminal,
    add_backend,
    add_device,
    add_rules,
    build_options,
    serve_until_ctrl_c,
    size,
    terminal,
)

if TYPE_CHECKING:
    from ..tasks.view import Options


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument("scenes", nargs="+", metavar="SCENE", type=Path, help="see above")
    parser.add_argument("--cameras", metavar="CAMERAS", help="as for `pmsplat render`")
    parser.add_argument(
        "--photos", "--images", type=Path, metavar="DIR", help="the photos of the cameras"
    )
    parser.add_argument(
        "--up",
        metavar="AXIS",
        help="the axis that points up: x, y, z or --up=-z (default: as the cameras)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE.mp4", help="the video to record")
    parser.add_argument(
        "--size", type=size, metavar="HxW", help="of that video (default: 720x1280)"
    )
    parser.add_argument(
        "--most", type=int, metavar="N", help="Gaussians in the browser (default: 2000000)"
    )
    parser.add_argument("--host", help="the address to serve at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="of that address, 0 for any (default: 8080)")
    add_rules(parser)
    add_backend(parser)
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Serves until Ctrl-C."""
    from ..tasks.view import Options

    serve(arguments.scenes, build_options(Options, arguments), terminal())


def serve(scenes: Sequence[Path], options: "Options", show: Terminal) -> None:
    """Serves the page of these scenes until Ctrl-C."""
    from ..tasks.view import view

    serve_until_ctrl_c(view(scenes, options, tell=show.tell), show.tell)
