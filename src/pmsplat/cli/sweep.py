"""Measure a model over a range of views, sizes, Gaussians, pose errors or data

    pmsplat sweep +experiment=re10k_small --model outputs/a --views 2,4,8,12 --output outputs/views
    pmsplat sweep +experiment=re10k_small --model outputs/a --sizes 256x256,320x320 --output sizes
    pmsplat sweep +experiment=re10k_small --model outputs/a --gaussians 100000,50000 --output fewer
    pmsplat sweep +experiment=re10k_small --model outputs/a --pose-noise 0,1,2,5,10 --output noise
    pmsplat sweep +experiment=re10k_small --model outputs/a --protocols re10k-2v,acid-2v --output z

The experiment says which data, index and renderer, as in `pmsplat evaluate`; --model may be given
several times. One quantity is varied:

--views       targets and scenes are those of the index; context views are the farthest points of
              the frames from the first to the last that it names for a scene, targets left out, so
              that more views are the fewer ones and some more
--sizes       pictures are scaled to cover the size and cut, also where dataset.resize is false
--gaussians   one evaluation; its predictions are reduced to so many Gaussians each
--pose-noise  every context camera is turned by so many degrees about a random axis through its
              center, and with --shift S also moved, by S times the longest distance of two context
              cameras for each degree; targets keep their cameras; draws depend on --seed and scene
--protocols   other data, zero-shot, by the names that `pmsplat data protocols` lists, each NAME or
              NAME=ROOT

Every point has its results.json in OUTPUT/QUANTITY-VALUE; sweep.json, sweep.csv and sweep.md have
the table of all, sweep.png the curves. An interrupted sweep goes on where it stopped; one that
ended begins anew; a folder that holds another sweep is refused. Processes that torchrun starts
share the scenes of each point.
"""

import argparse

from ._shared import (
    add_device,
    add_graph,
    add_limits,
    add_passes,
    add_precision,
    counts,
    numbers,
    output,
    sizes,
    terminal,
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides")
    parser.add_argument(
        "--model",
        action="append",
        help="a checkpoint or a published name (default: what `pmsplat train` left)",
    )
    varied = parser.add_mutually_exclusive_group(required=True)
    varied.add_argument("--views", type=counts, metavar="N,N,…", help="numbers of context views")
    varied.add_argument("--sizes", type=sizes, metavar="HxW,HxW,…", help="sizes of the pictures")
    varied.add_argument("--gaussians", type=counts, metavar="N,N,…", help="numbers of Gaussians")
    varied.add_argument(
        "--pose-noise", type=numbers, metavar="DEG,DEG,…", help="errors of the context cameras"
    )
    varied.add_argument(
        "--protocols", type=_names, metavar="NAME,NAME=ROOT,…", help="evaluation protocols"
    )
    parser.add_argument(
        "--shift",
        type=float,
        default=0.0,
        metavar="S",
        help="with --pose-noise: a share of the baseline for each degree, as 0.01 (default: 0)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="with --pose-noise: of the draws (default: 0)",
    )
    add_passes(parser)
    parser.add_argument("--output", required=True, help="folder")
    add_limits(parser)
    add_device(parser)
    add_graph(parser)
    add_precision(parser)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def run(arguments: argparse.Namespace) -> None:
    """Sweeps, and prints the table."""
    from ..data import rank_of_ranks
    from ..tasks.sweep import sweep

    shown = terminal(arguments)
    plan = _plan(arguments)
    curve = sweep(plan, arguments.model or [], arguments.output, shown.tell, shown.track)
    if not rank_of_ranks()[0]:  # the first rank speaks for all
        output().print(curve.table())
        output().print(f"written to {arguments.output}", soft_wrap=True)


def _plan(arguments: argparse.Namespace):
    from pathlib import Path

    from .. import config
    from ..tasks import sweep
    from ..tasks.evaluate import Options

    options = Options(
        limit=arguments.limit,
        device=arguments.device,
        graph=arguments.graph,
        precision=arguments.precision,
        steps=arguments.steps,
        anchors=arguments.anchors,
        strict=arguments.strict,
    )
    if arguments.protocols:
        return sweep.over_protocols(
            config.compose, arguments.overrides, options, arguments.protocols
        )
    experiment = config.compose(arguments.overrides)
    if arguments.views:
        return sweep.over_views(experiment, options, arguments.views, Path(arguments.output))
    if arguments.sizes:
        return sweep.over_sizes(experiment, options, arguments.sizes)
    if arguments.gaussians:
        return sweep.over_gaussians(experiment, options, arguments.gaussians)
    return sweep.over_pose_noise(
        experiment, options, arguments.pose_noise, arguments.shift, arguments.seed
    )
