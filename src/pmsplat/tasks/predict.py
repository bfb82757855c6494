"""A scene of photographs in, a folder of results out: Gaussians, depth, novel views, a video."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..contracts import count_anchors, count_steps, encoder_traits
from ..errors import UserError, count_of
from ..progress import Track, silently
from ..render import prepare
from ..scene import PhotoOptions, Scene, open_scene
from ..scene.coverage import choose_context, look_around
from ..scene.overlap import Group, group_views, held_out, overlaps
from ..zoo import memory
from ..zoo.compile import Precision
from ..zoo.fusion import HOW, check_budget, check_how
from ..zoo.infer import depth_only_error, fill_range, middle_depth, model_frame
from ..zoo.load import load
from ..zoo.trained import TrainedOn, trained_on
from ._context import describe_context, describe_held_out
from ._fused import Answer, Fusing, describe_fusion, predict_fused, record_fusion
from ._refined import Moved, check_refined, refine_views
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
from .results import prediction
from .results.folder import make_whole
from .results.report import Given, describe_report, make_report

VIEWS = 4  # of the context, where neither the user nor the model's training says more
ALL = "all"  # the context is every photo
LONGEST = 60.0  # seconds of video through the views of several groups

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What may be chosen; None leaves it to `predict`, which says what it chose.

    `views` is how many context views to choose, so that two of them see as much as possible of what
    all photos see, or ALL; `context` names them by index instead. `group` is how many of them go
    through the network together, at most; `fuse` how the Gaussians of several groups become one
    scene (`pmsplat.fuse`), "voxels" unless said; `gaussians` how many there may be in the end.
    `size` is (height, width). `steps` is how many steps a model takes that works in steps;
    `anchors` in how many views a model gathers all that go through it together, where it does.
    `refine_poses` is by how many steps in each round the cameras of the context are refined
    (`zoo.poses.refine_cameras`); None keeps them.
    `held_out` is with how many further photos to compare at most; `seconds` of video go from one
    context view to the next, fewer where there are many groups; `stabilize` takes the tremble out
    of its path. `photos` says how the photos are found. `confidence` gives gaussians.ply a column
    with the confidence of each Gaussian. `precision` is that of the network: see `pmsplat.compile`.
    """

    views: int | str | None = None
    context: tuple[int, ...] | None = None
    group: int | None = None
    fuse: str | None = None
    gaussians: int | None = None
    size: tuple[int, int] | None = None
    steps: int | None = None
    refine_poses: int | None = None
    anchors: int | None = None
    held_out: int = 12
    stabilize: bool = False
    fps: int = 30
    seconds: float = 1.5
    photos: PhotoOptions | None = None
    device: str = "auto"
    precision: Precision = "float32"
    confidence: bool = False
    overwrite: bool = False


def predict(
    source: str | Path | Scene,
    model: str | Path | nn.Module,
    output: str | Path,
    options: Options | None = None,
    weights: str | Path | None = None,
    tell: Callable[[str], None] = log.info,
    track: Track = silently,
) -> prediction.Summary:
    """Reconstructs a scene from some of its photos and writes what became of it to `output`.

    `source` is anything that `open_scene` opens, or a scene; `model` a name or path for
    `pmsplat.load`, or an encoder. Photos that are too many to go through the network together do so
    in groups that see the same things, one after another, and the Gaussians of all are fused. What
    is written is in the world and the unit of the input's cameras:

        gaussians.ply               loads in standard viewers
        depth/PHOTO.png, .npy       of the context views: in colour, and z in scene units
        confidence/PHOTO.png        how sure the model is of that depth, where it says so: 16 bits,
                                    probability of the best match = value / 65535
        render/PHOTO.png            cameras of photos that the network was not shown
        sheet.png                   all of that at a glance
        video.mp4                   a path through the context views
        cameras.json                of context and rendered photos; `scale`: see `reconstruct`
        metrics.json                PSNR and SSIM against the photos, depth where a sensor has it,
                                    and `Report`: whether the photos fit each other and the model

    `tell` gets what was decided, a sentence at a time, and the report. Raises UserError before
    hours are lost where the input, the options, the free memory or the output folder will not do.
    The folder appears whole or not at all.
    """
    chosen = options or Options()
    _check_options(chosen)
    device = pick_device(chosen.device)
    check_computing(device, chosen.precision)
    prepare(device)
    with make_whole(output, chosen.overwrite) as folder:
        scene = as_scene(source, chosen.photos, device, tell, track)
        encoder = _load(model, weights).to(device).eval()
        learned = None if isinstance(model, nn.Module) else trained_on(model)
        plan = _plan(scene, encoder, learned, chosen, device, tell)
        moved, answer = _predict(plan, tell, track)
        name = type(encoder).__name__ if isinstance(model, nn.Module) else str(model)
        result = _compare(plan, moved, answer, name, tell)
        summary = _write(folder, plan, result, track)
    for line in describe_report(result.report):
        tell(line)
    return summary


@dataclass(frozen=True)
class _Plan:
    """What goes through which network: the context in groups, at one size, on one device.

    `scene` has the near and far that the network wants, between which `middle_depth` lies where it
    searches a range of its own. `overlap` is that of all photos, and `at_once` how many views go
    through the network together at most. `steps` is None for a network that works in none, and
    `anchors` 0 for one that gathers in none.
    """

    scene: Scene
    encoder: nn.Module
    learned: TrainedOn | None
    options: Options
    device: torch.device
    size: tuple[int, int]
    overlap: Float[Tensor, "view view"]
    context: list[int]
    groups: list[Group]
    at_once: int
    steps: int | None
    anchors: int
    middle_depth: float | None

    @property
    def several(self) -> bool:
        """Whether the Gaussians of several groups become one scene."""
        return len(self.groups) > 1

    @property
    def fusing(self) -> Fusing:
        """How they do."""
        named, how = self.options.fuse is not None, self.options.fuse or HOW[0]
        return Fusing(how, self.options.gaussians, named, self.options.confidence)


def _plan(
    scene: Scene,
    encoder: nn.Module,
    learned: TrainedOn | None,
    options: Options,
    device: torch.device,
    tell: Callable[[str], None],
) -> _Plan:
    """Which photos the network sees, and which together; UserError for what does not fit."""
    traits = encoder_traits(encoder)
    steps = count_steps(options.steps, traits.steps)
    anchors = count_anchors(options.anchors, traits.anchors)
    size = fit_size(scene.size, options.size, learned)
    for sentence in describe_fit(scene.photos, size):
        tell(sentence)
    overlap = overlaps(scene.cameras)
    context = choose_views(scene, overlap, options, learned)
    groups = group_context(overlap, context, options, learned, traits.anchors)
    check_refined(options.refine_poses, len(groups))
    for sentence in describe_context(scene, context, overlap, groups):
        tell(sentence)
    at_once, kept = max(len(group.views) for group in groups), len(context) * (len(groups) > 1)
    asked = options.steps, options.anchors
    memory.check(encoder, memory.Plan(at_once, size, traits.multiple, *asked, kept=kept), device)
    cameras = fill_range(encoder, scene.cameras, context, scene.ranged)
    return _Plan(
        scene=replace(scene, cameras=cameras),
        encoder=encoder,
        learned=learned,
        options=options,
        device=device,
        size=size,
        overlap=overlap,
        context=context,
        groups=groups,
        at_once=at_once,
        steps=None if traits.steps is None else steps,
        anchors=anchors,
        middle_depth=middle_depth(encoder, scene.cameras.at(context)) if scene.ranged else None,
    )


def _predict(plan: _Plan, tell: Callable[[str], None], track: Track) -> tuple[Moved, Answer]:
    """The context with its cameras, refined where that is wanted, and what its groups became."""
    options = plan.options
    predictor = for_computing(plan.encoder, plan.device, options.precision)
    moved = refine_views(
        predictor,
        plan.scene.views(plan.context, plan.size),
        options.refine_poses,
        options.steps,
        plan.device,
        tell,
        track,
    )
    taken = "" if plan.steps is None else f", corrected in {count_of(plan.steps, 'step')}"
    said = _describe_size(len(plan.context), plan.at_once, plan.anchors)
    where = describe_computing(plan.device, options.precision)
    tell(f"Predicting depth and Gaussians of {said} on {where}{taken}.")
    answer = predict_fused(
        predictor,
        moved.views,
        plan.groups,
        plan.fusing,
        plan.device,
        track,
        options.steps,
        options.anchors,
    )
    for sentence in describe_fusion(answer.fused, plan.groups, plan.fusing):
        tell(sentence)
    return moved, answer


def _compare(
    plan: _Plan, moved: Moved, answer: Answer, name: str, tell: Callable[[str], None]
) -> prediction.Result:
    """What is written of the answer of a model: beside it other photos, and the report."""
    options, scene = plan.options, plan.scene
    others = held_out(plan.overlap, plan.context, options.held_out)
    if left := len(scene) - len(plan.context):
        most = len(held_out(plan.overlap, plan.context, left))
        tell(describe_held_out(len(others), most, left))
    scale = model_frame(plan.encoder, moved.views.cameras).scale
    given = Given.of(
        scene,
        plan.size,
        scale,
        plan.learned,
        named=options.context is not None,
        middle_depth=plan.middle_depth,
        at_once="group" if plan.several else "views",
    )
    return prediction.Result(
        context=moved.views,
        shown=tuple(answer.shown),
        held_out=scene.views(others, plan.size) if others else None,
        depth=answer.depth,
        confidence=answer.confidence,
        gaussians=replace(answer.fused.gaussians, origin=scene.origin).to(plan.device),
        scale=scale,
        report=make_report(answer.passes, given),
        model=name,
        steps=plan.steps,
        most_anchors=plan.anchors or None,
        fusion=record_fusion(answer.fused, plan.groups, plan.fusing, moved.views),
        refined=moved.by,
        precision=options.precision,
    )


def _write(
    folder: Path, plan: _Plan, result: prediction.Result, track: Track
) -> prediction.Summary:
    """The video and all other files; a path through several groups takes LONGEST at most."""
    options, seconds = plan.options, plan.options.seconds
    if plan.several:
        seconds = min(seconds, LONGEST / len(plan.context))
    path = prediction.video_path(result.context.cameras, options.fps, seconds, options.stabilize)
    prediction.write_video_along(folder / "video.mp4", result, path, options.fps, track)
    return prediction.write_results(folder, result, track)


def _load(model: str | Path | nn.Module, weights: str | Path | None) -> nn.Module:
    """The encoder; UserError for one that predicts depth alone."""
    encoder = model if isinstance(model, nn.Module) else load(model, weights)
    if not encoder_traits(encoder).draws:
        raise depth_only_error()
    return encoder


def _describe_size(views: int, at_once: int, anchors: int) -> str:
    """Of how many views there is a prediction, where so many go through the network at once."""
    if not 0 < anchors < at_once:
        return f"{views} views"
    return f"{anchors} of {at_once} views" + " of each group" * (at_once < views)


def _check_options(options: Options) -> None:
    """Raises UserError for options that no photos could fit, before anything is opened."""
    _check_video(options)
    check_how(options.fuse or HOW[0], "fuse")
    check_budget(options.gaussians)
    check_refined(options.refine_poses)
    if options.group is not None and options.group < 2:
        raise UserError(
            f"`group={options.group}`", "two views or more", "leave `group` out to go by the model"
        )
    if options.held_out < 0:
        raise UserError(f"`held_out={options.held_out}`", "a number of photos", "0 for none")
    if isinstance(options.views, str) and options.views != ALL:
        raise UserError(f"`views={options.views}`", f"a number or {ALL}", f"such as `views={ALL}`")


def _check_video(options: Options) -> None:
    """Raises UserError for options of which no video can be made."""
    if not 1 <= options.fps < math.inf:
        raise UserError(f"`fps={options.fps}`", "a whole number from 1", "the default is `fps=30`")
    if not 0 < options.seconds < math.inf:
        raise UserError(
            f"`seconds={options.seconds:g}`", "a positive number", "the default is `seconds=1.5`"
        )


def as_scene(
    source: str | Path | Scene,
    photos: PhotoOptions | None,
    device: torch.device,
    tell: Callable[[str], None],
    track: Track,
) -> Scene:
    """The scene itself, or the one that `open_scene` opens."""
    if isinstance(source, Scene):
        return source
    return open_scene(source, photos, tell=tell, device=device, track=track)


def choose_views(
    scene: Scene,
    overlap: Float[Tensor, "view view"],
    options: Options,
    learned: TrainedOn | None = None,
) -> list[int]:
    """The context views: those named, or so many, chosen by what they cover and their baseline.

    Where nobody says how many: VIEWS, or the fewest that the model learned from where those are
    more; one photo is left to compare with.
    """
    photos = len(scene)
    if options.context is not None:
        return choose_photos(options.context, photos)
    usual = max(VIEWS, learned.views[0] if learned and learned.views else 0)
    wanted = photos if options.views == ALL else options.views
    assert not isinstance(wanted, str), "it was checked"
    count = count_views(wanted, max(2, min(usual, photos - 1)), photos)
    if count == photos:
        return list(range(photos))
    return choose_context(look_around(scene.cameras), overlap, count)


def group_context(
    overlap: Float[Tensor, "view view"],
    context: list[int],
    options: Options,
    learned: TrainedOn | None = None,
    anchors: int = 0,
) -> list[Group]:
    """Which of the context go through the network together, by their places in it.

    All, where they are no more than `group`. Where nobody says how many: as many as the model
    learned from at most, VIEWS if those are more. Views that were named stay together, and so do
    those of a model that gathers any number of them in `anchors`, if it is not known what it
    learned from.
    """
    most = learned.views[1] if learned and learned.views else 0
    together = options.context is not None or (anchors and not most)
    count = options.group or (len(context) if together else max(VIEWS, most))
    if len(context) <= count:
        everyone = list(range(len(context)))
        return [Group(everyone, everyone)]
    return group_views(overlap[context][:, context], count)
