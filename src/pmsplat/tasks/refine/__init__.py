"""Gaussians optimised for one scene, on its posed photos: 3D Gaussian Splatting from scratch.

Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering", SIGGRAPH 2023.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...data.folder import PhotoScene, open_scene
from ...errors import UserError
from ...io.gaussians import load_gaussians
from ...models import _zoo
from ...registry import suggest
from ...types import Gaussians, Views
from .. import _coverage, _memory
from .._choices import by, fit_size, pick_device
from .._progress import Track, silently
from ..predict import reconstruct
from . import _report, _start
from ._cloud import Cloud, Parameters
from ._fit import Fit, Moment, choose_size, load_state, save_state, told_to_stop
from ._image import fit_image
from ._strategy import STRATEGIES, Schedule

__all__ = ["Options", "fit_image", "refine"]

log = logging.getLogger(__name__)

STARTS = ("points", "random", "prediction", "file")
STATE = "state.pt"
HELD_OUT = 8  # every so manieth photo is kept from the optimisation, as in the paper
MOST, MOST_ON_CPU = 1_000_000, 50_000
CONTEXT = 4  # photos shown to the encoder, at most
JUDGEMENTS = 20  # comparisons with the held-out photos in a run


@dataclass(frozen=True)
class Options:
    """What may be chosen; None leaves it to `refine`, which says what it chose.

    `start` is one of STARTS: sparse points if there are any, else random ones, where nothing is
    said; a `model` or a file `init` say it too. `size` is (height, width). `most` bounds the number
    of Gaussians: MOST, on the CPU MOST_ON_CPU. `random_points` is how many to start from at random.
    `sh_degree` is reached step by step. The state is saved every `save_every` steps.
    """

    start: str | None = None
    model: str | Path | nn.Module | None = None
    weights: str | Path | None = None
    init: str | Path | None = None
    strategy: str = "default"
    steps: int = 3000
    size: tuple[int, int] | None = None
    most: int | None = None
    random_points: int = 10_000
    sh_degree: int = 3
    seed: int = 0
    save_every: int = 500
    resume: bool = False
    device: str = "auto"
    overwrite: bool = False


def refine(
    source: str | Path,
    output: str | Path,
    options: Options | None = None,
    tell: Callable[[str], None] = log.info,
    track: Track = silently,
) -> _report.Summary:
    """Optimises Gaussians on the photos of a scene, and writes what became of them to `output`.

    `source` is anything that `open_scene` opens. Every eighth photo is held out and compared with
    before, on the way, and after. In the world and the unit of the input's cameras:

        gaussians.ply     loads in standard viewers
        psnr.png          PSNR of the held-out photos over the steps
        sheet.png         held-out photos, renderings before and after, depth
        metrics.json      `Summary`
        state.pt          to go on from with `resume`, to the same result bit for bit on the CPU

    Ctrl-C lets the step at hand finish and keeps the state; then comes KeyboardInterrupt. `tell`
    gets what was decided and how far it is, a sentence at a time. Raises UserError for what the
    user can mend, before anything slow.
    """
    chosen, folder = options or Options(), Path(output)
    device = pick_device(chosen.device)
    if chosen.most is None:
        chosen = replace(chosen, most=MOST if device.type == "cuda" else MOST_ON_CPU)
    _check(chosen)
    _check_folder(folder, chosen)
    scene = open_scene(source)
    photos = len(scene)
    held = list(range(0, photos, HELD_OUT))
    rest = [i for i in range(photos) if i not in held]
    if len(rest) < 2:
        raise UserError(
            f"{photos} photos", "three or more: one is held out", "add photos of the scene"
        )
    start = _start_of(scene, chosen)
    size = choose_size(chosen.size, scene.size, device)
    train, test = scene.views(rest, size), scene.views(held, size)
    settings: dict[str, Any] = {
        "photos": list(scene.names), "size": list(size), "start": start, "seed": chosen.seed,
        "strategy": chosen.strategy, "steps": chosen.steps, "most": chosen.most,
        "sh_degree": chosen.sh_degree, "random_points": chosen.random_points,
    }  # fmt: skip
    state = load_state(folder / STATE, settings) if chosen.resume else None
    tell(
        f"{len(rest)} photos of {by(size)} (height x width) on {device}, {len(held)} held out; "
        f"start: {start}, strategy: {chosen.strategy}."
    )
    extent = _start.extent(train.cameras)
    if state is None:
        fit = _begin(_started(start, scene, rest, train, chosen, device), extent, chosen, device)
        state = {"settings": settings, "before": _report.pictures(fit, test)}
        tell(f"Before: {_said(fit.judge(test))}")
    else:
        fit = _begin(Parameters(**state["cloud"]["parameters"]).gaussians(), extent, chosen, device)
        fit.restore(state)
        tell(f"Going on after step {fit.step} of {chosen.steps}.")
    kept = {name: state[name] for name in ("settings", "before")}
    _run(fit, train, test, folder, kept, chosen, tell, track)
    summary = _report.Summary(
        start=start,
        strategy=chosen.strategy,
        size=size,
        trained_on=len(rest),
        held_out=len(held),
        seconds_per_step=fit.seconds / max(fit.step, 1),
        history=tuple(fit.history),
    )
    _report.write(folder, fit, test, kept["before"], summary)
    return summary


def _run(
    fit: Fit,
    train: Views,
    test: Views,
    folder: Path,
    kept: dict[str, Any],
    options: Options,
    tell: Callable[[str], None],
    track: Track,
) -> None:
    """From where the fit is to its last step, with comparisons and saved states on the way."""
    steps = range(fit.step + 1, options.steps + 1)
    judged = max(1, options.steps // JUDGEMENTS)
    with told_to_stop() as stop:
        for step in track(steps, "optimising", len(steps)):
            fit.advance(train)
            if step % judged == 0 or step == options.steps:
                pace = fit.seconds / fit.step
                tell(f"Step {step} of {options.steps}: {_said(fit.judge(test))}, {pace:.3g} s/step")
            stopped = stop()
            if stopped or step % options.save_every == 0 or step == options.steps:
                save_state(folder / STATE, kept | fit.state())
            if stopped:
                tell(f"Stopped after step {step}; --resume goes on from {folder / STATE}.")
                raise KeyboardInterrupt


def _begin(gaussians: Gaussians, extent: float, options: Options, device: torch.device) -> Fit:
    """A fit at step 0; SH of the start are drawn from the first step on."""
    stored = gaussians.sh_degree
    missing = (options.sh_degree + 1) ** 2 - gaussians.sh.shape[-2]
    padded = torch.nn.functional.pad(gaussians.sh, (0, 0, 0, max(missing, 0)))
    kept = padded[:, :, : (options.sh_degree + 1) ** 2]
    used = int(bool(kept[:, :, 1:].any())) * min(stored, options.sh_degree)
    parameters = Parameters.of(replace(gaussians, sh=kept).to(device))
    schedule = Schedule.planned(options.steps, mcmc=options.strategy == "mcmc")
    strategy = STRATEGIES[options.strategy](schedule, options.most)
    return Fit(Cloud(parameters, extent, options.steps), strategy, schedule, used, options.seed)


def _started(
    start: str,
    scene: PhotoScene,
    rest: list[int],
    train: Views,
    options: Options,
    device: torch.device,
) -> Gaussians:
    """The Gaussians to start from; held-out photos have no part in them."""
    if start == "file":
        assert options.init is not None
        return load_gaussians(options.init)
    if start == "prediction":
        assert options.model is not None
        model = options.model
        encoder = model if isinstance(model, nn.Module) else _zoo.load(model, options.weights)
        encoder = encoder.to(device).eval()
        overlap = _coverage.overlaps(train.cameras)
        context = _coverage.choose_context(overlap, min(CONTEXT, len(rest)))
        multiple = getattr(encoder, "multiple", 1)
        size = fit_size(train.size, 1, None)
        _memory.check(encoder, _memory.Plan(len(context), size, multiple), device)
        views = scene.views([rest[i] for i in context], size)
        return reconstruct(encoder, views, device).prediction.gaussians[-1]
    if start == "points":
        assert scene.points is not None
        return _start.from_points(scene.points, train, options.sh_degree)
    generator = torch.Generator().manual_seed(options.seed)
    points = _start.at_random(train.cameras, options.random_points, generator)
    return _start.from_points(points, train, options.sh_degree)


def _start_of(scene: PhotoScene, options: Options) -> str:
    """One of STARTS; UserError where what it needs is not there, or what it does not is."""
    given = options.start
    if given is None:
        given = "file" if options.init else "prediction" if options.model else None
    if given is None:
        given = "random" if scene.points is None else "points"
    if given not in STARTS:
        raise UserError(
            f"--start {given}", f"one of {', '.join(STARTS)}", suggest(given, list(STARTS))
        )
    if given == "points" and scene.points is None:
        raise UserError(
            f"{scene.name} has no sparse points",
            "the points of a COLMAP model",
            "start from random ones: --start random",
        )
    for start, option, value in (
        ("prediction", "model", options.model),
        ("file", "init", options.init),
    ):
        if (given == start) != (value is not None):
            got = (
                f"--{option} with --start {given}"
                if value is not None
                else f"--start {start} alone"
            )
            raise UserError(
                got, f"--start {start} and --{option} together", f"add or drop --{option}"
            )
    return given


def _check(options: Options) -> None:
    if options.strategy not in STRATEGIES:
        raise UserError(
            f"--strategy {options.strategy}",
            f"one of {', '.join(STRATEGIES)}",
            suggest(options.strategy, list(STRATEGIES)),
        )
    for name in ("steps", "most", "random_points", "save_every"):
        if getattr(options, name) < 1:
            raise UserError(f"{name} = {getattr(options, name)}", "at least 1", "choose more")
    if not 0 <= options.sh_degree <= 3:
        raise UserError(f"sh_degree = {options.sh_degree}", "0 to 3", "choose one of them")


def _check_folder(folder: Path, options: Options) -> None:
    """Makes the folder; UserError where it holds another run, other files, or nothing to resume."""
    state = folder / STATE
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"{folder} is a file", "a folder for the results", "choose another --output"
        )
    if options.resume and not state.is_file():
        raise UserError(f"there is no {state}", "an interrupted run", "drop --resume")
    if not options.resume and not options.overwrite and folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"{folder} holds a run" if state.exists() else f"{folder} holds other files",
            "a new or empty folder",
            "go on with --resume, begin anew with --overwrite, or choose another --output"
            if state.exists()
            else "choose another --output, or add --overwrite to write among them",
        )
    folder.mkdir(parents=True, exist_ok=True)


def _said(moment: Moment) -> str:
    return (
        f"{moment.gaussians} Gaussians, held-out PSNR {moment.psnr:.2f} dB, SSIM {moment.ssim:.3f}"
    )
