"""An encoder measured on the scenes of an evaluation index: tables in memory, files in a folder."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..contracts import PoseTeacher
from ..errors import UserError
from ..evaluate import report
from ..evaluate.budget import draw_budgets
from ..evaluate.cost import Summary, summarize
from ..evaluate.identity import Identity
from ..evaluate.protocol import Result
from ..evaluate.ranks import open_ranks
from ..progress import Track, silently
from ..train.settings import Experiment
from ._measured import Method, Setting, open_baselines, open_method, open_setting

log = logging.getLogger(__name__)


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
        if self.baselines and self.optimize_poses:
            raise UserError(
                f"`baselines` with `optimize_poses={self.optimize_poses}`, which moves cameras for "
                "the model alone",
                "methods whose numbers compare",
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

    and, until results.json is written, the scenes that are done (see `evaluate.journal`): an
    interrupted evaluation of the same goes on after them. Processes of torchrun share the scenes,
    all return the results of all, and the first of them writes.

    `tell` gets what is left out. Raises UserError where the model, the data or the index is missing
    or does not fit, for `steps` and `anchors` of a model that has none, and for more `gaussians`
    than there are.
    """
    folder = Path(output or Path(experiment.output) / "evaluation")
    with open_ranks() as ranks:
        setting = open_setting(experiment, options or Options(), ranks, tell, track)
        return _evaluate(setting, open_method(setting, model, weights), folder)


def _evaluate(setting: Setting, method: Method, folder: Path) -> Evaluation:
    """Measures a model, and the baselines where they are wanted."""
    name, chosen = Path(method.name).name, setting.options
    result = setting.measure(method, folder / "results.json")
    if setting.ranks.first:
        report.write_csv(folder / "scenes.csv", result.rows)
        if chosen.gaussians:
            draw_budgets(folder / "budgets.png", result.means, name)
    baselines = open_baselines(setting, method) if chosen.baselines else {}
    others = {m.name: setting.measure(m, folder / f"{file}.json") for file, m in baselines.items()}
    return Evaluation(name, result, others, folder, method.identity)
