"""An encoder measured on the scenes of an evaluation index: tables in memory, files in a folder."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path

from torch import nn

from .. import registry
from ..contracts import (
    PoseTeacher,
    count_anchors,
    count_steps,
    dataset_traits,
    encoder_traits,
    require,
)
from ..errors import UserError
from ..evaluate import protocol, report
from ..evaluate.baselines import BASELINES
from ..evaluate.budget import BUDGETS, COUNT, draw_budgets
from ..evaluate.fitted import PoseProtocol
from ..evaluate.protocol import Result
from ..evaluate.series import STEPS
from ..evaluate.timing import Stopwatch
from ..progress import Track, silently
from ..scene.pose_networks import check_choice, pick_teacher
from ..train.settings import Component, Experiment, Renderer
from ..types import Batch, Cameras, Gaussians, Views
from ..zoo.infer import depth_only_error
from ..zoo.load import WEIGHTS, Loaded, open_model
from ..zoo.poses import search_cameras
from .options import as_graph, pick_device

log = logging.getLogger(__name__)

WARM_UP = 5  # scenes whose times do not count


@dataclass(frozen=True)
class Options:
    """What to measure.

    `baselines`: a copied photo and a plane sweep too; `geometry`: points, normals and edges too,
    where the data has depth; `limit`: only the first so many scenes of the index; `graph`: the
    network runs as CUDA graphs; `steps`: how many steps the model takes, if it has some; `anchors`:
    in how many views it gathers all, at most, if it does; `gaussians`: the answer is also reduced
    to so many Gaussians each, and measured.

    `poses`: what finds the cameras of the context views, as `scene.PhotoOptions.poses` names it,
    and `optimize_poses` by how many steps the cameras of the targets are then moved (see
    `evaluate.fitted`, which has the protocols). None: cameras are those of the data.
    """

    baselines: bool = False
    geometry: bool = False
    limit: int | None = None
    device: str = "auto"
    graph: bool = False
    steps: int | None = None
    anchors: int | None = None
    gaussians: tuple[int, ...] = ()
    poses: str | PoseTeacher | None = None
    optimize_poses: int = 0

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(
                f"`limit={self.limit}`", "at least 1", "leave `limit` out to measure all scenes"
            )
        for count in self.gaussians:
            if type(count) is not int or count < 1:
                raise UserError(
                    f"`gaussians={count!r}`",
                    "whole numbers of at least 1",
                    "give those that a viewer can draw, such as 100000 and 50000",
                )


@dataclass(frozen=True)
class Evaluation:
    """The results of a model and of the baselines by name, and the mean seconds of a scene.

    `warm_up_included`: there were too few scenes to leave the slow first ones out of `seconds`.
    """

    name: str
    model: Result
    baselines: Mapping[str, Result]
    seconds: Mapping[str, float]
    warm_up_included: bool
    folder: Path

    @property
    def results(self) -> dict[str, Result]:
        """All results by the name of their method, the model last."""
        return {**self.baselines, self.name: self.model}


def evaluate(
    experiment: Experiment,
    model: str | Path | nn.Module | None = None,
    output: str | Path | None = None,
    options: Options | None = None,
    weights: str | Path | None = None,
    tell: Callable[[str], None] = log.info,
    track: Track = silently,
) -> Evaluation:
    """Measures a model on the data of an experiment, as the published tables do.

    `model` is a name or path for `pmsplat.load`, or an encoder; None: what training left in the
    experiment's output. Scenes that come in units of their own are scaled to the unit of the model,
    and lengths are measured in the unit of each scene. A model that works in steps is measured
    before the first and after each. Where a network finds the cameras, every scene is scaled to the
    unit of the model. Into `output` (None: OUTPUT/evaluation) go

        results.json      means, all scenes, and what was measured: the experiment with the
                          component and the settings of the model that was loaded; "psnr_step1" is
                          the PSNR after one step, "psnr_gaussians50000" that of the answer with
                          as many Gaussians, and "gaussians" how many there are otherwise; with
                          `poses`, the "protocol", what found the "poses", how many steps moved the
                          cameras of the targets, the errors of the poses, and which scenes could
                          not be measured
        scenes.csv        a row per scene, as they come
        nearest_view.json, plane_sweep.json     with `baselines`
        budgets.png       PSNR against the number of Gaussians, with `gaussians`

    `tell` gets what is left out. Raises UserError where the model, the data or the index is missing
    or does not fit, for `steps` and `anchors` of a model that has none, and for more `gaussians`
    than there are.
    """
    chosen = options or Options()
    folder = Path(output or Path(experiment.output) / "evaluation")
    device = pick_device(chosen.device)
    cameras = PoseProtocol(_pick_poses(chosen, tell), chosen.optimize_poses)
    predicted = cameras.teacher is not None

    # Open the data and the model.
    dataset = registry.build("data", experiment.dataset.name, experiment.dataset.settings)
    owner = f"the dataset {experiment.dataset.name!r}"
    scenes = require(dataset, "evaluation", owner, "evaluation")(chosen.limit)
    path = Path(experiment.output) / WEIGHTS if model is None else model
    loaded = _open(path, weights)
    encoder = loaded.model.to(device).eval()
    name = loaded.component if isinstance(path, nn.Module) else str(path)
    traits = encoder_traits(encoder)
    steps = count_steps(chosen.steps, traits.steps)
    steps = None if traits.steps is None else steps
    anchors = count_anchors(chosen.anchors, traits.anchors)
    if chosen.gaussians and not traits.draws:
        raise depth_only_error()
    lpips, notes = protocol.find_lpips() if traits.draws else (None, ())
    for note in notes:
        tell(note)

    # Measure the model, scene by scene.
    watch = Stopwatch(device, skip=WARM_UP)
    renderer = experiment.renderer
    pipeline = protocol.pipeline(
        as_graph(encoder, chosen.graph, device),
        renderer.name,
        renderer.background,
        watch,
        scale_near=dataset_traits(dataset).scale_near or predicted,
        steps=steps,
        all_levels=steps is not None,
        keep=renderer.keep,
        budgets=chosen.gaussians,
        aim=_aim(chosen.optimize_poses, renderer),
        anchors=chosen.anchors,
    )
    columns = report.COLUMNS | (report.GEOMETRY if chosen.geometry else {})
    columns |= {} if steps is None else STEPS.columns(range(steps + 1))
    columns |= BUDGETS.columns(chosen.gaussians) | ({COUNT: ("", 0)} if chosen.gaussians else {})
    columns |= report.POSES if predicted else {}
    with report.rows_as_they_come(folder / "scenes.csv", columns) as append:
        batches = cameras.scenes(_track(track, scenes, "evaluating"), device)
        found = protocol.evaluate(
            pipeline,
            batches,
            device,
            lpips,
            append,
            chosen.geometry,
            steps is not None,
            batches.errors,
        )
    for note in batches.notes:
        tell(note)
    result = replace(found, notes=notes + batches.notes, protocol=cameras.name)
    measured = replace(experiment, model=Component(loaded.component, loaded.settings))
    about = {
        "model": name,
        "steps": steps,
        "anchors": anchors or None,
        "experiment": asdict(measured),
        "seconds": watch.means(),
        "seconds_with_warm_up": watch.warm_up_included,
        **cameras.facts,
    }
    report.write_json(folder / "results.json", result, about)
    if chosen.gaussians:
        draw_budgets(folder / "budgets.png", result.means, Path(name).name)

    # Measure the baselines, which give the same in every unit of length.
    baselines = {}
    for label, run in BASELINES.items() if chosen.baselines else ():
        batches = _track(track, dataset.evaluation(chosen.limit), label)
        batches = cameras.scenes(batches, device)
        found = protocol.evaluate(run, batches, device, lpips, geometry=chosen.geometry)
        found = replace(found, protocol=cameras.name)
        report.write_json(folder / f"{run.__name__}.json", found, cameras.facts)
        baselines[label] = found
    return Evaluation(
        Path(name).name, result, baselines, watch.means(), watch.warm_up_included, folder
    )


def _pick_poses(options: Options, tell: Callable[[str], None]) -> PoseTeacher | None:
    """The network that finds the cameras; UserError where the options do not fit together."""
    if type(options.optimize_poses) is not int or options.optimize_poses < 0:
        raise UserError(
            f"`optimize_poses={options.optimize_poses}`",
            "a whole number from 0",
            "leave it out to measure by the fit alone",
        )
    if options.poses is None and options.optimize_poses:
        raise UserError(
            f"`optimize_poses={options.optimize_poses}` with the cameras of the data",
            "cameras that a network finds",
            "add `poses`, such as `poses=da3`, or leave `optimize_poses` out",
        )
    if options.baselines and options.optimize_poses:
        raise UserError(
            f"`baselines` with `optimize_poses={options.optimize_poses}`, which moves cameras for "
            "the model alone",
            "methods whose numbers compare",
            "leave one of them out",
        )
    if options.poses is None:
        return None
    check_choice(options.poses)
    teacher = pick_teacher(options.poses, tell)
    if teacher is None:
        raise UserError(
            f"`poses={options.poses}`, where pycolmap would find the cameras",
            "a network, as an index has too few photos of a scene for pycolmap",
            "choose `poses=da3` or `poses=vggt`",
        )
    teacher.prepare()
    return teacher


def _aim(steps: int, renderer: Renderer) -> protocol.Aim | None:
    """What moves the cameras of the targets; None for no steps."""
    if not steps:
        return None

    def aim(gaussians: Gaussians, views: Views) -> Cameras:
        return search_cameras(gaussians, views, steps, renderer.name, renderer.background)

    return aim


def _open(model: str | Path | nn.Module, weights: str | Path | None) -> Loaded:
    """The model with its component and settings, which an encoder in memory need not have."""
    if isinstance(model, nn.Module):
        settings = getattr(model, "cfg", None)
        return Loaded(model, type(model).__name__, settings if is_dataclass(settings) else None)
    return open_model(model, weights)


def _track(track: Track, scenes: Iterable[Batch], description: str) -> Iterable[Batch]:
    """The scenes, with progress shown."""
    return track(scenes, description, len(scenes) if isinstance(scenes, Sized) else 0)
