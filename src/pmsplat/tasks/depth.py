"""Photographs in, the depth of each of them out: numbers, 16-bit pictures, colours, errors."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..contracts import encoder_traits
from ..errors import UserError
from ..progress import Track, silently
from ..scene import PhotoOptions, Scene, open_scene
from ..scene.overlap import Group, group_views, overlaps
from ..zoo import memory
from ..zoo.compile import Precision
from ..zoo.infer import fill_range, middle_depth, model_frame, predict_views
from ..zoo.load import load
from ..zoo.trained import TrainedOn, trained_on
from .options import (
    check_computing,
    choose_photos,
    count_views,
    describe_computing,
    describe_fit,
    fit_size,
    for_computing,
    pick_device,
)
from .results import depth as depth_results
from .results.depth_files import write_confidence
from .results.folder import make_whole, name_files
from .results.report import Given, Pass, describe_report, examine, make_report

log = logging.getLogger(__name__)

VIEWS = 4  # at a time, unless another number is chosen


@dataclass(frozen=True)
class Options:
    """What may be chosen; None leaves it to `depth`, which says what it chose.

    `views` is how many photos go through the network together, at most; `context` names those that
    get depth, by index, and then all of them go together. `size` is (height, width);
    `photos` says how the photos are found. `graph` runs the network as CUDA graphs, which is faster
    where many groups of photos go through it; `precision` is that of the network: see
    `pmsplat.compile`.
    """

    views: int | None = None
    context: tuple[int, ...] | None = None
    size: tuple[int, int] | None = None
    photos: PhotoOptions | None = None
    device: str = "auto"
    graph: bool = False
    precision: Precision = "float32"
    overwrite: bool = False


def depth(
    source: str | Path,
    model: str | Path | nn.Module,
    output: str | Path,
    options: Options | None = None,
    weights: str | Path | None = None,
    tell: Callable[[str], None] = log.info,
    track: Track = silently,
) -> depth_results.Summary:
    """Predicts the depth of a scene's photos and writes it to `output`.

    `source` is anything that `open_scene` opens, `model` a name or path for `pmsplat.load`, or an
    encoder, of depth alone or of Gaussians. Unless some are named, all photos get depth: they go
    through the network in groups that see the same things. Depth is z in the unit of the input's
    cameras, and one scale holds for the whole scene; that of each photo is looked for between its
    own near and far, which come from sparse points, or sensor depth, where the input has them.

        depth/PHOTO.npy       float32 [height, width]
        depth/PHOTO.png       16 bits, depth = count * depth_scale, 0 = none
        color/PHOTO.png       in colours of one range for all photos, with their legend
        confidence/PHOTO.png  how sure the model is, where it says so: 16 bits, probability of the
                              best match = value / 65535
        sheet.png             photos above their depth, and above its error where a sensor knows it
        metrics.json          AbsRel, RMSE, delta < 1.25 where a sensor knows depth, and `Report`:
                              whether the photos fit each other and the model, and what would help
        cameras.json          of the depth maps, which it names: beside the photos (uncut, that is
                              without `size`) it opens as a scene with depth

    `tell` gets what was decided, a sentence at a time, and the report. Raises UserError before
    hours are lost where the input, the options, the free memory or the output folder will not do.
    The folder appears whole or not at all.
    """
    chosen = options or Options()
    device = pick_device(chosen.device)
    check_computing(device, chosen.precision, chosen.graph)
    _check_views(chosen)
    with make_whole(output, chosen.overwrite) as folder:
        scene = open_scene(source, chosen.photos, tell=tell, device=device)
        overlap = overlaps(scene.cameras)
        groups = group_photos(scene, overlap, chosen)
        encoder = model if isinstance(model, nn.Module) else load(model, weights)
        encoder = encoder.to(device).eval()
        learned = None if isinstance(model, nn.Module) else trained_on(model)
        size = fit_size(scene.size, chosen.size, learned)
        for sentence in (*describe_fit(scene.photos, size), _describe_groups(overlap, groups)):
            tell(sentence)
        plan = _plan(scene, encoder, groups, size, chosen, device)
        tell(f"Predicting on {describe_computing(device, chosen.precision)}.")
        maps, passes = _predict(plan, folder, track)
        report = make_report(passes, plan.describe(learned))
        summary = depth_results.write_results(
            folder, plan.scene, size, maps, plan.scale, report, track, chosen.precision
        )
    for line in describe_report(report):
        tell(line)
    tell(f"One count of depth/*.png is {summary.depth_scale:g} in the unit of the cameras.")
    return summary


@dataclass(frozen=True)
class _Plan:
    """What goes through which network: photos in groups, at one size, on one device.

    `scene` has the near and far that the network wants, between which `middle_depth` lies where it
    searches a range of its own; `scale` is how much larger it sees the world. `photos` are those
    that get depth, in order.
    """

    scene: Scene
    encoder: nn.Module
    groups: list[Group]
    photos: list[int]
    size: tuple[int, int]
    steps: int | None
    anchors: int | None
    options: Options
    device: torch.device
    scale: float
    middle_depth: float | None

    def describe(self, learned: TrainedOn | None) -> Given:
        """What the report wants to know of the input."""
        named = self.options.context is not None
        return Given.of(
            self.scene,
            self.size,
            self.scale,
            learned,
            named=named,
            middle_depth=self.middle_depth,
        )


def _plan(
    scene: Scene,
    encoder: nn.Module,
    groups: list[Group],
    size: tuple[int, int],
    options: Options,
    device: torch.device,
) -> _Plan:
    """Those groups in one unit; UserError where the largest does not fit into memory."""
    at_once, traits = max(len(group.views) for group in groups), encoder_traits(encoder)
    steps = None if traits.steps is None else 0  # they change Gaussians alone
    anchors = at_once if traits.anchors else None  # so that every photo gets depth
    memory.check(encoder, memory.Plan(at_once, size, traits.multiple, steps, anchors), device)
    photos = sorted(i for group in groups for i in group.fresh)
    cameras = fill_range(encoder, scene.cameras, photos, scene.ranged)
    return _Plan(
        scene=replace(scene, cameras=cameras),
        encoder=encoder,
        groups=groups,
        photos=photos,
        size=size,
        steps=steps,
        anchors=anchors,
        options=options,
        device=device,
        scale=model_frame(encoder, cameras.at(photos)).scale,
        middle_depth=middle_depth(encoder, scene.cameras.at(photos)) if scene.ranged else None,
    )


def _predict(
    plan: _Plan, folder: Path, track: Track
) -> tuple[list[depth_results.DepthMap], list[Pass]]:
    """The maps of the photos, whose numbers go to disk at once, and what was seen of each group."""
    scene, photos = plan.scene, plan.photos
    predictor = for_computing(plan.encoder, plan.device, plan.options.precision, plan.options.graph)
    stems = name_files([scene.names[i] for i in photos])
    shown = scene.cameras.at(photos)  # one unit for all groups
    maps: dict[int, depth_results.DepthMap] = {}
    passes: list[Pass] = []
    for group in track(plan.groups, "predicting depth", len(plan.groups)):
        views = scene.views(group.views, plan.size)
        predicted = predict_views(predictor, views, plan.device, shown, plan.steps, plan.anchors)
        found = predicted.depths[-1].float().cpu()
        sure, order = predicted.confidence, predicted.indices(views)
        sure = None if sure is None else sure.cpu()
        for row, at in enumerate(order):
            i = group.views[at]
            if i in group.fresh:
                stem = stems[photos.index(i)]
                if sure is not None:
                    write_confidence(folder, stem, sure[0, row])
                maps[i] = depth_results.write_map(folder, views.at([at]), found[0, row], i, stem)
        passes.append(examine(views.at(order), found))
    return [maps[i] for i in photos], passes


def _check_views(options: Options) -> None:
    """Raises UserError for views that no photos could fit, before anything is opened."""
    if options.views is None:
        return
    if options.views < 2:
        raise UserError(f"`views={options.views}`", "two or more", "leave `views` out")
    if options.context is not None and options.views != len(options.context):
        raise UserError(
            f"`views={options.views}` with {len(options.context)} photos in `context`, which go "
            "through the network together",
            "as many",
            "leave `views` out",
        )


def group_photos(
    scene: Scene, overlap: Float[Tensor, "view view"], options: Options
) -> list[Group]:
    """Which photos go through the network together; UserError for what is not in the scene."""
    if options.context is not None:
        named = choose_photos(options.context, len(scene))
        return [Group(named, named)]
    count = count_views(options.views, max(2, min(VIEWS, len(scene))), len(scene))
    return group_views(overlap, count)


def _describe_groups(overlap: Float[Tensor, "view view"], groups: list[Group]) -> str:
    least = 1.0
    for group in groups:
        among = overlap[:, group.views].clone()
        among[group.views, range(len(group.views))] = 0
        least = min(least, among[group.fresh].amax(dim=1).min().item())
    photos = sum(len(group.fresh) for group in groups)
    views = sorted({len(group.views) for group in groups})
    span = f"{views[0]} to {views[-1]}" if len(views) > 1 else f"{views[0]}"
    passes = "one pass" if len(groups) == 1 else f"{len(groups)} passes"
    return (
        f"Depth of {photos} of {len(overlap)} photos in {passes} of {span} views. "
        f"By the cameras, each shares at least about {least:.0%} of its picture with another."
    )
