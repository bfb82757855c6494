"""The whole path in minutes: procedural rooms, a tiny encoder trained on them and measured."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from .. import registry, train
from ..errors import UserError
from ..evaluate import baselines, protocol, report
from ..io.files import write_text
from ..progress import Track, silently
from ..train import Experiment
from ..types import Batch, StepOutput
from ..view.figures import color_range, colorize_depth, contact_sheet
from ..zoo.load import load
from .predict import Options, predict

MARK = "demo.json"  # a folder with this file is a demo of ours
PICTURED, PICTURE_HEIGHT = 3, 160  # scenes in the picture, and the height of its images
NEAREST, SWEEP = baselines.BASELINES
BEFORE, AFTER = "before training", "after training"


@dataclass(frozen=True)
class Outcome:
    """Where everything is, and what was measured: metrics by method and name."""

    folder: Path
    results: dict[str, protocol.Result]
    checkpoint: Path
    picture: Path
    gaussians: Path
    video: Path

    @property
    def table(self) -> Table:
        return report.table(self.results, "unseen rooms, views between two photos")


def train_demo(
    experiment: Experiment,
    output: str | Path,
    tell: Callable[[str], None],
    track: Track = silently,
) -> Outcome:
    """Makes the experiment's rooms, trains on them, and leaves in `output`:

        results.json, table.txt     PSNR, SSIM and depth error on rooms that training never saw, of
                                    two baselines and of the network before and after training
        before_after.png            context | target | renderings | depth, of a few of those rooms
        training/                   the run: model.safetensors, logs, pictures on the way
        prediction/                 one room as `pmsplat predict` leaves it: .ply, video, depth

    The data is kept where the experiment says. An earlier demo in `output` is replaced. The same
    experiment gives the same numbers on the same machine. Raises UserError where `output` holds
    something else.
    """
    folder = _claim_folder(Path(output), experiment)
    dataset = registry.build("data", experiment.dataset.name, experiment.dataset.settings)
    batches = list(dataset.evaluation())
    torch.manual_seed(experiment.seed)  # as training does: the network that it starts from
    untrained = registry.build("models", experiment.model.name, experiment.model.settings)
    methods = {
        **baselines.BASELINES,
        BEFORE: _build_pipeline(untrained, experiment),
    }
    tell(f"Measuring the baselines on {len(batches)} unseen rooms.")
    results = {name: protocol.evaluate(run, batches) for name, run in methods.items()}
    checkpoint = train.run(replace(experiment, output=str(folder / "training")))
    trained = load(checkpoint)
    methods[AFTER] = _build_pipeline(trained, experiment)
    results[AFTER] = protocol.evaluate(methods[AFTER], batches)
    picture = folder / "before_after.png"
    _draw_scenes(picture, batches[:PICTURED], methods)
    tell("Predicting one unseen room.")
    room = f"{experiment.dataset.settings.root}/test:{batches[0].scene[0]}"
    size = batches[0].context.size
    predict(room, trained, folder / "prediction", Options(views=2, size=size), track=track)
    outcome = Outcome(
        folder=folder,
        results=results,
        checkpoint=checkpoint,
        picture=picture,
        gaussians=folder / "prediction" / "gaussians.ply",
        video=folder / "prediction" / "video.mp4",
    )
    _write_tables(outcome)
    return outcome


def _claim_folder(folder: Path, experiment: Experiment) -> Path:
    """The folder, emptied of an earlier demo's results."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file", "a folder", "choose another `output`")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise UserError(
            f"{folder} holds other files", "a new or empty folder", "choose another `output`"
        )
    for stale in ("training", "prediction"):
        if (folder / stale).is_dir():
            shutil.rmtree(folder / stale)
    write_text(folder / MARK, json.dumps(asdict(experiment), indent=1) + "\n")
    return folder


def _build_pipeline(model: nn.Module, experiment: Experiment) -> protocol.Pipeline:
    renderer = experiment.renderer
    return protocol.pipeline(
        model.eval(), renderer.name, renderer.background, drawn=protocol.Drawn(renderer.keep)
    )


@torch.no_grad()
def _draw_scenes(
    path: Path, batches: Sequence[Batch], methods: dict[str, protocol.Pipeline]
) -> None:
    """Two rows a scene: what each method renders, and what depth it found."""
    rows: list[tuple[str, list[Tensor]]] = []
    for batch in batches:
        steps = {name: run(batch) for name, run in methods.items()}
        photos = [*batch.context.images[0], batch.target.images[0, 0]]
        drawn = [step.renderings[-1].color[0, 0] for step in steps.values()]
        rows.append((f"context | context | target | {' | '.join(steps)}", photos + drawn))
        depths = {name: depth for name, step in steps.items() for depth in _first_depth(step)}
        true = [] if batch.context.depth is None else [batch.context.depth[0, 0]]
        near, far = color_range(torch.stack(true or list(depths.values())))
        maps = [colorize_depth(depth, near, far) for depth in [*true, *depths.values()]]
        shown = " | ".join([*(["true depth"] if true else []), *depths])
        rows.append((f"first context view, {near:.2g} to {far:.2g} m: {shown}", maps))
    contact_sheet(rows, path, height=PICTURE_HEIGHT)


def _first_depth(step: StepOutput) -> list[Tensor]:
    """The depth of the first context view, if there is any."""
    order = step.prediction.indices(step.batch.context)
    return [depth[0, order.index(0)] for depth in step.prediction.depths[-1:] if 0 in order]


def _write_tables(outcome: Outcome) -> None:
    results = {
        name: {"means": result.means, "scenes": [asdict(row) for row in result.rows]}
        for name, result in outcome.results.items()
    }
    write_text(outcome.folder / "results.json", json.dumps(results, indent=1) + "\n")
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        console.print(outcome.table)
    write_text(outcome.folder / "table.txt", captured.get())
