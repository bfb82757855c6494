"""An encoder measured on the scenes of an evaluation index: tables in memory, files in a folder."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ..contracts import PoseTeacher
from ..errors import UserError
from ..evaluate import report
from ..evaluate.budget import draw_budgets
from ..evaluate.compare import Difference, compare, write_differences
from ..evaluate.cost import Summary, summarize
from ..evaluate.identity import Identity
from ..evaluate.journal import shard_folder
from ..evaluate.noise import PoseNoise
from ..evaluate.pages.report import write_report
from ..evaluate.pictures import choose_scenes, forget_pictures
from ..evaluate.protocol import Result
from ..evaluate.ranks import open_ranks
from ..evaluate.runs import BASELINE_NAMES, RESULTS, Protocol, Run, name_runs, read_run
from ..io.files import one_of_writers, sole_writer
from ..progress import Track, silently
from ..train.settings import Experiment
from ..zoo.compile import Precision
from ..zoo.load import WEIGHTS, open_model
from ._measured import Method, Setting, open_baselines, open_method, open_setting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What to measure.

    `baselines`: a copied photo and a plane sweep too; `geometry`: points, normals and edges too,
    where the data has depth; `limit`: only the first so many scenes of the index; `graph`: the
    network runs as CUDA graphs; `precision`: that of the network (see `pmsplat.compile`), of which
    each is an evaluation of its own; `steps`: how many steps the model takes, if it has some;
    `anchors`: in how many views it gathers all, at most, if it does; `gaussians`: the answer is
    also reduced to so many Gaussians each, and measured.

    `poses`: what finds the cameras of the context views, as `scene.PhotoOptions.poses` names it,
    and `optimize_poses` by how many steps the cameras of the targets are then moved (see
    `evaluate.fitted`, which has the protocols). None: cameras are those of the data.

    `pose_noise`: how wrong the context cameras are made (see `evaluate.noise`). `resumable`: the
    scenes that are done stay beside the results, so that the same evaluation measures nothing
    again.

    `strict`: an error where a scene of the index is missing, or cannot be read or used; else it is
    counted (see `evaluate.coverage`) and the rest is measured.

    `report`: the folder of a page of all results, with pictures of the worst, the median and the
    best scenes of the (first) model.
    """

    baselines: bool = False
    geometry: bool = False
    limit: int | None = None
    device: str = "auto"
    graph: bool = False
    precision: Precision = "float32"
    steps: int | None = None
    anchors: int | None = None
    gaussians: tuple[int, ...] = ()
    poses: str | PoseTeacher | None = None
    optimize_poses: int = 0
    report: str | Path | None = None
    strict: bool = False
    pose_noise: PoseNoise | None = None
    resumable: bool = False

    def __post_init__(self) -> None:
        if self.baselines and self.optimize_poses:
            raise UserError(
                f"`baselines` with `optimize_poses={self.optimize_poses}`, which moves cameras for "
                "the model alone",
                "methods whose numbers compare",
                "leave one of them out",
            )
        if self.pose_noise is not None and (self.poses is not None or self.optimize_poses):
            raise UserError(
                f"`pose_noise={self.pose_noise.degrees:g}` with cameras that a network finds",
                "cameras of the data, that are made wrong",
                "leave one of them out",
            )
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
    """The results of a model and of the baselines by name, the model's identity, and the folder."""

    name: str
    model: Result
    baselines: Mapping[str, Result]
    folder: Path
    identity: Identity

    @property
    def results(self) -> dict[str, Result]:
        """All results by the name of their method, the model last."""
        return {**self.baselines, self.name: self.model}

    @property
    def cost(self) -> Summary:
        """What the model takes for a scene."""
        return summarize([row.cost for row in self.model.rows if row.cost is not None])


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
                          not be measured; "per_view" has every target with the SHA-256 of its
                          pixels, "identity" what the results are of, "cost" what a scene takes, and
                          "definitions" says what the numbers are
        scenes.csv        a row per scene
        nearest_view.json, plane_sweep.json     with `baselines`
        budgets.png       PSNR against the number of Gaussians, with `gaussians`
        pictures/         of a few scenes, with `report`: pictures, Gaussians and a video (see
                          `evaluate.pictures` and `evaluate.tours`)

    and, until results.json is written, the scenes that are done (see `evaluate.journal`): an
    interrupted evaluation of the same goes on after them. Results of the same model and scenes are
    replaced, others never. Processes of torchrun share the scenes,
    all return the results of all, and the first of them writes.

    `tell` gets what is left out. Raises UserError where the model, the data or the index is missing
    or does not fit, for `steps` and `anchors` of a model that has none, for more `gaussians` than
    there are, and where `output` has results of another model, protocol or other scenes.
    """
    folder = Path(output or Path(experiment.output) / "evaluation")
    with open_ranks() as ranks:
        own = model is None
        setting = open_setting(experiment, options or Options(), ranks, tell, track, own=own)
        method = open_method(setting, model, weights)
        setting.check_replaces(method.name, folder / RESULTS)
        found = _evaluate(setting, method, folder)
        if ranks.first and setting.options.report is not None:
            _write_page(setting.options.report, [found], tell)
    return found


@dataclass(frozen=True)
class Comparison:
    """Models on the same scenes: their evaluations in order, and how each but the first differs
    from the first."""

    evaluations: tuple[Evaluation, ...]
    differences: tuple[tuple[Difference, ...], ...]
    folder: Path

    @property
    def results(self) -> dict[str, Result]:
        """All results by the name of their method: baselines, then the models."""
        models = {one.name: one.model for one in self.evaluations}
        return {**self.evaluations[0].baselines, **models}


def evaluate_models(
    experiment: Experiment,
    models: Sequence[str | Path],
    output: str | Path | None = None,
    options: Options | None = None,
    tell: Callable[[str], None] = log.info,
    track: Track = silently,
) -> Comparison:
    """Measures several models as `evaluate` does, one after the other, and compares them.

    Each has a folder in `output` (None: OUTPUT/evaluation), called as `name_models` says; the
    baselines are in that of the first. comparison.json has the differences of each other model to
    the first, scene by scene, with intervals (see `evaluate.compare`). Raises UserError as
    `evaluate` does, and for a model that is given twice.
    """
    folder = Path(output or Path(experiment.output) / "evaluation")
    names, chosen, tell = name_models(models), options or Options(), say_once(tell)
    for model in models[1:]:
        open_model(model)  # what is missing is told before hours of work
    found: list[Evaluation] = []
    with open_ranks() as ranks:
        setting = open_setting(experiment, chosen, ranks, tell, track)
        for name, model in zip(names, models, strict=True):
            setting.check_replaces(str(model), folder / name / RESULTS)
        for name, model in zip(names, models, strict=True):
            mine = replace(chosen, baselines=chosen.baselines and not found)
            setting = replace(setting, options=mine)
            first = found[0].model if found else None
            one = _evaluate(setting, open_method(setting, model, None), folder / name, first)
            found.append(replace(one, name=name))
        first, *others = (
            Run(
                one.name,
                one.folder / RESULTS,
                Protocol(index_hash=one.identity.index, poses=one.model.protocol),
                tuple(one.model.rows),
            )
            for one in found
        )
        differences = tuple(tuple(compare(other, first)) for other in others)
        if ranks.first:
            write_differences(folder / "comparison.json", [d for some in differences for d in some])
            if chosen.report is not None:
                _write_page(chosen.report, found, tell)
    return Comparison(tuple(found), differences, folder)


def evaluate_shard(
    experiment: Experiment,
    models: Sequence[str | Path],
    shard: tuple[int, int],
    output: str | Path | None = None,
    options: Options | None = None,
    weights: str | Path | None = None,
    tell: Callable[[str], None] = log.info,
    track: Track = silently,
) -> int:
    """Measures shard (i, n) of the scenes and keeps them in `output`, until `evaluate` or, of
    several models, `evaluate_models` with the same arguments joins all shards and measures what
    they lack. How many scenes of the shard are done.

    Shards may be measured at the same time, on machines of the same kind that share the folder.
    Nothing is drawn for `options.report`. Raises UserError as `evaluate` does, and where another
    process measures the same shard.
    """
    folder = Path(output or Path(experiment.output) / "evaluation")
    names = name_models(models) if len(models) > 1 else [""]
    chosen, tell, done = replace(options or Options(), report=None), say_once(tell), 0
    with open_ranks() as ranks:
        setting = open_setting(experiment, chosen, ranks, tell, track, own=not models)
        for model in models[1:]:
            open_model(model, weights)  # what is missing is told before hours of work
        for name, model in zip(names, models or [None], strict=True):
            method, place = open_method(setting, model, weights), folder / name
            setting.check_replaces(method.name, place / RESULTS)
            with ExitStack() as locks:
                if ranks.first:
                    locks.enter_context(one_of_writers(place))
                    locks.enter_context(sole_writer(shard_folder(place, shard)))
                done = setting.measure_shard(method, place / RESULTS, shard)
                if chosen.baselines and name == names[0]:
                    for file, baseline in open_baselines(setting, method).items():
                        setting.measure_shard(baseline, place / f"{file}.json", shard)
    return done


def say_once(tell: Callable[[str], None]) -> Callable[[str], None]:
    """`tell`, without what it was told before: of several models the same is left out."""
    said = set[str]()

    def once(text: str) -> None:
        if text not in said:
            said.add(text)
            tell(text)

    return once


def name_models(models: Sequence[str | Path]) -> list[str]:
    """What models are called beside each other: the end of their paths that tells them apart.

    outputs/a/model.safetensors and outputs/b/model.safetensors are a and b. UserError for a model
    that is given twice.
    """
    paths = [Path(model) for model in models]
    paths = [path.parent if path.name == WEIGHTS else path for path in paths]
    parts = [path.with_suffix("").parts if path.is_file() else path.parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["-".join(some[-length:]) for some in parts]
        if len(set(names)) == len(names):
            return names
    twice = next(str(model) for model in models if list(models).count(model) > 1)
    raise UserError(f"`model={twice}`, given twice", "different models", "leave one of them out")


def _evaluate(
    setting: Setting, method: Method, folder: Path, first: Result | None = None
) -> Evaluation:
    """Measures a model, and the baselines where they are wanted.

    For a page, scenes are drawn that are chosen by `first`; None: by the model itself.
    """
    name, chosen = Path(method.name).name, setting.options
    writing = sole_writer(folder) if setting.ranks.first else nullcontext()
    with writing:
        result = setting.measure(method, folder / RESULTS)
        for note in result.notes[len(method.notes) :]:
            setting.tell(note)
        if setting.ranks.first:
            report.write_csv(folder / "scenes.csv", result.rows)
            forget_pictures(folder)
            if chosen.gaussians:
                draw_budgets(folder / "budgets.png", result.means, name)
        baselines = open_baselines(setting, method).items() if chosen.baselines else ()
        others = {m.name: setting.measure(m, folder / f"{file}.json") for file, m in baselines}
        if setting.ranks.first and chosen.report is not None:
            setting.draw(method, result.rows, choose_scenes((first or result).rows), folder)
    return Evaluation(name, result, others, folder, method.identity)


def _write_page(
    folder: str | Path, found: Sequence[Evaluation], tell: Callable[[str], None]
) -> None:
    """The page of all models, then the baselines."""
    first, labels = found[0], BASELINE_NAMES.items()
    paths = [one.folder / RESULTS for one in found]
    paths += [first.folder / f"{file}.json" for file, label in labels if label in first.baselines]
    page = write_report(Path(folder), name_runs([read_run(path) for path in paths]))
    tell(f"Open {page} in a browser.")
