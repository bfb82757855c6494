"""Measure an encoder on the scenes of an evaluation index

    pmsplat evaluate +experiment=re10k_small dataset.index=evaluation_index_re10k.json
    pmsplat evaluate +experiment=re10k_small --model outputs/re10k_small/model.safetensors
    pmsplat evaluate +experiment=re10k_small --model depthsplat-gs-small-re10k-256x256-view2

The experiment says which data and renderer; overrides as in `pmsplat train`. PSNR, SSIM and LPIPS
(VGG-16) are averaged over the targets of a scene, then over scenes, as in the published tables;
depth is measured where the data has it, and alone where the model predicts nothing else. Without
its weights LPIPS is skipped, with a message. Where an index has targets between the context views
and outside them, PSNR is also given for each group.

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
(a row per scene, as they come) into the experiment's output folder, or into --output; with
--baselines also nearest_view.json and plane_sweep.json, and with --gaussians budgets.png, PSNR
against the number of Gaussians. Another run begins anew and replaces them.
"""

import argparse

from ._shared import add_device, add_graph, add_passes, counts, output, terminal


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides")
    parser.add_argument(
        "--model", help="a checkpoint or a published name (default: what `pmsplat train` left)"
    )
    parser.add_argument("--weights", metavar="FILE", help="the file of a published model")
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="measure a copied photo and a plane sweep beside it",
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
    parser.add_argument("--output", help="folder (default: OUTPUT/evaluation)")
    parser.add_argument("--limit", type=int, help="only the first so many scenes of the index")
    add_device(parser)
    add_graph(parser)


def run(arguments: argparse.Namespace) -> None:
    """Evaluates, and prints the tables."""
    from .. import config
    from ..data import rank_of_ranks
    from ..evaluate import report
    from ..evaluate.budget import BUDGETS, budget_rows
    from ..evaluate.fitted import GIVEN
    from ..evaluate.series import STEPS
    from ..tasks.evaluate import Options, evaluate

    show, console = terminal(), output()
    experiment = config.compose(arguments.overrides)
    options = Options(
        baselines=arguments.baselines,
        geometry=arguments.geometry,
        limit=arguments.limit,
        device=arguments.device,
        graph=arguments.graph,
        steps=arguments.steps,
        anchors=arguments.anchors,
        gaussians=arguments.gaussians,
        poses=arguments.poses,
        optimize_poses=arguments.optimize_poses,
    )
    found = evaluate(
        experiment,
        arguments.model,
        arguments.output,
        options,
        arguments.weights,
        tell=show.tell,
        track=show.track,
    )
    if rank_of_ranks()[0]:
        return  # the first rank speaks for all
    protocol, means = found.model.protocol, found.model.means
    title = experiment.name if protocol == GIVEN else f"{experiment.name}, {protocol} poses"
    console.print(report.table(found.results, title))
    if protocol != GIVEN:
        poses = report.table({found.name: found.model}, "errors of the poses", report.POSES)
        console.print(poses)
    if table := STEPS.table(STEPS.rows(means), "after each step"):
        console.print(table)
    if table := BUDGETS.table(budget_rows(means), "with fewer Gaussians"):
        console.print(table)
    if arguments.geometry:
        title = "geometry, in scene units"
        console.print(report.table(found.results, title, report.GEOMETRY))
    cost = found.cost
    seconds = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in cost.seconds.items())
    seconds += " (warm-up included)" if cost.warm_up_included else ""
    console.print(f"per scene: {seconds}; written to {found.folder}", soft_wrap=True)
