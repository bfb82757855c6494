"""Measure an encoder on the scenes of an evaluation index

    pmsplat evaluate +experiment=re10k_small dataset.index=evaluation_index_re10k.json
    pmsplat evaluate +experiment=re10k_small --model outputs/re10k_small/model.safetensors
    pmsplat evaluate +experiment=re10k_small --model depthsplat-gs-small-re10k-256x256-view2

The experiment says which data and renderer; overrides as in `pmsplat train`. protocol=NAME takes
data, size and index of an evaluation that people report (`pmsplat data protocols` lists them):

    pmsplat evaluate +experiment=re10k_small protocol=acid-2v \\
        --model depthsplat-gs-small-re10k-256x256-view2

Scenes of the index that are null, missing or damaged are counted, and the rest is measured.

PSNR, SSIM and LPIPS (VGG-16) are averaged over the targets of a scene, then over scenes, as in the
published tables; depth is measured where the data has it, and alone where the model predicts
nothing else. Without its weights LPIPS is skipped, with a message. Where an index has targets
between the context views and outside them, PSNR is also given for each group.

A model that works in steps is measured before the first and after each of them; --steps sets how
many it takes. A model that gathers views in anchors does so in as many as it was trained for, or as
--anchors says.

With --gaussians the prediction is also reduced to so many Gaussians each, as by `pmsplat convert
--gaussians`, and a table says what that costs. Where the experiment has renderer.keep, only that
share of the Gaussians is drawn, the most opaque, and reduced.

With --geometry also the surface against the true depth: distances of the clouds (accuracy,
completeness, Chamfer), the cosine of the normals, and, near discontinuities of the true depth, the
relative error and the share of points that fly between the two surfaces.

RMSE and distances are in the unit of each scene as it lies in the data, also where scenes are
scaled to the unit of the model (dataset.scale_near, model.near).

With --poses a network finds the cameras of the context views, which are then brought to the given
ones by the similarity that fits best (protocol "fitted"); with --optimize-poses K the cameras of
the targets are then moved by K steps until their pictures look most like the photographs
("optimized-K"). Numbers of different protocols do not compare. A table shows the errors of the
poses.

    pmsplat evaluate +experiment=re10k_small --model depthsplat-gs-small-re10k-256x256-view2 \\
        --poses da3 --optimize-poses 200 --output outputs/re10k_da3_optimized_200

Writes evaluation/results.json (with the settings of the evaluated model) and evaluation/scenes.csv
(a row per scene) into the experiment's output folder, or into --output; with
--baselines also nearest_view.json and plane_sweep.json, and with --gaussians budgets.png, PSNR
against the number of Gaussians. results.json has every scene and every view, with SHA-256 of the
pixels, the weights and the index, and what a scene costs. An interrupted evaluation goes on where
it stopped; one that ended begins anew. Results of another model, another protocol or other scenes
are never replaced: each needs a folder.

Several models are measured in one run, each into a folder of its own; a table shows how each
differs from the first, scene by scene, with 95 % intervals (bootstrap over scenes):

    pmsplat evaluate +experiment=re10k_small --model outputs/a --model outputs/b --output outputs/ab

--report makes a page of all of them, as `pmsplat report` does, with pictures of the scenes in which
the first model is worst, median and best, which turn, and videos of them; all of that lies in
pictures/ beside each results.json.

Processes share the scenes where torchrun starts them:

    torchrun --nproc-per-node=8 -m pmsplat evaluate +experiment=re10k_small --model outputs/a

Jobs that do not know of each other measure a shard each, with --shard 1/16 to 16/16; the same
command without --shard then joins them.
"""

import argparse
from typing import TYPE_CHECKING

from ._shared import (
    add_device,
    add_graph,
    add_limits,
    add_passes,
    add_precision,
    counts,
    output,
    pose_noise,
    shard,
    terminal,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ..evaluate.noise import PoseNoise
    from ..tasks.evaluate import Comparison, Evaluation


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides")
    parser.add_argument(
        "--model",
        action="append",
        help="a checkpoint or a published name (default: what `pmsplat train` left); given several "
        "times, all of them are measured and compared with the first",
    )
    parser.add_argument("--weights", metavar="FILE", help="the file of a published model")
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="measure a copied photo and a plane sweep beside it (default: the model alone)",
    )
    parser.add_argument(
        "--geometry",
        action="store_true",
        help="measure points, normals and edges too, where the data has depth",
    )
    add_passes(parser)
    parser.add_argument(
        "--gaussians",
        type=counts,
        default=(),
        metavar="N,N,…",
        help="measure the prediction also reduced to so many Gaussians each, as 100000,50000",
    )
    parser.add_argument(
        "--poses",
        metavar="da3|vggt|auto",
        help="a network that finds the cameras (da3, da3-small, vggt, or the dotted name of your "
        "own module; auto: the first that can be had; default: cameras of the data)",
    )
    parser.add_argument(
        "--optimize-poses",
        type=int,
        default=0,
        metavar="K",
        help="with --poses: steps that move the cameras of the targets (default: 0, the fit alone)",
    )
    parser.add_argument(
        "--pose-noise",
        type=pose_noise,
        metavar="DEG[,SHARE]",
        help="turn the context cameras by so many degrees, and move them by a share of the longest "
        "distance between two",
    )
    parser.add_argument("--output", help="folder (default: OUTPUT/evaluation)")
    parser.add_argument(
        "--report", metavar="DIR", help="folder of a page with charts and pictures of all results"
    )
    parser.add_argument(
        "--shard",
        type=shard,
        metavar="I/N",
        help="measure the I-th of N parts of the scenes, which the same command without --shard "
        "joins (default: all scenes)",
    )
    add_limits(parser)
    add_device(parser)
    add_graph(parser)
    add_precision(parser)


def run(arguments: argparse.Namespace) -> None:
    """Evaluates, and prints the tables."""
    from .. import config
    from ..data import rank_of_ranks
    from ..errors import UserError, count_of
    from ..tasks.evaluate import Options, evaluate, evaluate_models, evaluate_shard

    show, console = terminal(), output()
    experiment = config.compose(arguments.overrides)
    options = Options(
        baselines=arguments.baselines,
        geometry=arguments.geometry,
        limit=arguments.limit,
        device=arguments.device,
        graph=arguments.graph,
        precision=arguments.precision,
        steps=arguments.steps,
        anchors=arguments.anchors,
        gaussians=arguments.gaussians,
        poses=arguments.poses,
        optimize_poses=arguments.optimize_poses,
        report=arguments.report,
        strict=arguments.strict,
        pose_noise=_make_noise(arguments.pose_noise),
    )
    models, folder = arguments.model or [], arguments.output
    if len(models) > 1 and arguments.weights:
        raise UserError(
            f"`weights={arguments.weights}` for {len(models)} models",
            "the file of one",
            "measure that model alone",
        )
    if part := arguments.shard:
        done = evaluate_shard(
            experiment, models, part, folder, options, arguments.weights, show.tell, show.track
        )
        if not rank_of_ranks()[0]:
            show.tell(
                f"Shard {part[0]}/{part[1]}: {count_of(done, 'scene')} measured and kept; the "
                "same command without --shard joins all shards and writes the results."
            )
        return
    if len(models) > 1:
        many = evaluate_models(experiment, models, folder, options, show.tell, show.track)
        if not rank_of_ranks()[0]:
            _print_comparison(console, many, experiment.name)
        return
    found = evaluate(
        experiment,
        next(iter(models), None),
        folder,
        options,
        arguments.weights,
        show.tell,
        show.track,
    )
    if not rank_of_ranks()[0]:  # the first rank speaks for all
        _print_evaluation(console, found, experiment.name)


def _make_noise(given: tuple[float, ...] | None) -> "PoseNoise | None":
    from ..evaluate.noise import PoseNoise

    if given is None:
        return None
    degrees, shift = (*given, 0.0)[:2]
    return PoseNoise(degrees, shift)


def _print_comparison(console: "Console", found: "Comparison", title: str) -> None:
    """A table of all, then how each differs from the first, and what each takes."""
    from ..evaluate import compare, report

    console.print(report.table(found.results, _name_table(title, found.evaluations[0])))
    for differences in found.differences:
        if differences:
            console.print(compare.difference_table(differences))
    for one in found.evaluations:
        console.print(f"{one.name}: {_describe_coverage(one)}{_describe_time(one)}", soft_wrap=True)
    console.print(f"written to {found.folder}", soft_wrap=True)


def _print_evaluation(console: "Console", found: "Evaluation", title: str) -> None:
    """A table of the model beside the baselines, and one for all that is measured besides."""
    from ..evaluate import report
    from ..evaluate.budget import BUDGETS, budget_rows
    from ..evaluate.fitted import GIVEN
    from ..evaluate.series import STEPS

    protocol, means = found.model.protocol, found.model.means
    console.print(report.table(found.results, _name_table(title, found)))
    if protocol != GIVEN:
        poses = report.table({found.name: found.model}, "errors of the poses", report.POSES)
        console.print(poses)
    if table := STEPS.table(STEPS.rows(means), "after each step"):
        console.print(table)
    if table := BUDGETS.table(budget_rows(means), "with fewer Gaussians"):
        console.print(table)
    if not means.keys().isdisjoint(report.ALIGNED):
        console.print(report.table(found.results, "depth, aligned", report.ALIGNED))
    if not means.keys().isdisjoint(report.GEOMETRY):
        console.print(report.table(found.results, "geometry, in scene units", report.GEOMETRY))
    time = _describe_time(found)
    console.print(
        f"{_describe_coverage(found)}per scene: {time}; written to {found.folder}", soft_wrap=True
    )


def _name_table(title: str, found: "Evaluation") -> str:
    """The title, with the protocol and the precision where they are not the usual ones."""
    from ..evaluate.fitted import GIVEN
    from ..evaluate.identity import name_precision

    protocol = found.model.protocol
    named = title if protocol == GIVEN else f"{title}, {protocol} poses"
    return name_precision(named, found.identity.precision)


def _describe_coverage(found: "Evaluation") -> str:
    """How many scenes of the index were measured."""
    coverage = found.model.coverage
    return "" if coverage is None else f"{coverage.said}; "


def _describe_time(found: "Evaluation") -> str:
    """The milliseconds of each part of a scene."""
    cost = found.cost
    parts = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in cost.seconds.items())
    return parts + (" (warm-up included)" if cost.warm_up_included else "")
