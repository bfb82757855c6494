"""See everything work: photographs become 3D Gaussians in under a minute, on a bare CPU machine

    pmsplat demo
    pmsplat demo --view
    pmsplat demo --train

The photographs and the model come with pmsplat. Three photographs of an office are shown to the
model; it predicts depth and Gaussians, renders the two photographs between them, and a video of the
way through all. At the end the files are listed; --view shows the Gaussians on a page in the
browser, until Ctrl-C.

--train shows the other half in some minutes instead: it makes a small dataset of furnished rooms,
trains a tiny encoder on it, measures it on rooms that it never saw, beside the nearest photo and a
plane sweep without learning, and reconstructs one of them.

Ctrl-C stops it at any time; a second demo in the same folder replaces the first.
"""

import argparse
from pathlib import Path

from ._shared import Terminal, add_device, output, terminal

FOLDER, TRAINING_FOLDER = Path("outputs/demo"), Path("outputs/demo_train")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument(
        "--output", type=Path, help=f"folder (default: {FOLDER}, with --train {TRAINING_FOLDER})"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--view", action="store_true", help="show the Gaussians at the end")
    what.add_argument("--train", action="store_true", help="train a tiny encoder instead")
    parser.add_argument("--steps", type=int, help="of the training (default: those of demo_tiny)")
    parser.add_argument("--seed", type=int, help="of the training (default: 1)")
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the demo, and says where everything is."""
    import time

    _check(arguments)
    began, show = time.monotonic(), terminal(arguments)
    places = (_train if arguments.train else _predict)(arguments, show)
    for what, where in places.items():
        show.tell(f"{what}: {where}")
    show.tell(f"Done in {time.monotonic() - began:.0f} s.")
    if arguments.view:
        from ..tasks.view import Options
        from .view import serve

        serve([arguments.output or FOLDER], Options(device=arguments.device), show)


def _check(arguments: argparse.Namespace) -> None:
    """Raises UserError for options of the other demo."""
    from ..errors import UserError

    if arguments.train and arguments.device != "auto":
        raise UserError("--device with --train", "one of them", "demo_tiny trains on the CPU")
    for option in ("steps", "seed"):
        if getattr(arguments, option) is not None and not arguments.train:
            raise UserError(f"--{option} without --train", "both", "the model is trained already")


def _predict(arguments: argparse.Namespace, show: Terminal) -> dict[str, Path]:
    """What is where after the demo with photographs."""
    import re
    import shlex

    from ..tasks.demo import CONTEXT, PHOTOS, demo, sample_photos

    photos = shlex.quote(str(sample_photos()))
    shown = f"{photos} --context {','.join(map(str, CONTEXT))}"

    def tell(text: str) -> None:
        """What would help is an option of `predict`; the demo has none of them."""
        command = rf"run `pmsplat predict {shown} --\2 \3 --output outputs/{PHOTOS}`"
        show.tell(re.sub(r"(use|try) `(\w+)=([^`]+)`", command, text))

    folder = arguments.output or FOLDER
    summary = demo(folder, arguments.device, tell, show.track)
    mean = ", ".join(f"{name} {value:.3f}" for name, value in summary.means.items())
    show.tell(f"Means over {len(summary.held_out)} photographs that it was not shown: {mean}.")
    return {
        "picture of everything": folder / "sheet.png",
        "Gaussians, for any 3DGS viewer": folder / "gaussians.ply",
        "video": folder / "video.mp4",
        "depth": folder / "depth",
    }


def _train(arguments: argparse.Namespace, show: Terminal) -> dict[str, Path]:
    """What is where after the demo with training; prints its table."""
    from .. import config
    from ..tasks.training_demo import train_demo

    folder = arguments.output or TRAINING_FOLDER
    overrides = ["+experiment=demo_tiny", f"seed={1 if arguments.seed is None else arguments.seed}"]
    if arguments.steps is not None:
        overrides.append(f"trainer.steps={arguments.steps}")
    overrides.append(f"dataset.root='{folder}/data'")
    outcome = train_demo(config.compose(overrides), folder, tell=show.tell, track=show.track)
    output().print(outcome.table)
    return {
        "table": outcome.folder / "table.txt",
        "picture, before and after": outcome.picture,
        "Gaussians, for any 3DGS viewer": outcome.gaussians,
        "video": outcome.video,
        "trained model": outcome.checkpoint,
    }
