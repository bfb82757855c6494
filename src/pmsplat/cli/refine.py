"""optimise Gaussians on the photos of one scene (3D Gaussian Splatting), or on one picture

SCENE is a folder with cameras (transforms.json, or COLMAP's sparse/0), a chunk of scenes
(DATA/test:KEY), a video, or a folder of bare photos; the last two are posed by pycolmap first.

    pmsplat refine kitchen/ --output kitchen-3dgs/
    pmsplat refine kitchen/ --output kitchen-3dgs/ --init kitchen-3d/gaussians.ply

It starts from the sparse points of the cameras, from points at random, from the prediction of a
model (--model), or from a file of Gaussians (--init). Every eighth photo is held out and compared.
Gaussians are added and removed by gsplat's default strategy where gsplat draws (CUDA), else by
ours; --strategy chooses: default and mcmc are ours, gsplat-default and gsplat-mcmc gsplat's.
In the output folder afterwards: gaussians.ply, sheet.png (before and after), psnr.png (held-out
PSNR over the steps), metrics.json, and state.pt. After Ctrl-C, the same command with --resume goes
on.

    pmsplat refine --image photo.jpg --output photo-splats/

fits Gaussians on a plane to one picture, with few of them and with more: error.png shows how the
error falls.
"""

import argparse
from pathlib import Path

from ._shared import add_device, add_overwrite, size, terminal

OF_SCENES = (  # and not of a picture
    "start", "model", "weights", "init", "strategy", "most", "sh_degree", "random_points",
    "test_every", "save_every", "resume",
)  # fmt: skip
OF_BOTH = ("steps", "size", "seed", "device", "overwrite")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument("input", nargs="?", metavar="SCENE", help="posed photos, see above")
    parser.add_argument("--image", metavar="FILE", help="fit one picture instead")
    parser.add_argument("--output", required=True, metavar="DIR", type=Path)
    parser.add_argument("--start", metavar="NAME", help="points, random, prediction or file")
    parser.add_argument("--model", metavar="NAME|PATH", help="start from its prediction")
    parser.add_argument("--weights", metavar="FILE", help="the file of a published model")
    parser.add_argument("--init", metavar="FILE", help="start from these Gaussians")
    parser.add_argument("--strategy", metavar="NAME", help="how Gaussians come and go, see above")
    parser.add_argument("--steps", type=int, metavar="N", help="default: 3000 (picture: 500)")
    parser.add_argument("--size", type=size, metavar="HxW", help="default: small on the CPU")
    parser.add_argument("--most", type=int, metavar="N", help="bound of the number of Gaussians")
    parser.add_argument(
        "--sh-degree", type=int, metavar="N", help="of the colours, 0 to 3 (default: 3)"
    )
    parser.add_argument(
        "--random-points", type=int, metavar="N", help="how many to start from (default: 10000)"
    )
    parser.add_argument(
        "--test-every", type=int, metavar="N", help="hold every N-th photo out (default: 8)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--save-every", type=int, metavar="N", help="keep the state every N steps (default: 500)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    add_device(parser)
    add_overwrite(parser, "replace an earlier run")


def run(arguments: argparse.Namespace) -> None:
    """Optimises, and says what was gained and where everything is."""
    from ..errors import UserError
    from ..tasks.refine import Options, fit_image, refine

    show = terminal()
    if (arguments.input is None) == (arguments.image is None):
        raise UserError(
            "no input" if arguments.input is None else "a scene and --image",
            "SCENE, or --image FILE",
            "give one of them",
        )
    said = {name: getattr(arguments, name) for name in OF_SCENES + OF_BOTH}
    said = {name: value for name, value in said.items() if value is not None and value is not False}
    if arguments.image is not None:
        odd = [f"--{name.replace('_', '-')}" for name in OF_SCENES if name in said]
        if odd:
            raise UserError(f"--image with {odd[0]}", "a scene for that", f"drop {odd[0]}")
        fits = fit_image(
            arguments.image, arguments.output, **said, tell=show.tell, track=show.track
        )
        show.tell(f"{len(fits)} fits are in {arguments.output}/.")
        return
    options = Options(**said)
    summary = refine(arguments.input, arguments.output, options, tell=show.tell, track=show.track)
    before, after = summary.before, summary.after
    show.tell(
        f"Held-out PSNR {before.psnr:.2f} -> {after.psnr:.2f} dB, "
        f"SSIM {before.ssim:.3f} -> {after.ssim:.3f}."
    )
    show.tell(f"{after.gaussians} Gaussians and the rest are in {arguments.output}/.")
