"""See everything work: a few minutes on a bare CPU machine

    pmsplat demo
    pmsplat demo --output outputs/demo --steps 800 --seed 1

Makes a small dataset of furnished rooms, trains a tiny encoder on it, measures it on rooms that it
never saw, beside the nearest photo and a plane sweep without learning, and reconstructs one of
them. At the end it lists the files that it wrote. Ctrl-C stops it at any time; a second demo in the
same folder replaces the first.
"""

import argparse

from ._shared import output, terminal


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument("--output", default="outputs/demo", help="folder (default: outputs/demo)")
    parser.add_argument("--steps", type=int, help="of training (default: those of demo_tiny)")
    parser.add_argument("--seed", type=int, default=1, help="of the network and the order of data")


def run(arguments: argparse.Namespace) -> None:
    """Runs the demo, and says where everything is."""
    import time

    from .. import config
    from ..tasks.demo import demo

    show = terminal()
    overrides = ["+experiment=demo_tiny", f"seed={arguments.seed}"]
    if arguments.steps is not None:
        overrides.append(f"trainer.steps={arguments.steps}")
    overrides.append(f"dataset.root='{arguments.output}/data'")
    began = time.monotonic()
    outcome = demo(
        config.compose(overrides),
        arguments.output,
        tell=show.tell,
        track=show.track,
    )
    output().print(outcome.table)
    places = {
        "table": outcome.folder / "table.txt",
        "picture, before and after": outcome.picture,
        "Gaussians, for any 3DGS viewer": outcome.gaussians,
        "video": outcome.video,
        "trained model": outcome.checkpoint,
    }
    for what, where in places.items():
        show.tell(f"{what}: {where}")
    show.tell(f"done in {time.monotonic() - began:.0f} s")
