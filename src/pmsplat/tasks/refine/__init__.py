"""Gaussians optimised for one scene, on its posed photos: 3D Gaussian Splatting from scratch.

Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering", SIGGRAPH 2023.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...device import explain_full, float32_products
from ...errors import UserError
from ...io.gaussians import load_gaussians
from ...progress import Track, silently
from ...scene import Scene, open_scene
from ...types import CLASSIC, MIP, DrawingRules, Gaussians, Views
from ...zoo.infer import fill_range
from ...zoo.load import load
from ..options import format_rules, format_size, pick_device
from . import _report, _start
from ._cloud import Cloud, Parameters
from ._fit import Fit, Moment, choose_size, load_state, save_state, wait_for, watch_interrupt
from ._options import (
    MOST,
    MOST_ON_CPU,
    RANDOM_POINTS,
    STATE,
    STRATEGIES,
    Options,
    check,
    check_folder,
    choose_start,
    choose_strategy,
)
from ._strategy import Schedule

__all__ = ["Options", "refine"]

log = logging.getLogger(__name__)

OF_RESULT = (
    "seed", "strategy", "steps", "sh_degree", "antialiased", "random_points", "test_every",
)  # fmt: skip
JUDGEMENTS = 20  # comparisons with the held-out photos in a run


@float32_products(tf32=False)
def refine(
    source: str | Path,
    output: str | Path,
    options: Options | None = None,
    tell: Callable[[str], None] = log.info,
    track: Track = silently,
) -> _report.Summary:
    """Optimises Gaussians on the photos of a scene, and writes what became of them to `output`.

    `source` is anything that `open_scene` opens. Every eighth photo (`test_every`) is held out and
    compared with before, on the way, and after. In the world and the unit of the input's cameras:

        gaussians.ply     loads in standard viewers
        cameras.json      of the photos, for `view` (not where `output` is the scene's own folder)
        psnr.png          PSNR of the held-out photos over the steps
        sheet.png         held-out photos, renderings before and after, depth
        metrics.json      `Summary`
        state.pt          to go on from with `resume`, to the same result bit for bit on the CPU

    Ctrl-C lets the step at hand finish and keeps the state; then comes KeyboardInterrupt. `tell`
    gets what was decided and how far it is, a sentence at a time. Raises UserError for wrong
    input, before anything slow, and where a GPU is full: then the state is kept, too.
    """
    # Refuse what cannot be, before anything slow
    chosen, device = _complete_options(options or Options())
    folder = Path(output)
    check_folder(folder, chosen)
    scene = open_scene(source, chosen.photos, tell=tell, device=device)
    # Photos to optimise on, and photos to compare with
    rest, held = _split_photos(len(scene), chosen.test_every)
    start = choose_start(scene, chosen)
    size = choose_size(chosen.size, scene.size, device)
    train, test = scene.views(rest, size), scene.views(held, size)
    # What a run to resume must have been begun with
    settings: dict[str, Any] = {
        "photos": list(scene.names), "size": list(size), "start": start,
        **{name: getattr(chosen, name) for name in OF_RESULT},
    }  # fmt: skip
    state = load_state(folder / STATE, settings) if chosen.resume else None
    if state is not None and chosen.most is None:
        chosen = replace(chosen, most=state["settings"]["most"])
    settings["most"] = chosen.most
    tell(
        f"{len(rest)} photos of {format_size(size)} (height x width) on {device}, {len(held)} held "
        f"out; start: {start}, strategy: {chosen.strategy}"
        f"{', antialiased' if chosen.antialiased else ''}."
    )
    extent = _start.measure_extent(train.cameras)
    if state is None:
        # Begin: Gaussians to start from, and how good they are
        began = time.perf_counter()
        gaussians = _make_start(start, scene, train, chosen, device)
        if start in ("file", "prediction"):
            _compare_rules(gaussians, chosen, tell)
        if gaussians.confidence is not None:
            tell("The confidence of the start is left out: it says nothing of what becomes of it.")
        fit = _begin_fit(gaussians, extent, chosen, device)
        wait_for(device)
        took = time.perf_counter() - began
        _check_seen(fit, train, start)
        tell(f"Before: {_describe(fit.judge(test))}")
        before = _report.draw_pictures(fit, test)
        state = {"settings": settings, "before": before, "start_seconds": took, "up": gaussians.up}
        for name in _list_results(source, folder):  # of an earlier run
            (folder / name).unlink(missing_ok=True)
        save_state(folder / STATE, state | fit.state())
    else:
        # Go on where the earlier run stopped
        fit = _resume_fit(state, extent, chosen, device, tell)
        state["settings"] = settings
    # Run all steps and write the results
    kept = {name: state.get(name) for name in ("settings", "before", "start_seconds", "up")}
    with explain_full(lambda _: _explain_memory(fit, folder, kept, chosen, train.size)):
        _run(fit, train, test, folder, kept, chosen, tell, track)
    summary = _report.Summary(
        start=start,
        strategy=settings["strategy"],
        antialiased=chosen.antialiased,
        size=size,
        trained_on=len(rest),
        held_out=len(held),
        start_seconds=state["start_seconds"],
        seconds_per_step=fit.seconds / max(fit.step, 1),
        history=tuple(fit.history),
        origin=scene.origin,
        left_out=scene.left_out,
    )
    if _report.CAMERAS in _list_results(source, folder):
        _report.write_all_cameras(folder, train, test, scene.origin, scene.poses)
    _report.write_results(folder, fit, test, kept, summary)
    return summary


def _list_results(source: str | Path, folder: Path) -> tuple[str, ...]:
    """Files that a run writes at its end; a scene in the same folder keeps its own cameras."""
    own = [Path(source), Path(source).parent]
    among = folder.exists() and any(path.exists() and path.samefile(folder) for path in own)
    return _report.FILES if among else (*_report.FILES, _report.CAMERAS)


def _complete_options(options: Options) -> tuple[Options, torch.device]:
    """Options with what was left open chosen for the device; UserError for what cannot be."""
    device = pick_device(options.device)
    strategy, most = choose_strategy(options.strategy, device), options.most
    if most is None and not options.resume:  # a resumed run keeps its own
        most = MOST if device.type == "cuda" else MOST_ON_CPU
    chosen = replace(options, strategy=strategy, most=most)
    check(chosen)
    return chosen, device


def _split_photos(photos: int, test_every: int) -> tuple[list[int], list[int]]:
    """Indices of the photos to optimise on, and of those held out."""
    held = range(0, photos, test_every)
    rest = [i for i in range(photos) if i not in held]
    if len(rest) < 2:
        raise UserError(
            f"{photos} photos, {len(held)} of them held out",
            "two or more to optimise on",
            "add photos of the scene, or hold out fewer: raise `test_every`",
        )
    return rest, list(held)


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
    with watch_interrupt() as stop:
        for step in track(steps, "optimising", len(steps)):
            fit.advance(train)
            if step % judged == 0 or step == options.steps:
                pace = fit.seconds / fit.step
                quality = _describe(fit.judge(test))
                tell(f"Step {step} of {options.steps}: {quality}, {pace:.3g} s/step")
            stopped = stop()
            if stopped or step % options.save_every == 0 or step == options.steps:
                save_state(folder / STATE, kept | fit.state())
            if stopped:
                tell(f"Stopped after step {step}; a resumed run goes on from {folder / STATE}.")
                raise KeyboardInterrupt


def _explain_memory(
    fit: Fit, folder: Path, kept: dict[str, Any], options: Options, size: tuple[int, int]
) -> UserError:
    """The sentence for a full GPU; saves the state, unless the step had begun to change it."""
    path = folder / STATE
    if fit.whole:
        save_state(path, kept | fit.state())
    saved, count = load_state(path, {})["step"], len(fit.cloud)
    return UserError(
        f"out of memory on {fit.generator.device} after {fit.step} of {options.steps} steps, with "
        f"{count:,} Gaussians and photos of {format_size(size)}",
        "Gaussians and photos that fit beside what other programs hold",
        f"go on from {path}, which is of step {saved}, with `resume=True` and fewer Gaussians, "
        f"such as `most={max(1, count * 3 // 4)}`, or where more memory is free; or begin anew "
        "with a smaller `size`",
    )


def _make_start(
    start: str,
    scene: Scene,
    train: Views,
    options: Options,
    device: torch.device,
) -> Gaussians:
    """The Gaussians to start from; held-out photos have no part in them."""
    generator = torch.Generator().manual_seed(options.seed)
    if start == "file":
        assert options.init is not None
        gaussians = load_gaussians(options.init).at_origin(scene.origin)
        if not gaussians.means.shape[1]:
            raise UserError(
                f"{options.init} holds no Gaussians", "one at least", "choose another `init`"
            )
        return gaussians
    if start == "prediction":
        assert options.model is not None and options.most is not None
        model, room = options.model, options.most // 2
        encoder = model if isinstance(model, nn.Module) else load(model, options.weights)
        encoder = encoder.to(device).eval()
        everything = range(train.images.shape[1])
        cameras = fill_range(encoder, train.cameras, everything, scene.ranged)
        train = replace(train, cameras=cameras)
        return _start.from_prediction(encoder, train, room, generator)
    if start == "points":
        assert scene.points is not None
        return _start.from_points(scene.points, train, options.sh_degree)
    count = options.random_points or RANDOM_POINTS
    points = _start.sample_points(train.cameras, count, generator)
    return _start.from_points(points, train, options.sh_degree)


def _compare_rules(gaussians: Gaussians, options: Options, tell: Callable[[str], None]) -> None:
    """Says where the start was trained to be drawn by other rules than those of this run."""
    rules = _choose_rules(options)
    if gaussians.rules != rules:
        tell(
            f"The start was trained for the rules {format_rules(gaussians.rules)}; this run draws "
            f"and trains by {format_rules(rules)}, so it looks different before the first step."
        )


def _choose_rules(options: Options) -> DrawingRules:
    return MIP if options.antialiased else CLASSIC


def _begin_fit(gaussians: Gaussians, extent: float, options: Options, device: torch.device) -> Fit:
    """A fit at step 0; what SH the start has are drawn from the first step on."""
    wanted = (options.sh_degree + 1) ** 2
    missing = max(wanted - gaussians.sh.shape[2], 0)
    padded = torch.nn.functional.pad(gaussians.sh, (0, 0, 0, missing))[:, :, :wanted]
    used = min(gaussians.sh_degree, options.sh_degree) if padded[:, :, 1:].any() else 0
    parameters = Parameters.of(replace(gaussians, sh=padded).to(device))
    assert options.strategy is not None and options.most is not None
    schedule = Schedule.plan(options.steps, mcmc=options.strategy.endswith("mcmc"))
    strategy = STRATEGIES[options.strategy](schedule, options.most)
    cloud = Cloud(parameters, extent, options.steps, _choose_rules(options))
    return Fit(cloud, strategy, schedule, used, options.seed)


def _resume_fit(
    state: dict[str, Any],
    extent: float,
    options: Options,
    device: torch.device,
    tell: Callable[[str], None],
) -> Fit:
    """The fit of an earlier run; without its faintest Gaussians, where `most` was lowered since.

    UserError where that would lower the quality of a finished run, with no step to mend it.
    """
    gaussians = Parameters(**state["cloud"]["parameters"]).gaussians()
    fit = _begin_fit(gaussians, extent, options, device)
    fit.restore(state)
    tell(f"Going on after step {fit.step} of {options.steps}.")
    count, most = len(fit.cloud), options.most
    assert most is not None
    if most < min(count, state["settings"]["most"]):
        if fit.step >= options.steps:
            raise UserError(
                f"`most={most}` for a run that has done all of its {options.steps} steps, with "
                f"{count:,} Gaussians",
                "a run that has steps left to do with fewer",
                "leave `most` out, or begin anew in another `output`",
            )
        fit.drop_faintest(most)
        tell(f"The faintest {count - most:,} of {count:,} Gaussians are left out: `most={most}`.")
    return fit


def _check_seen(fit: Fit, train: Views, start: str) -> None:
    """Raises UserError where no photo has any of the Gaussians in its picture."""
    if not any(bool(rendering.alpha.any()) for rendering in fit.draw(train)):
        raise UserError(
            f"Gaussians (start: {start}) that no photo of the scene sees",
            "Gaussians in the world of the cameras",
            "start from those of this scene, or from `start=random`",
        )


def _describe(moment: Moment) -> str:
    return (
        f"{moment.gaussians} Gaussians, held-out PSNR {moment.psnr:.2f} dB, SSIM {moment.ssim:.3f}"
    )
