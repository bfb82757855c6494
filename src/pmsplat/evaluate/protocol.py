"""The published evaluation: one forward per scene, all its targets drawn, means of means.

Every metric is averaged over the targets of a scene, then over scenes (pixelSplat, MVSplat,
DepthSplat). What is measured is a callable, Batch -> StepOutput, so encoders and baselines are
measured by the same code.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from statistics import mean

import torch
from jaxtyping import Bool
from torch import Tensor

from ..contracts import Encoder, take_steps
from ..device import float32_products
from ..errors import UserError, count_of
from ..foundation import lpips as lpips_network
from ..geometry.constants import constant
from ..geometry.pruning import choose_opaque
from ..render import rasterize
from ..types import Batch, Cameras, Gaussians, Reduced, Rendering, StepOutput, Views
from ..zoo.infer import model_frame
from . import metrics
from .budget import BUDGETS, COUNT, reduce_gaussians
from .cost import Cost
from .coverage import Coverage
from .depth import aligned_depths, depth_metrics
from .fitted import GIVEN
from .geometry import geometry_metrics
from .series import STEPS
from .timing import Stopwatch
from .views import ViewRow, add_hashes, list_views

TARGETS_AT_ONCE = 16  # drawn together: bounds memory on indices with hundreds of targets

Pipeline = Callable[[Batch], StepOutput]
MakeGenerator = Callable[[torch.device], torch.Generator]
Aim = Callable[[Gaussians, Views], Cameras]


@dataclass(frozen=True)
class Row:
    """One scene: means over its targets (of depth: over the known pixels of its context views).

    `views` are the targets one by one, where they were drawn; `cost` is what it took, if known.
    """

    scene: str
    targets: int
    values: dict[str, float]
    views: tuple[ViewRow, ...] = ()
    cost: Cost | None = None


@dataclass(frozen=True)
class Result:
    """All scenes, what there is to say about them, whose cameras were used (see `fitted`), and of
    how many scenes they are, where an index says that."""

    rows: list[Row]
    notes: tuple[str, ...] = ()
    protocol: str = GIVEN
    coverage: Coverage | None = None

    @property
    def means(self) -> dict[str, float]:
        """The mean of each metric over the scenes that have it."""
        names = dict.fromkeys(name for row in self.rows for name in row.values)
        return {
            name: mean(row.values[name] for row in self.rows if name in row.values)
            for name in names
        }


@dataclass(frozen=True)
class Passes:
    """How a model that has a choice works: see `contracts.take_steps`."""

    steps: int | None = None
    all_levels: bool = False
    anchors: int | None = None


@dataclass(frozen=True)
class Drawn:
    """What of a prediction is drawn.

    `keep` is the share of each scene's Gaussians, the most opaque; while the model learns,
    `generator` makes what chooses some of the others too (see `choose_opaque`). Losses see the
    whole prediction. `budgets`: the answer that is drawn is also reduced to so many Gaussians each;
    UserError where it has fewer. `aim` moves the cameras of the targets before anything is drawn,
    by the Gaussians of the answer and the photographs.
    """

    keep: float = 1.0
    generator: MakeGenerator | None = None
    budgets: Sequence[int] = ()
    aim: Aim | None = None


def pipeline(
    model: Encoder,
    backend: str = "auto",
    background: Sequence[float] | None = None,
    watch: Stopwatch | None = None,
    scale_near: bool = False,
    passes: Passes = Passes(),
    drawn: Drawn = Drawn(),
) -> Pipeline:
    """A model followed by a rasteriser: every level of the prediction drawn into the targets.

    Gradients flow. `watch` books "encode" and "render" of each batch, the answer's alone. Targets
    are drawn in the world that the model sees, which may be that of its middle context view.
    `scale_near`: scenes come in units of their own, so each is scaled to the unit of the model.
    What is predicted is brought back: lengths are measured in the unit of the scene.
    """
    encode = take_steps(model, passes.steps, passes.all_levels, passes.anchors)

    def timed(name: str):
        return watch(name) if watch else nullcontext()

    def run(batch: Batch) -> StepOutput:
        behind = None if background is None else constant(tuple(background), batch.target.images)
        frame = model_frame(model, batch.context.cameras, scale=scale_near)
        seen = frame.to_model(batch)
        with timed("encode"):
            prediction = encode(seen.context)
            levels = [_prune(gaussians, drawn) for gaussians in prediction.gaussians]
        cameras = seen.target.cameras
        if drawn.aim is not None and levels:
            with timed("aim"):
                cameras = drawn.aim(levels[-1], seen.target)

        def draw(gaussians: Gaussians) -> Rendering:
            return _draw(gaussians, cameras, seen.target.size, backend, behind)

        pictures = [draw(gaussians) for gaussians in levels[:-1]]
        with timed("render"):
            pictures += [draw(gaussians) for gaussians in levels[-1:]]
        renderings = tuple(frame.to_scene(rendering) for rendering in pictures)
        reduced = []
        for budget in drawn.budgets if levels else ():
            rendering = frame.to_scene(draw(reduce_gaussians(levels[-1], budget)))
            reduced.append(Reduced(budget, levels[-1].means.shape[1], rendering))
        return StepOutput(batch, frame.to_scene(prediction), renderings, reduced=tuple(reduced))

    return run


def _prune(gaussians: Gaussians, drawn: Drawn) -> Gaussians:
    """The share of them that is drawn."""
    if drawn.keep == 1:
        return gaussians
    device = gaussians.means.device
    draws = None if drawn.generator is None else drawn.generator(device)
    return gaussians.take(choose_opaque(gaussians.opacities, drawn.keep, draws))


def _draw(
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    backend: str,
    background: Tensor | None,
) -> Rendering:
    parts = [
        rasterize(
            gaussians, cameras.at(slice(start, start + TARGETS_AT_ONCE)), size, backend, background
        )
        for start in range(0, cameras.c2w.shape[1], TARGETS_AT_ONCE)
    ]
    if len(parts) == 1:
        return parts[0]
    return Rendering(
        color=torch.cat([part.color for part in parts], dim=1),
        depth=torch.cat([part.depth for part in parts], dim=1),
        alpha=torch.cat([part.alpha for part in parts], dim=1),
    )


def evaluate(
    run: Pipeline,
    batches: Iterable[Batch],
    device: torch.device | str = "cpu",
    lpips: lpips_network.LPIPS | None = None,
    geometry: bool = False,
    each_step: bool = False,
    known: Mapping[str, Mapping[str, float]] | None = None,
) -> Result:
    """What `measure_scenes` finds; UserError where there is no scene, or nothing to measure."""
    rows: list[Row] = []
    measure_scenes(run, batches, rows.append, device, lpips, geometry, each_step, known)
    check_rows(rows)
    return Result(rows)


@torch.no_grad()
@float32_products(tf32=False)
def measure_scenes(
    run: Pipeline,
    batches: Iterable[Batch],
    on_row: Callable[[Row], None],
    device: torch.device | str = "cpu",
    lpips: lpips_network.LPIPS | None = None,
    geometry: bool = False,
    each_step: bool = False,
    known: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Measures `run` on one batch (of one scene) after the other; `on_row` gets each as it is done.

    psnr, ssim and, where a network is given, lpips of the last rendering, if there is one; psnr
    once more apart, inside and outside the baseline, where a scene has targets of both; abs_rel,
    rmse and delta1 of the context depth where prediction and data both have one, as it is and after
    the alignments of `aligned_depths`, and with
    `geometry` all of `geometry_metrics`; with `each_step` color also before the first step of an
    encoder and after each, and of the answer with fewer Gaussians where `run` has budgets (see
    `budget`). A network is put into eval mode by its owner. `known` are more values of the scenes,
    by name, which it may get as they come. UserError for `geometry` where the data has no depth.
    """
    network = None if lpips is None else lpips.to(device)
    for batch in batches:
        step = run(batch.to(device))
        row = measure(step, network, geometry, each_step)
        more = {} if known is None else known.get(row.scene, {})
        views = row.views
        if views:
            views = add_hashes(views, step.renderings[-1].color[0], batch.target.images[0])
        on_row(replace(row, values={**row.values, **more}, views=views))


def check_rows(rows: Sequence[Row]) -> None:
    """UserError where there is no scene, or nothing was measured in any."""
    if not rows:
        raise UserError(
            "the evaluation found no scene",
            "at least one scene of the index in the dataset",
            "check dataset.root and dataset.index",
        )
    if not any(row.values for row in rows):
        raise UserError(
            "a model that predicts depth alone, and no known depth in "
            f"{count_of(len(rows), 'scene')}",
            "data with depth, or a model with Gaussians",
            "choose another dataset or another model",
        )


def describe_partial(rows: Sequence[Row]) -> tuple[str, ...]:
    """A sentence for metrics that some scenes lack, whose means are of the others."""
    counts = Counter(name for row in rows for name in row.values)
    names: dict[int, list[str]] = {}
    for name, count in counts.items():
        if count < len(rows):
            names.setdefault(count, []).append(name)
    return tuple(
        f"{', '.join(some)}: {'mean' if len(some) == 1 else 'means'} of {count} of "
        f"{count_of(len(rows), 'scene')}, which alone have {'it' if len(some) == 1 else 'them'}."
        for count, some in names.items()
    )


@torch.no_grad()
def measure(
    step: StepOutput,
    lpips: lpips_network.LPIPS | None = None,
    geometry: bool = False,
    each_step: bool = False,
) -> Row:
    """The metrics of one scene: of colour where it was rendered, of depth where it is known.

    Its views have no hashes.
    """
    batch = step.batch
    assert len(batch.scene) == 1, "the protocol is one scene at a time"
    colors = [_measure_color(one, batch, lpips) for one in step.renderings[-1:]]
    values, views = _depth_values(step), ()
    for color in colors:
        values, views = color.means | values, list_views(batch.target, color.views)
    if each_step:
        levels = [_measure_color(one, batch, lpips).means for one in step.renderings[:-1]]
        levels += [values] if step.renderings else []
        values |= STEPS.names(dict(enumerate(levels)))
    if step.reduced:
        reduced = {r.budget: _measure_color(r.rendering, batch, lpips).means for r in step.reduced}
        values |= BUDGETS.names(reduced) | {COUNT: step.reduced[0].of}
    if geometry:
        values |= _geometry_values(step)
    return Row(batch.scene[0], batch.target.images.shape[1], values, views)


@dataclass(frozen=True)
class _Color:
    """Metrics of a rendering by name: means over the targets, and of each target."""

    means: dict[str, float]
    views: dict[str, list[float]]


def _measure_color(rendering: Rendering, batch: Batch, lpips: lpips_network.LPIPS | None) -> _Color:
    """Each metric says what it clips; a GPU sends all numbers at once."""
    images, color = batch.target.images, rendering.color.detach()
    views = {"psnr": metrics.psnr(color, images), "ssim": metrics.ssim(color, images)}
    groups, outside = dict(views), is_outside(batch)
    if outside.any() and not outside.all():
        groups["psnr_inside"] = views["psnr"][:, ~outside]
        groups["psnr_outside"] = views["psnr"][:, outside]
    if lpips is not None:
        views["lpips"] = groups["lpips"] = metrics.lpips(color, images, lpips)
    sent = [group.mean(dim=1).double() for group in groups.values()]
    sent += [view[0].double() for view in views.values()]
    means, *rows = torch.cat(sent).cpu().split([len(groups)] + [images.shape[1]] * len(views))
    return _Color(
        dict(zip(groups, means.tolist(), strict=True)),
        {name: row.tolist() for name, row in zip(views, rows, strict=True)},
    )


def _depth_values(step: StepOutput) -> dict[str, float]:
    """Of the answer's depth of the context views, where the data knows any of it."""
    known = step.context.depth
    if known is None or not step.prediction.depths:
        return {}
    predicted = step.prediction.depths[-1]
    depth = depth_metrics(predicted, known)
    if not depth.pixels:
        return {}
    values = {"abs_rel": depth.abs_rel, "rmse": depth.rmse, "delta1": depth.delta1}
    for name, aligned in aligned_depths(predicted, known).items():
        found = depth_metrics(aligned, known)
        values |= {f"abs_rel_{name}": found.abs_rel, f"delta1_{name}": found.delta1}
    return values


def _geometry_values(step: StepOutput) -> dict[str, float]:
    """Of the answer's surface, where it has one; UserError where the data has none."""
    context = step.context
    if context.depth is None:
        raise UserError(
            f"no true depth in scene {step.batch.scene[0]!r} to measure geometry by",
            "data with depth",
            "leave out `geometry`, or measure on data that has it (dataset=synthetic)",
        )
    return geometry_metrics(context, step.prediction) if step.prediction.depths else {}


def is_outside(batch: Batch) -> Bool[Tensor, " target"]:
    """Which targets of a scene lie before its first or after its last context view.

    By the frame numbers that datasets of chunks write as names; none where names are others.
    """
    names = [views.names[0] if views.names else () for views in (batch.context, batch.target)]
    if not all(row and all(map(str.isdecimal, row)) for row in names):
        return torch.zeros(batch.target.images.shape[1], dtype=torch.bool)
    context, target = (torch.tensor([int(name) for name in row]) for row in names)
    return (target < context.min()) | (target > context.max())


@cache
def find_lpips(
    path: str | os.PathLike | None = None,
) -> tuple[lpips_network.LPIPS | None, tuple[str, ...]]:
    """LPIPS over VGG-16 as published, or None and the sentence why the column is left out.

    Looked for once in a process, which may measure many models.
    """
    try:
        return lpips_network.load("vgg16", path), ()
    except lpips_network.Unavailable as error:
        return None, (f"The LPIPS column is left out: {error.got}.",)
