"""Evaluations that differ in one quantity: each has results of its own, all together a curve.

An interrupted sweep goes on: the scenes of every point stay beside its results (see
`evaluate.journal`) until all points are measured. plan.json says what is measured.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import registry
from ..contracts import dataset_traits, require
from ..data import (
    Index,
    centers_of,
    find_protocol,
    hash_frames,
    read_index,
    read_walks,
    vary_views,
    write_index,
)
from ..errors import UserError, count_of
from ..evaluate.budget import budget_rows
from ..evaluate.curve import GAUSSIANS, Curve, Point
from ..evaluate.journal import Journal
from ..evaluate.noise import PoseNoise
from ..evaluate.ranks import open_ranks
from ..evaluate.runs import RESULTS
from ..evaluate.series import METRICS
from ..io.files import write_text
from ..progress import Track, silently
from ..train.settings import Component, Experiment
from ..zoo.load import open_model
from .evaluate import Evaluation, Options, evaluate, name_models, say_once

log = logging.getLogger(__name__)

SPLIT = "test"
PLAN = "plan.json"
MEASURED = (  # options that change results
    "limit", "steps", "anchors", "gaussians", "pose_noise", "precision",
)  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """One point: what it is called, its place on the axis (None: a name), and what is measured."""

    value: str
    x: float | None
    experiment: Experiment
    options: Options


@dataclass(frozen=True)
class Plan:
    """The points of a sweep; `word` names their folders, `quantity` is what the axis says.

    `indices` are those that it brings, by their paths.
    """

    word: str
    quantity: str
    setups: tuple[Setup, ...]
    notes: tuple[str, ...] = field(default=())
    indices: Mapping[str, Index] = field(default_factory=dict)


def over_views(
    experiment: Experiment, options: Options, counts: Sequence[int], folder: Path
) -> Plan:
    """Other numbers of context views, targets and scenes the same (`data.vary_views`).

    The indices will be in FOLDER/indices. UserError where the data has no index, or no scene
    with so many frames.
    """
    for count in counts:
        if count < 2:
            raise UserError(
                f"`views={count}`", "2 or more context views", "leave the smaller numbers out"
            )
    name = experiment.dataset.name
    dataset = registry.build("data", name, experiment.dataset.settings)
    traits = dataset_traits(dataset)
    if traits.index is None:
        raise UserError(
            "`views` without an evaluation index",
            "an index, whose targets all numbers of views share",
            "set dataset.index, or name a protocol",
        )
    index = read_index(traits.index)
    experiment = replace(experiment, protocol=None)  # whose number of views is one of these
    split = require(dataset, "split", f"the dataset {name!r}", "a sweep over views")(SPLIT)
    centers = centers_of(read_walks(split, index))
    known = {key: frames for key, frames in index.items() if key in centers}
    varied = vary_views(known, centers, counts)
    paths = {count: str(folder / "indices" / f"views-{count}.json") for count in counts}
    setups = tuple(
        Setup(str(count), count, _with(experiment, index=paths[count]), options) for count in counts
    )
    left = len(index) - len(varied[max(counts)])
    note = f"{count_of(left, 'scene')} of the index without {max(counts)} such frames or cameras"
    notes = (f"{note}: left out.",) if left else ()
    indices = {path: varied[count] for count, path in paths.items()}
    return Plan("views", "context views", setups, notes, indices)


def over_sizes(experiment: Experiment, options: Options, sizes: Sequence[tuple[int, int]]) -> Plan:
    """Pictures of other sizes (height, width); they are scaled, where the data would be cut."""
    scaled = {"resize": True} if hasattr(experiment.dataset.settings, "resize") else {}
    setups = tuple(
        Setup(f"{h}x{w}", h * w, _with(experiment, size=[h, w], **scaled), options)
        for h, w in sizes
    )
    return Plan("size", "pixels", setups)


def over_gaussians(experiment: Experiment, options: Options, counts: Sequence[int]) -> Plan:
    """Fewer Gaussians: one evaluation, whose prediction is reduced to each number."""
    setup = Setup("all", None, experiment, replace(options, gaussians=tuple(counts)))
    return Plan("gaussians", GAUSSIANS, (setup,))


def over_pose_noise(
    experiment: Experiment, options: Options, degrees: Sequence[float], shift: float, seed: int
) -> Plan:
    """Context cameras wrong by so many degrees, and moved by `shift` of the baseline for each."""
    setups = tuple(
        Setup(
            f"{angle:g}", angle, experiment,
            replace(options, pose_noise=PoseNoise(angle, shift * angle, seed)),
        )
        for angle in degrees
    )  # fmt: skip
    return Plan("pose_noise", "pose noise, degrees", setups)


def over_protocols(
    compose: Callable[[Sequence[str]], Experiment],
    overrides: Sequence[str],
    options: Options,
    names: Sequence[str],
) -> Plan:
    """Other data, by the names of protocols, each NAME or NAME=ROOT."""
    setups = []
    for given in names:
        name, _, root = given.partition("=")
        find_protocol(name)
        more = [f"protocol={name}", *([f"dataset.root={root}"] if root else [])]
        setups.append(Setup(name, None, compose([*overrides, *more]), options))
    return Plan("protocol", "protocol", tuple(setups))


def sweep(
    plan: Plan,
    models: Sequence[str | Path],
    output: str | Path,
    tell: Callable[[str], None] = log.info,
    track: Track = silently,
) -> Curve:
    """Measures every point of a plan with every model, and writes what `evaluate.curve` says.

    Results are in OUTPUT/QUANTITY-VALUE, of several models in a folder of each; no model: what
    training left. The same call goes on after an interruption. UserError as `evaluate` raises it,
    and where the folder holds another sweep.
    """
    folder, tell = Path(output), say_once(tell)
    _check(plan)
    described = _describe(plan, models)
    _check_folder(folder, described)
    for model in models:
        open_model(model)  # what is missing is told before hours of work
    names = name_models(models) if len(models) > 1 else [None]
    points: list[Point] = []
    with open_ranks() as ranks:
        if ranks.first:
            for note in plan.notes:
                tell(note)
            for path, index in plan.indices.items():
                write_index(path, index)
            write_text(folder / PLAN, json.dumps(described, indent=1) + "\n")
        ranks.gather(None)  # nobody reads before it is written
        for setup in plan.setups:
            place = folder / f"{plan.word}-{setup.value}"
            for name, model in zip(names, models or [None], strict=True):
                here = place / name if name else place
                if ranks.first:
                    tell(f"{plan.quantity}: {setup.value}{f', {name}' if name else ''}")
                options = replace(setup.options, resumable=True)
                found = evaluate(setup.experiment, model, here, options, tell=tell, track=track)
                points += _read_points(plan, setup, found, name, folder)
        points.sort(key=lambda point: (point.model, point.x or 0))
        curve = Curve(plan.quantity, tuple(points), plan.setups[0].options.precision)
        if ranks.first:
            curve.write(folder, plan.setups[0].experiment.name)
            Journal.forget(folder)
    return curve


def _check(plan: Plan) -> None:
    """UserError for no points, or two that are equal."""
    values = [setup.value for setup in plan.setups]
    if not values or len(set(values)) < len(values):
        raise UserError(
            f"the points {', '.join(values) or '(none)'} of a sweep",
            "one or more, each once",
            "give every value once",
        )


def _describe(plan: Plan, models: Sequence[str | Path]) -> dict[str, Any]:
    """The models, and by folder the settings of each point that its results depend on, as JSON."""
    points = {}
    for setup in plan.setups:
        run, options = setup.experiment, asdict(setup.options)
        parts = {"dataset": asdict(run.dataset.settings), "renderer": asdict(run.renderer)}
        settings = {f"{part}.{key}": it for part in parts for key, it in parts[part].items()}
        settings |= {"dataset": run.dataset.name, **{name: options[name] for name in MEASURED}}
        if index := plan.indices.get(str(settings.get("dataset.index"))):
            settings["dataset.index"] = hash_frames(index)
        points[f"{plan.word}-{setup.value}"] = settings
    names = [str(model) for model in models] or [plan.setups[0].experiment.output]
    return json.loads(json.dumps({"models": names, "points": points}, default=str))


def _check_folder(folder: Path, now: Mapping[str, Any]) -> None:
    """UserError where a folder has points of other settings, or some that this sweep has not."""
    path = folder / PLAN
    if not path.is_file():
        return
    try:
        before = json.loads(path.read_text())
        models, points = list(before["models"]), {k: dict(v) for k, v in before["points"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged", "what a sweep wrote", "remove it to sweep into this folder again"
        ) from error
    gone = [name for name in points if name not in now["points"]]
    changed = [
        key
        for name, settings in points.items()
        for key in now["points"].get(name, ())
        if settings.get(key) != now["points"][name][key]
    ]
    other = [f"of {', '.join(map(str, models))}"] if models != now["models"] else []
    other += [f"with {', '.join(gone)}"] if gone else []
    other += [f"with another {', '.join(dict.fromkeys(changed))}"] if changed else []
    if other:
        raise UserError(
            f"{folder} holds another sweep, {' and '.join(other)}",
            "a folder without one, or the same sweep and more points",
            "choose another folder (`output`), or remove that one",
        )


def _read_points(
    plan: Plan, setup: Setup, found: Evaluation, name: str | None, folder: Path
) -> list[Point]:
    """What one evaluation says: a point, or one for each number of Gaussians."""
    means, coverage = found.model.means, found.model.coverage
    results = (found.folder / RESULTS).relative_to(folder).as_posix()
    shared: dict[str, Any] = {
        "model": name or found.name,
        "scenes": len(found.model.rows),
        "wanted": coverage.wanted if coverage else None,
        "results": results,
    }

    def point(value: str, x: float | None, metrics: Mapping[str, float], count: float) -> Point:
        known = {key: metrics[key] for key in METRICS if key in metrics}
        return Point(value=value, x=x, metrics=known, gaussians=count, **shared)

    if rows := budget_rows(means):
        return [point(f"{count:,}", count, values, count) for count, values in rows.items()]
    return [point(setup.value, setup.x, means, found.cost.gaussians)]


def _with(experiment: Experiment, **settings: Any) -> Experiment:
    """The experiment with other settings of its data."""
    data = experiment.dataset
    return replace(experiment, dataset=Component(data.name, replace(data.settings, **settings)))
