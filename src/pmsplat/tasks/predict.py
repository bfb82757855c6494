"""A scene of photographs in, a folder of results out: Gaussians, depth, novel views, a video."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from ..contracts import count_steps, encoder_traits
from ..errors import UserError
from ..progress import Track, silently
from ..scene import PhotoOptions, Scene, open_scene
from ..scene.coverage import choose_context, coverage, look_around
from ..scene.overlap import held_out, overlaps
from ..zoo import memory
from ..zoo.infer import depth_only_error, fill_range, middle_depth, reconstruct
from ..zoo.load import load
from ..zoo.trained import TrainedOn, trained_on
from .options import choose_photos, count_views, describe_fit, fit_size, pick_device
from .results import prediction
from .results.depth_files import check_depth
from .results.folder import make_whole
from .results.report import Given, describe_report, examine, make_report

VIEWS = 4  # of the context, where neither the user nor the model's training says more

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What may be chosen; None leaves it to `predict`, which says what it chose.

    `views` is how many context views to choose, so that two of them see as much as possible of what
    all photos see; `context` names them by index instead. `size` is (height, width). `steps` is how
    many steps a model takes that works in steps. `held_out` is
    with how many further photos to compare at most; `seconds` of video go from one context view to
    the next; `stabilize` takes the tremble out of its path. `photos` says how the photos are found.
    """

    views: int | None = None
    context: tuple[int, ...] | None = None
    size: tuple[int, int] | None = None
    steps: int | None = None
    held_out: int = 12
    stabilize: bool = False
    fps: int = 30
    seconds: float = 1.5
    photos: PhotoOptions | None = None
    device: str = "auto"
    overwrite: bool = False


def predict(
    source: str | Path,
    model: str | Path | nn.Module,
    output: str | Path,
    options: Options | None = None,
    weights: str | Path | None = None,
    tell: Callable[[str], None] = log.info,
    track: Track = silently,
) -> prediction.Summary:
    """Reconstructs a scene from a few of its photos and writes what became of it to `output`.

    `source` is anything that `open_scene` opens, `model` a name or path for `pmsplat.load`, or an
    encoder. What is written is in the world and the unit of the input's cameras:

        gaussians.ply               loads in standard viewers
        depth/PHOTO.png, .npy       of the context views: in colour, and z in scene units
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
    _check_video(chosen)
    device = pick_device(chosen.device)
    with make_whole(output, chosen.overwrite) as folder:
        # Open the scene and load the model
        scene = open_scene(source, chosen.photos, tell=tell, device=device)
        encoder = model if isinstance(model, nn.Module) else load(model, weights)
        encoder = encoder.to(device).eval()
        traits = encoder_traits(encoder)
        if not traits.draws:
            raise depth_only_error()
        steps = count_steps(chosen.steps, traits.steps)
        learned = None if isinstance(model, nn.Module) else trained_on(model)
        size = fit_size(scene.size, chosen.size)
        for sentence in describe_fit(scene, size):
            tell(sentence)
        # Which photos the network sees; does that fit into memory?
        overlap = overlaps(scene.cameras)
        context = choose_views(scene, overlap, chosen, learned)
        tell(_describe_context(scene, context, overlap))
        plan = memory.Plan(len(context), size, traits.multiple, chosen.steps)
        memory.check(encoder, plan, device)
        # Predict and write the results
        middle = middle_depth(encoder, scene.cameras.at(context)) if scene.ranged else None
        cameras = fill_range(encoder, scene.cameras, context, scene.ranged)
        scene = replace(scene, cameras=cameras)
        views = scene.views(context, size)
        taken = "" if traits.steps is None else f", with {steps} steps of its update"
        tell(f"Predicting depth and Gaussians of {len(context)} views on {device}{taken}.")
        found = reconstruct(encoder, views, device, chosen.steps)
        others = held_out(overlap, context, chosen.held_out)
        if left := len(scene) - len(context):
            tell(_describe_held_out(len(others), len(held_out(overlap, context, left)), left))
        named = chosen.context is not None
        given = Given(
            len(scene),
            size,
            found.scale,
            scene.range_source,
            learned,
            scene.left_out,
            named,
            middle,
            scene.poses,
        )
        depth = found.prediction.depths[-1]
        for at, photo in enumerate(context):
            check_depth(depth[0, at], scene.names[photo])
        report = make_report([examine(views, depth.float().cpu())], given)
        result = prediction.Result(
            context=views,
            held_out=scene.views(others, size) if others else None,
            depth=depth,
            gaussians=replace(found.prediction.gaussians[-1], origin=scene.origin),
            scale=found.scale,
            report=report,
            model=type(encoder).__name__ if isinstance(model, nn.Module) else str(model),
            steps=None if traits.steps is None else steps,
        )
        path = prediction.video_path(views.cameras, chosen.fps, chosen.seconds, chosen.stabilize)
        prediction.write_video_along(folder / "video.mp4", result, path, chosen.fps, track)
        summary = prediction.write_results(folder, result, track)
    for line in describe_report(report):
        tell(line)
    return summary


def _check_video(options: Options) -> None:
    """Raises UserError for options of which no video can be made."""
    if not 1 <= options.fps < math.inf:
        raise UserError(f"`fps={options.fps}`", "a whole number from 1", "the default is `fps=30`")
    if not 0 < options.seconds < math.inf:
        raise UserError(
            f"`seconds={options.seconds:g}`", "a positive number", "the default is `seconds=1.5`"
        )


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
    count = count_views(options.views, max(2, min(usual, photos - 1)), photos)
    return choose_context(look_around(scene.cameras), overlap, count)


def _describe_context(scene: Scene, context: list[int], overlap: Float[Tensor, "view view"]) -> str:
    shared = overlap[context][:, context].clone().fill_diagonal_(0).amax(dim=1).min().item()
    covered = coverage(look_around(scene.cameras), context)
    names = ", ".join(f"{i} ({scene.names[i]})" for i in context)
    return (
        f"Context: {len(context)} of {len(scene)} photos: {names}. "
        f"By the cameras, each shares about {shared:.0%} of its picture or more with another, and "
        f"two or more of them cover about {covered:.0%} of what all photos show."
    )


def _describe_held_out(count: int, fit: int, left: int) -> str:
    """How many photos are compared, of those that `fit`, and of all that are `left`."""
    said = f"Held out to compare: {count} of the {left} other photos"
    if fit < left:
        said += f"; {left - fit} share less than half of their picture with a context view"
    return f"{said}."
