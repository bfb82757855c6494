"""Serve a page where photos or a video become a scene to turn in the browser

    pmsplat app
    pmsplat app --port 0 --model depthsplat-gs-small-re10k-256x256-view2
    pmsplat app --host 0.0.0.0 --most-photos 20

On the page one drops photos, a short video, or a .zip of photos and their cameras. It shows how
they are understood (cameras, overlap, what is missing), then the Gaussians to turn, depth, a video,
and files to download. Photos without cameras are posed by pycolmap (extra `pose`). Requests are
worked on one after another and can be stopped.

The page is served to this machine alone (127.0.0.1) until Ctrl-C. Nothing is sent elsewhere. What a
visitor brings and gets lies in a temporary folder, and is deleted when the visitor leaves, after an
hour without a visit, and at the end. It needs gradio: pip install "pmsplat[app,pose]".
"""

import argparse

from ._shared import add_device, build_options, serve_until_ctrl_c, terminal


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument(
        "--model",
        metavar="NAME|PATH",
        help="published model, or your checkpoint (default: the one that comes with pmsplat)",
    )
    parser.add_argument("--host", help="the address to serve at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="of that address, 0 for any (default: 7860)")
    limits = {
        "photos": "photos",
        "megabytes": "MB of all files together",
        "megapixels": "megapixels of a photo",
        "seconds": "seconds of a video",
        "minutes": "minutes that files are kept without a visit",
    }
    for name, what in limits.items():
        parser.add_argument(
            f"--most-{name}", type=int, metavar="N", dest=name, help=f"{what}, at most"
        )
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Serves until Ctrl-C."""
    from ..tasks.app import Limits, Options, app

    show = terminal(arguments)
    options = build_options(Options, arguments, limits=build_options(Limits, arguments))
    serve_until_ctrl_c(app(options, tell=show.tell), show.tell)
