"""measure an encoder on the scenes of an evaluation index

    pmsplat evaluate +experiment=re10k_small dataset.index=evaluation_index_re10k.json
    pmsplat evaluate +experiment=re10k_small --model outputs/re10k_small/model.safetensors
    pmsplat evaluate +experiment=re10k_small --model depthsplat-gs-small-re10k-256x256-view2

The experiment says which data and renderer; overrides as in `pmsplat train`. PSNR, SSIM and LPIPS
(VGG-16) are averaged over the targets of a scene, then over scenes, as in the published tables;
depth is measured where the data has it, and alone where the model predicts nothing else. LPIPS is
left out, and that is said, where its weights cannot be had. Where an index has targets between the
context views and outside them, PSNR stands for each apart, too.

With --geometry also the surface against the true depth: distances of the clouds (accuracy,
completeness, Chamfer), the cosine of the normals, and, near discontinuities of the true depth, the
relative error and the share of points that fly between the two surfaces.

RMSE and distances are in the unit of each scene as it lies in the data, also where the dataset
scales scenes for the network (dataset.scale_near).

Writes evaluation/results.json and evaluation/scenes.csv (a row per scene, as they come) into the
experiment's output folder, or into --output; with --baselines also nearest_view.json and
plane_sweep.json. Another run begins anew and replaces them.
"""

import argparse

from ._shared import output


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
    parser.add_argument("--output", help="folder (default: OUTPUT/evaluation)")
    parser.add_argument("--limit", type=int, help="only the first so many scenes of the index")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is one"
    )


def run(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict
    from pathlib import Path

    import torch
    from rich.progress import track

    from .. import config, registry
    from ..data._dataset import ChunkDataset
    from ..errors import UserError
    from ..evaluate import protocol, report
    from ..evaluate.baselines import BASELINES
    from ..evaluate.timing import Stopwatch
    from ..zoo.load import WEIGHTS, load

    experiment = config.compose(arguments.overrides)
    model_path = arguments.model or str(Path(experiment.output) / WEIGHTS)
    folder = Path(arguments.output or Path(experiment.output) / "evaluation")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda without a CUDA device", "cpu", "leave --device out")
    dataset = registry.build("data", experiment.dataset.name, experiment.dataset.settings)
    near = None
    if isinstance(dataset, ChunkDataset):
        near, dataset = dataset.recipe.scale_near, dataset.in_own_unit()
    scenes = dataset.evaluation(arguments.limit)
    model = load(model_path, arguments.weights).to(device).eval()
    lpips, notes = protocol.find_lpips() if getattr(model, "draws", True) else (None, ())

    console = output()
    for note in notes:
        console.print(note, style="yellow", soft_wrap=True)
    watch = Stopwatch(device, skip=5)
    renderer = experiment.renderer
    drawn = protocol.pipeline(model, renderer.name, renderer.background, watch)
    pipeline, geometry = protocol.in_own_unit(drawn, near), arguments.geometry
    columns = report.COLUMNS | (report.GEOMETRY if geometry else {})
    with report.rows_as_they_come(folder / "scenes.csv", columns) as append:
        batches = track(scenes, "evaluating", transient=True)
        measured = protocol.evaluate(pipeline, batches, device, lpips, append, geometry)
    result = protocol.Result(measured.rows, notes)
    about = {
        "model": model_path,
        "experiment": asdict(experiment),
        "seconds": watch.means(),
        "seconds_with_warm_up": watch.warm_up_included,
    }
    report.write_json(folder / "results.json", result, about)
    table = {}
    if arguments.baselines:
        for name, run_baseline in BASELINES.items():
            batches = track(dataset.evaluation(arguments.limit), name, transient=True)
            run_scaled = protocol.in_own_unit(run_baseline, near)
            table[name] = protocol.evaluate(run_scaled, batches, device, lpips, geometry=geometry)
            report.write_json(folder / f"{run_baseline.__name__}.json", table[name], {})
    table[Path(model_path).name] = measured
    console.print(report.table(table, experiment.name))
    if geometry:
        console.print(report.table(table, "geometry, in scene units", report.GEOMETRY))
    seconds = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in watch.means().items())
    seconds += " (warm-up included)" if watch.warm_up_included else ""
    console.print(f"per scene: {seconds}; written to {folder}", soft_wrap=True)
