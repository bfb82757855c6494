"""Optimise Gaussians on the photos of one scene (3D Gaussian Splatting)

SCENE is a folder with cameras (transforms.json, COLMAP's sparse/0, the folders of capture apps and
others: see docs/photos.md), a chunk of scenes (DATA/test:KEY), a video, or a folder of bare photos;
the last two are posed first, by pycolmap or a network (--poses).

    pmsplat refine kitchen/ --output kitchen-3dgs/
    pmsplat refine kitchen/ --output kitchen-3dgs/ --init kitchen-3d/gaussians.ply

It starts from the sparse points of the cameras, from points at random, from the prediction of a
model (--model; --start prediction alone takes the small one that ships), or from a file of
Gaussians (--init). Every eighth photo is held out and compared.
Gaussians are added and removed by gsplat's default strategy where gsplat draws (CUDA), else by
ours; --strategy chooses: default and mcmc are ours, gsplat-default and gsplat-mcmc gsplat's.
In the output folder afterwards: gaussians.ply, sheet.png (before and after), psnr.png (held-out
PSNR over the steps), metrics.json, and state.pt. After Ctrl-C, the same command with --resume goes
on.
"""

import argparse
from pathlib import Path

from ._shared import (
    add_device,
    add_overwrite,
    add_photos,
    build_options,
    chosen_model,
    photo_options,
    size,
    terminal,
)


class _Moved(argparse.Action):
    """Says where an option has gone, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        place = "run `python scripts/fit_image.py PICTURE OUTPUT` in a clone of the repository"
        parser.exit(2, f"pmsplat: refine has no --image any more; {place}\n")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument("input", metavar="SCENE", help="posed photos, see above")
    parser.add_argument("--image", action=_Moved, help=argparse.SUPPRESS)
    parser.add_argument(
        "--output", required=True, metavar="DIR", type=Path, help="folder of results"
    )
    parser.add_argument(
        "--start",
        metavar="NAME",
        help="what to start from: points, random, prediction or file (default: points where the "
        "input has some, else random; what --init or --model says)",
    )
    parser.add_argument("--model", metavar="NAME|PATH", help="start from its prediction")
    parser.add_argument("--weights", metavar="FILE", help="the file of a published model")
    parser.add_argument("--init", metavar="FILE", help="start from these Gaussians")
    parser.add_argument(
        "--strategy",
        metavar="NAME",
        help="how Gaussians come and go, see above (default: gsplat-default where gsplat draws, "
        "else default)",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="optimizer steps (default: 3000)")
    parser.add_argument(
        "--size",
        type=size,
        metavar="HxW",
        help="of the photos (default: theirs, on the CPU at most 160 pixels)",
    )
    parser.add_argument(
        "--most",
        type=int,
        metavar="N",
        help="maximum number of Gaussians (default: 1000000, on the CPU 50000); lower than that of "
        "the run that --resume goes on with: the faintest are left out",
    )
    parser.add_argument(
        "--sh-degree", type=int, metavar="N", help="of the colours, 0 to 3 (default: 3)"
    )
    parser.add_argument(
        "--random-points", type=int, metavar="N", help="how many to start from (default: 10000)"
    )
    parser.add_argument(
        "--antialiased",
        action="store_true",
        help="train Gaussians that are right at every size (Mip-Splatting's 2-D filter)",
    )
    parser.add_argument(
        "--test-every", type=int, metavar="N", help="hold every N-th photo out (default: 8)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="random seed (default: 0)")
    parser.add_argument(
        "--save-every", type=int, metavar="N", help="keep the state every N steps (default: 500)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    add_photos(parser)
    add_device(parser)
    add_overwrite(parser, "replace an earlier run")


def run(arguments: argparse.Namespace) -> None:
    """Optimises, and says what was gained and where everything is."""
    from ..tasks.refine import Options, refine

    show = terminal()
    if arguments.start == "prediction":
        arguments.model = chosen_model(arguments, show.tell)
    options = build_options(Options, arguments, photos=photo_options(arguments))
    summary = refine(arguments.input, arguments.output, options, tell=show.tell, track=show.track)
    before, after = summary.before, summary.after
    show.tell(
        f"Held-out PSNR {before.psnr:.2f} -> {after.psnr:.2f} dB, "
        f"SSIM {before.ssim:.3f} -> {after.ssim:.3f}."
    )
    show.tell(f"{after.gaussians} Gaussians and the rest are in {arguments.output}/.")
