"""Train an encoder

    pmsplat train +experiment=demo_tiny
    pmsplat train +experiment=re10k_small dataset.root=/data/re10k trainer.batch_size=4
    pmsplat train +experiment=re10k_small trainer.resume=true
    pmsplat train +experiment=re10k_base 'model.init_from=[dinov2,gmflow]'

Settings are Hydra overrides: `+experiment=NAME` (a file of config/experiment), `model=`,
`dataset=`, `teacher=` (a file of that folder of config/, a component of pmsplat, or the dotted name
of a module of yours), `loss=` (files of config/loss), `renderer.name=` (a backend of
`pmsplat.rasterize`), and any field as `GROUP.FIELD=VALUE`. `+loss.my.module.weight=0.1` adds a
loss, `~loss.lpips` drops one. An experiment names its own losses, which stay beside `loss=…`:
drop them by `~loss.NAME`. A mistyped name is refused with the nearest valid one. `--print` shows
every setting.

`model.init_from` lists the weights that a new run starts from, downloaded where they have a name:
dinov2, depth-anything-v2-small, -base, -large, gmflow, resnet18, a published model, or paths of
such files; NAME:PART takes of one part what fits. `trainer.initial` starts from all of a trained
model instead. `optimizer.parts=[update]` freezes all parts but that one.

In the folder `output` (outputs/EXPERIMENT): model.safetensors (for `--model` of other verbs),
last.ckpt (for trainer.resume=true), pictures/, tensorboard/, csv/. Ctrl-C ends the step at hand,
keeps both checkpoints and says how to go on.
"""

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides")
    parser.add_argument("--print", action="store_true", help="show all settings, train nothing")


def run(arguments: argparse.Namespace) -> None:
    import os
    import shlex
    from pathlib import Path

    from rich.console import Console

    from .. import config, train

    console = Console(stderr=True)
    experiment = config.compose(arguments.overrides)
    if arguments.print:
        Console(soft_wrap=True).print(config.to_yaml(experiment), end="", markup=False)
        return
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # of the processes that train together

    def tell(said: str) -> None:
        if first:
            console.print(said, markup=False, soft_wrap=True)

    try:
        train.run(experiment, tell)
    except KeyboardInterrupt:
        again = dict.fromkeys(arguments.overrides)
        if (Path(experiment.output) / train.LAST).is_file():
            again["trainer.resume=true"] = None
            tell(f"go on with: pmsplat train {shlex.join(again)}")
        else:
            tell(f"nothing was saved yet; start again with: pmsplat train {shlex.join(again)}")
        raise
