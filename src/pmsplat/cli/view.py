"""show Gaussians, their cameras and their depth on a page in the browser

SCENE is a file of Gaussians (.ply and the other formats that `pmsplat convert` reads), or a folder
that `pmsplat predict` or `pmsplat refine` wrote. Several are shown in one world, to hide, to drag
and to lay beside each other.

    pmsplat view kitchen-3d/
    pmsplat view point_cloud.ply --cameras cameras.json --photos images/
    pmsplat view kitchen-3d/ kitchen-3dgs/

The page shows the splats, live; colour, depth and alpha as pmsplat draws them for where you look
from (small while you move, sharp when you stop); the cameras with their photos: a click on one
looks through it. Add key frames and save a video of the way through them: view.mp4 beside the
scene, or --output. It is served to this machine alone (127.0.0.1) until Ctrl-C.
"""

import argparse
from pathlib import Path

from ._shared import add_device, size, terminal


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument("scenes", nargs="+", metavar="SCENE", type=Path, help="see above")
    parser.add_argument("--cameras", metavar="CAMERAS", help="as for `pmsplat render`")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="the photos of those cameras")
    parser.add_argument("--up", metavar="AXIS", help="x, y, z or --up=-z (default: as the cameras)")
    parser.add_argument("--output", type=Path, metavar="FILE.mp4", help="the video to record")
    parser.add_argument(
        "--size", type=size, default=(720, 1280), metavar="HxW", help="of it (default: 720x1280)"
    )
    parser.add_argument(
        "--most", type=int, default=2_000_000, metavar="N", help="Gaussians in the browser"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to serve at")
    parser.add_argument("--port", type=int, default=8080, help="0 is any (default: 8080)")
    parser.add_argument("--backend", default="auto", help="the rasteriser (default: auto)")
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Serves until Ctrl-C."""
    import contextlib
    import threading

    from ..tasks.view import Options, view

    show = terminal()
    options = Options(
        cameras=arguments.cameras,
        photos=arguments.photos,
        up=arguments.up,
        output=arguments.output,
        size=arguments.size,
        most=arguments.most,
        host=arguments.host,
        port=arguments.port,
        backend=arguments.backend,
        device=arguments.device,
    )
    page = view(arguments.scenes, options, tell=show.tell)
    try:
        show.tell(f"Open {page.address} in a browser; Ctrl-C ends.")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    finally:
        page.close()
