"""What an evaluation measures, and on what: models and baselines by the same steps.

Scenes that an interrupted evaluation measured are kept, and ranks share the others.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, is_dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import registry
from ..contracts import (
    Dataset,
    count_anchors,
    count_steps,
    dataset_traits,
    encoder_traits,
    get_listed,
    list_skips,
    order_of_scenes,
    require,
    without_scenes,
)
from ..data import Skip
from ..device import explain_full
from ..errors import UserError
from ..evaluate import fitted, protocol, report
from ..evaluate.baselines import BASELINES
from ..evaluate.cost import Meter
from ..evaluate.coverage import Coverage, check_complete
from ..evaluate.identity import Identity, identify
from ..evaluate.journal import Journal
from ..evaluate.noise import PoseNoise
from ..evaluate.pictures import predict_pictures
from ..evaluate.protocol import Result, Row
from ..evaluate.ranks import Ranks
from ..evaluate.runs import check_replaces, describe_run
from ..evaluate.timing import Stopwatch
from ..evaluate.tours import Drawing
from ..foundation.lpips import LPIPS
from ..io.files import check_folder
from ..progress import Track, silently
from ..train.devices import check_renderer
from ..train.settings import Component, Experiment, Renderer
from ..types import Batch, Cameras, Gaussians, StepOutput, Views
from ..view.pages.frame import PAGE, check_place
from ..zoo import memory
from ..zoo.infer import depth_only_error
from ..zoo.load import WEIGHTS, Loaded, open_model
from ..zoo.poses import search_cameras
from ._indexed import (
    check_index,
    cover,
    describe_index,
    describe_missing,
    describe_skips,
    hash_index,
)
from .options import check_computing, for_computing, pick_device

if TYPE_CHECKING:
    from .evaluate import Options


@dataclass(frozen=True)
class Method:
    """A model or a baseline.

    `about` are the fields of its results that are known beforehand; `kept`: scenes of it that were
    measured earlier can be known again.
    """

    name: str
    meter: Meter
    identity: Identity
    about: Mapping[str, Any]
    lpips: LPIPS | None = None
    notes: tuple[str, ...] = ()
    each_step: bool = False
    kept: bool = True


@dataclass(frozen=True)
class Setting:
    """What all methods have in common: the data, what finds the cameras, where and who computes.

    `index` are the fields of results that say what its index is, and `digest` hashes its file.
    """

    experiment: Experiment
    options: "Options"
    dataset: Dataset
    index: Mapping[str, Any]
    digest: str | None
    cameras: fitted.PoseProtocol | PoseNoise
    device: torch.device
    ranks: Ranks
    tell: Callable[[str], None]
    track: Track

    def check_replaces(self, model: str, path: Path) -> None:
        """UserError where `path` has results that those of this model must not replace."""
        about = {"model": model, "experiment": asdict(self.experiment)}
        about |= {"identity": {"precision": self.options.precision}}
        about = {**about, **self.index, **self.cameras.facts}
        content = json.loads(json.dumps(about, default=str))
        scenes = order_of_scenes(self.dataset.evaluation(self.options.limit))
        check_replaces(path, describe_run(path, content), scenes)

    def measure(self, method: Method, path: Path) -> Result:
        """Measures the scenes of this rank, and writes the results of all ranks to `path`."""
        scenes = self.dataset.evaluation(self.options.limit)
        order = dict.fromkeys(order_of_scenes(scenes))

        # Keep what an interrupted evaluation has done, and measure the others.
        journal = Journal(path, self._fingerprint(method), self.ranks.rank)
        rows = self._gather(list(journal.read(self.tell).values()))
        rows = {name: row for name, row in rows.items() if not order or name in order}
        left = without_scenes(scenes, rows.keys())
        mine, left_out = self._measure(method, left, journal)

        # Join what all ranks have measured, in the order of the index.
        rows |= self._gather(mine)
        left_out = sum(self.ranks.gather(left_out), Counter[str]())
        fitted.check_left_out(left_out, len(rows))
        protocol.check_rows(list(rows.values()))
        ordered = [rows[name] for name in order or rows if name in rows]
        skipped = {name: skip for name, skip in self._gather_skips(left).items() if name in order}
        skipped = {name: skip for name, skip in skipped.items() if name not in rows}
        damaged = sum(skip.damaged for skip in skipped.values())
        coverage = cover(get_listed(scenes), len(rows), damaged, left_out.total() + len(skipped))
        unmeasured = (*describe_missing(get_listed(scenes)), *describe_skips(skipped))
        unmeasured += fitted.describe_left_out(left_out)
        if self.options.strict:
            check_complete(coverage, " ".join(unmeasured))
        notes = (*method.notes, *unmeasured, *protocol.describe_partial(ordered))
        result = Result(ordered, notes, self.cameras.name, coverage)
        if self.ranks.first:
            report.write_json(path, result, self._describe(method, result))
        self.ranks.gather(None)  # nothing is forgotten before it is written
        if not self.options.resumable:
            journal.remove()
        return result

    def measure_shard(self, method: Method, path: Path, shard: tuple[int, int]) -> int:
        """Measures the scenes of a shard (i, n) that are not done, those of this rank, and keeps
        them for the `measure` that joins all; how many of the shard are done.

        UserError where the data does not say which scenes it has.
        """
        scenes = self.dataset.evaluation(self.options.limit)
        order = order_of_scenes(scenes)
        if not order:
            raise UserError(
                f"`shard={shard[0]}/{shard[1]}` of {self.experiment.dataset.name!r}, whose scenes "
                "have no `keys`",
                "an evaluation that says which scenes it has",
                "leave `shard` out",
            )
        mine = order[shard[0] - 1 :: shard[1]]
        journal = Journal(path, self._fingerprint(method), self.ranks.rank, shard)
        kept = journal.read(self.tell).keys() & set(mine)
        known = set().union(*self.ranks.gather(kept))
        left = without_scenes(scenes, known | set(order) - set(mine))
        rows, _ = self._measure(method, left, journal)
        return len(known) + sum(self.ranks.gather(len(rows)))

    def draw(self, method: Method, rows: Sequence[Row], names: Sequence[str], folder: Path) -> None:
        """Predicts some scenes again, and writes their pictures into FOLDER/pictures.

        For one rank alone, whichever ranks measured them: of a single scene the first gets all.
        """
        scenes = self.dataset.evaluation(self.options.limit)
        known = set(order_of_scenes(scenes))
        alone = (without_scenes(scenes, known - {name}) for name in names) if known else [scenes]
        batches = self.cameras.scenes(chain.from_iterable(alone), self.device)
        renderer = self.experiment.renderer
        drawing = Drawing(renderer.name, renderer.background, renderer.keep)
        predict_pictures(method.meter.run, batches, names, folder, rows, self.device, drawing)

    def _measure(
        self, method: Method, scenes: Iterable[Batch], journal: Journal
    ) -> tuple[list[Row], Counter[str]]:
        """The scenes of this rank, which the journal gets one by one; and why some are left out."""
        rows: list[Row] = []
        shown = self._track(scenes, f"measuring {method.name}")
        batches = self.cameras.scenes(shown, self.device)
        with journal.writer() as write:

            def keep(row: Row) -> None:
                rows.append(replace(row, cost=method.meter.cost))
                write(rows[-1])

            geometry = self.options.geometry
            protocol.measure_scenes(
                method.meter,
                batches,
                keep,
                self.device,
                method.lpips,
                geometry,
                method.each_step,
                batches.errors,
            )
        return rows, batches.left_out

    def _gather(self, rows: Sequence[Row]) -> dict[str, Row]:
        """Those of all ranks, by name."""
        return {row.scene: row for some in self.ranks.gather(rows) for row in some}

    def _gather_skips(self, scenes: Any) -> dict[str, Skip]:
        """Why scenes of all ranks could not be read or used, by name."""
        mine = {name: skip for skip in list_skips(scenes) for name in skip.scenes}
        return {name: skip for some in self.ranks.gather(mine) for name, skip in some.items()}

    def _track(self, scenes: Iterable[Batch], description: str) -> Iterable[Batch]:
        return self.track(scenes, description, len(scenes) if isinstance(scenes, Sized) else 0)

    def _describe(self, method: Method, result: Result) -> dict[str, Any]:
        """The fields of a method's results beside its metrics."""
        costs = [row.cost for row in result.rows if row.cost is not None]
        identity = {"identity": asdict(method.identity)}
        costs = report.describe_costs(costs, self.device)
        return {**method.about, **self.index, **self.cameras.facts, **identity, **costs}

    def _fingerprint(self, method: Method) -> dict[str, str | None]:
        """What scenes that were measured earlier must have been measured with."""
        chosen, experiment = self.options, method.about["experiment"]
        settings = {
            **method.about,
            **self.cameras.facts,
            "experiment": [experiment[part] for part in ("dataset", "model", "renderer")],
            "options": [chosen.geometry, chosen.graph, chosen.gaussians],
            "lpips": method.lpips is not None,
        }
        text = json.dumps(settings, sort_keys=True, default=str)
        known = {name: str(value) for name, value in asdict(method.identity).items()}
        return {
            "weights": known["weights"] if method.kept else None,
            "settings": hashlib.sha256(text.encode()).hexdigest(),
            **{
                name: known[name]
                for name in ("index", "version", "commit", "hardware", "precision")
            },
        }


def open_setting(
    experiment: Experiment,
    options: "Options",
    ranks: Ranks,
    tell: Callable[[str], None],
    track: Track,
    *,
    own: bool = False,
) -> Setting:
    """The data and all else that methods have in common; only the first rank speaks.

    `own`: what training left is measured. UserError where that, the data or its index is missing,
    or the options do not fit.
    """
    if options.report is not None:
        check_folder(options.report)
        check_place(Path(options.report) / PAGE)
    if not ranks.first:
        tell, track = _ignore, silently
    device = pick_device(options.device)
    if device.type == "cuda" and device.index is None and ranks.count > 1:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    check_computing(device, options.precision, options.graph)
    check_renderer(experiment.renderer.name, device.type == "cuda", "add `device=cuda`")
    cameras = options.pose_noise
    if cameras is None:
        cameras = fitted.PoseProtocol.choose(options.poses, options.optimize_poses, tell)
    if own:
        _check_trained(experiment)
    dataset = registry.build("data", experiment.dataset.name, experiment.dataset.settings)
    owner = f"the dataset {experiment.dataset.name!r}"
    evaluation = require(dataset, "evaluation", owner, "evaluation")
    file = dataset_traits(dataset).index
    check_index(experiment, file)
    listed = get_listed(evaluation(options.limit))
    index = {} if listed is None else describe_index(experiment.protocol, listed)
    digest = hash_index(file, listed)
    if options.strict and listed is not None:
        coverage = Coverage(len(listed.index) - len(listed.missing), missing=len(listed.missing))
        check_complete(coverage, " ".join(describe_missing(listed)))
    return Setting(experiment, options, dataset, index, digest, cameras, device, ranks, tell, track)


def _check_trained(experiment: Experiment) -> None:
    """UserError where training left nothing in the experiment's output, before data is opened."""
    path, name = Path(experiment.output) / WEIGHTS, experiment.name
    if not path.is_file():
        usual = experiment.output == f"outputs/{name}"
        words = f"+experiment={name}" + ("" if usual else f" output={experiment.output}")
        raise UserError(
            f"there is no {path}: the experiment was not trained here yet",
            "what training left, or another `model`",
            f"run `pmsplat train {words}` first, or add `model`",
        )


def open_method(
    setting: Setting, model: str | Path | nn.Module | None, weights: str | Path | None
) -> Method:
    """The model as it is measured; None: what training left in the experiment's output.

    UserError where it is missing, or has no steps, anchors or Gaussians that are asked for.
    """
    experiment, chosen = setting.experiment, setting.options
    path = Path(experiment.output) / WEIGHTS if model is None else model
    loaded = _open(path, weights)
    encoder = loaded.model.to(setting.device).eval()
    traits = encoder_traits(encoder)
    steps = count_steps(chosen.steps, traits.steps)
    steps = None if traits.steps is None else steps
    anchors = count_anchors(chosen.anchors, traits.anchors)
    if chosen.gaussians and not traits.draws:
        raise depth_only_error()
    lpips, notes = protocol.find_lpips() if traits.draws else (None, ())
    for note in notes:
        setting.tell(note)
    name = loaded.component if isinstance(path, nn.Module) else str(path)
    renderer, watch = experiment.renderer, Stopwatch(setting.device)
    draw = protocol.pipeline(
        for_computing(encoder, setting.device, chosen.precision, chosen.graph),
        renderer.name,
        renderer.background,
        watch,
        scale_near=dataset_traits(setting.dataset).scale_near or setting.cameras.predicts,
        passes=protocol.Passes(steps, steps is not None, chosen.anchors),
        drawn=protocol.Drawn(
            renderer.keep, budgets=chosen.gaussians, aim=_aim(chosen.optimize_poses, renderer)
        ),
    )
    measured = replace(experiment, model=Component(loaded.component, loaded.settings))
    return Method(
        name=name,
        meter=Meter(_explain_memory(draw, encoder, chosen, setting.device), watch, renderer.keep),
        identity=_identify(setting, loaded.path),
        about={
            "model": name,
            "steps": steps,
            "anchors": anchors or None,
            "experiment": asdict(measured),
        },
        lpips=lpips,
        notes=notes,
        each_step=steps is not None,
        kept=loaded.path is not None,
    )


def open_baselines(setting: Setting, model: Method) -> dict[str, Method]:
    """The baselines by the name of their files, measured beside a model.

    They give the same in every unit of length.
    """
    identity = replace(model.identity, weights=None, precision="float32")
    settings = {**asdict(setting.experiment), "model": None}
    return {
        run.__name__: Method(
            name=label,
            meter=Meter(run, Stopwatch(setting.device)),
            identity=identity,
            about={"model": label, "experiment": settings},
            lpips=model.lpips,
        )
        for label, run in BASELINES.items()
    }


def _open(model: str | Path | nn.Module, weights: str | Path | None) -> Loaded:
    """The model with its component and settings, which an encoder in memory need not have."""
    if isinstance(model, nn.Module):
        settings = getattr(model, "cfg", None)
        return Loaded(model, type(model).__name__, settings if is_dataclass(settings) else None)
    return open_model(model, weights)


def _identify(setting: Setting, weights: Path | None) -> Identity:
    return identify(weights, setting.digest, setting.device, setting.options.precision)


def _explain_memory(
    run: protocol.Pipeline, encoder: nn.Module, options: "Options", device: torch.device
) -> protocol.Pipeline:
    """`run`, with the size that should fit as UserError where a scene fills a GPU."""

    def explaining(batch: Batch) -> StepOutput:
        views, multiple = batch.context, encoder_traits(encoder).multiple
        count, option = views.images.shape[1], "dataset.size=[{},{}]"
        plan = memory.Plan(count, views.size, multiple, options.steps, options.anchors)
        with explain_full(
            lambda problem: memory.explain(encoder, plan, device, problem, False, option)
        ):
            return run(batch)

    return explaining


def _aim(steps: int, renderer: Renderer) -> protocol.Aim | None:
    """What moves the cameras of the targets; None for no steps."""
    if not steps:
        return None

    def aim(gaussians: Gaussians, views: Views) -> Cameras:
        return search_cameras(gaussians, views, steps, renderer.name, renderer.background)

    return aim


def _ignore(text: str) -> None:
    """What ranks but the first say."""
