"""A scene of photographs in, a folder of results out: Gaussians, depth, novel views, a video."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.folder import PhotoScene, open_scene
from ..errors import UserError
from ..models import _zoo
from ..types import Prediction, Views
from . import _coverage, _export, _folder, _memory

log = logging.getLogger(__name__)

NEAR = 0.5  # the near that published models were trained with, in their unit
LONGEST = 960  # pixels of the longer side of the largest images that models were published for


@dataclass(frozen=True)
class Options:
    """What may be chosen; None leaves it to `predict`, which says what it chose.

    `views` is how many context views to choose; `context` names them by index instead. `size` is
    (height, width). `held_out` is with how many further photos to compare at most; `seconds` of
    video go from one context view to the next; `stabilise` takes the tremble out of its path.
    """

    views: int | None = None
    context: tuple[int, ...] | None = None
    size: tuple[int, int] | None = None
    held_out: int = 12
    stabilise: bool = False
    fps: int = 30
    seconds: float = 1.5
    device: str = "auto"
    overwrite: bool = False


@dataclass(frozen=True)
class Reconstruction:
    """A prediction in the unit of its input, and how much larger the network saw the world."""

    prediction: Prediction
    scale: float


def predict(
    source: str | Path,
    model: str | Path | nn.Module,
    output: str | Path,
    options: Options | None = None,
    weights: str | Path | None = None,
    tell: Callable[[str], None] = log.info,
    track: _export.Track = _export.silently,
) -> _export.Summary:
    """Reconstructs a scene from a few of its photos and writes what became of it to `output`.

    `source` is anything that `open_scene` opens, `model` a name or path for `pmsplat.load`, or an
    encoder. What is written is in the world and the unit of the input's cameras:

        gaussians.ply               loads in standard viewers
        depth/PHOTO.png, .npy       of the context views: in colour, and z in scene units
        render/PHOTO.png            cameras of photos that the network was not shown
        sheet.png                   all of that at a glance
        video.mp4                   a path through the context views
        cameras.json                of context and rendered photos; `scale`: see `reconstruct`
        metrics.json                PSNR and SSIM against the photos, depth where a sensor has it

    `tell` gets what was decided, a sentence at a time. Raises UserError before hours are lost where
    the input, the options, the free memory or the output folder will not do. The folder appears
    whole or not at all.
    """
    chosen = options or Options()
    device = pick_device(chosen.device)
    with _folder.results(output, _export.MARK, chosen.overwrite) as folder:
        scene = open_scene(source)
        encoder = model if isinstance(model, nn.Module) else _zoo.load(model, weights)
        encoder = encoder.to(device).eval()
        multiple = getattr(encoder, "multiple", 1)
        size = fit_size(scene.size, multiple, chosen.size)
        if size != scene.size:
            tell(f"Photos of {_by(scene.size)} are scaled and cut to {_by(size)} (height x width).")
        overlap = _coverage.overlaps(scene.cameras)
        context = choose_views(scene, overlap, chosen)
        tell(_about(scene, context, overlap))
        _memory.check(encoder, _memory.Plan(len(context), size, multiple), device)
        views = scene.views(context, size)
        tell(f"Predicting depth and Gaussians of {len(context)} views on {device}.")
        found = reconstruct(encoder, views, device)
        others = _coverage.held_out(overlap, context, chosen.held_out)
        result = _export.Result(
            context=views,
            held_out=scene.views(others, size) if others else None,
            depth=found.prediction.depths[-1],
            gaussians=found.prediction.gaussians[-1],
            scale=found.scale,
        )
        path = _export.video_path(views.cameras, chosen.fps, chosen.seconds, chosen.stabilise)
        _export.write_path(folder / "video.mp4", result, path, chosen.fps, track)
        return _export.write(folder, result, track)


def reconstruct(
    model: Callable[[Views], Prediction], views: Views, device: torch.device | str = "cpu"
) -> Reconstruction:
    """The model's answer, in the unit of the views, on `device`.

    Networks learn sizes in a unit in which near is 0.5, the same for all views. So one range holds
    for all, from the nearest near to the farthest far; the scene is scaled until that near is 0.5;
    depths and Gaussians are scaled back. Raises UserError for a model that predicts depth alone.
    """
    cameras = views.cameras
    near = cameras.near.amin(dim=1, keepdim=True).expand_as(cameras.near)
    far = cameras.far.amax(dim=1, keepdim=True).expand_as(cameras.far)
    scale = NEAR / float(near.min())
    scaled = replace(cameras, near=near, far=far).scaled(scale)
    with torch.no_grad():
        answer = model(Views(views.images, scaled).to(device))
    if not answer.gaussians:
        raise UserError(
            "a model that predicts depth alone",
            "one that predicts Gaussians",
            "choose another --model, or run `pmsplat depth`",
        )
    depths = tuple(depth / scale for depth in answer.depths)
    gaussians = tuple(level.scaled(1 / scale) for level in answer.gaussians)
    return Reconstruction(Prediction(depths, gaussians), scale)


def choose_views(
    scene: PhotoScene, overlap: Float[Tensor, "view view"], options: Options
) -> list[int]:
    """The context views: those asked for, or so many, spread as far as they still overlap."""
    photos = len(scene)
    if options.context is not None:
        context = sorted(set(options.context))
        beyond = [i for i in context if not 0 <= i < photos]
        if beyond or len(context) < 2:
            raise UserError(
                f"--context {','.join(map(str, options.context))} for {photos} photos",
                f"two or more different numbers from 0 to {photos - 1}",
                "count the photos in the order of their camera file, from 0",
            )
        return context
    count = max(2, min(4, photos - 1)) if options.views is None else options.views
    if not 2 <= count <= photos:
        raise UserError(
            f"{count} context views of a scene of {photos} photos"
            if options.views is not None
            else f"a scene of {photos} photos",
            f"from 2 to {photos} views" if photos >= 2 else "two photos or more",
            "ask for another number with --views" if photos >= 2 else "add photos of the scene",
        )
    return _coverage.choose_context(overlap, count)


def fit_size(
    photo: tuple[int, int], multiple: int, wanted: tuple[int, int] | None
) -> tuple[int, int]:
    """(height, width) for the network: as asked, or the photo's, in multiples that the model takes.

    Without a wish, photos with a side beyond LONGEST are scaled down to it. Raises UserError for a
    wish that is no multiple, and for photos smaller than one.
    """
    if wanted is not None:
        fitting = (_nearest(wanted[0], multiple), _nearest(wanted[1], multiple))
        if fitting != wanted:
            raise UserError(
                f"--size {_by(wanted)}",
                f"height and width in multiples of {multiple} for this model",
                f"use --size {_by(fitting)}",
            )
        return wanted
    factor = min(1.0, LONGEST / max(photo))
    height, width = (int(round(side * factor) // multiple * multiple) for side in photo)
    if min(height, width) == 0:
        raise UserError(
            f"photos of {_by(photo)} pixels",
            f"sides of at least {multiple} for this model",
            f"use larger photos, or enlarge these with --size {multiple}x{multiple}",
        )
    return height, width


def pick_device(name: str) -> torch.device:
    """The device of a name: "auto" is CUDA where there is one. UserError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda") and not name.removeprefix("cuda:").isdigit():
        raise UserError(f"--device {name}", "auto, cpu, cuda or cuda:N", "choose one of them")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}, but there are {torch.cuda.device_count()} CUDA devices here",
            "a device that exists",
            "use --device cpu, or install a build of torch for your card",
        )
    return device


def _nearest(side: int, multiple: int) -> int:
    return max(multiple, round(side / multiple) * multiple)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _about(scene: PhotoScene, context: list[int], overlap: Float[Tensor, "view view"]) -> str:
    shared = overlap[context][:, context].clone().fill_diagonal_(0).amax(dim=1).min().item()
    names = ", ".join(f"{i} ({scene.names[i]})" for i in context)
    return (
        f"Context: {len(context)} of {len(scene)} photos: {names}. "
        f"Each shares at least {shared:.0%} of its picture with another."
    )
