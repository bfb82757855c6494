"""What may be chosen for an optimisation, and what cannot be."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ... import render
from ...errors import UserError
from ...registry import suggest
from ...scene import PhotoOptions, Scene
from . import _gsplat
from ._strategy import MCMC, Densify, Schedule, Strategy

STRATEGIES: dict[str, Callable[[Schedule, int], Strategy]] = {
    "default": Densify,
    "mcmc": MCMC,
    "gsplat-default": _gsplat.GsplatDefault,
    "gsplat-mcmc": _gsplat.GsplatMCMC,
}
STARTS = ("points", "random", "prediction", "file")
STATE = "state.pt"
MOST, MOST_ON_CPU = 1_000_000, 50_000
RANDOM_POINTS = 10_000
DRAWN_FROM = 2**24  # the most categories of torch.multinomial


@dataclass(frozen=True)
class Options:
    """What may be chosen; None leaves it to `refine`, which says what it chose.

    `start` is one of STARTS: sparse points if there are any, else random ones, where nothing is
    said; a `model` or a file `init` say it too. `strategy` is one of STRATEGIES: gsplat's default
    one where gsplat draws, else ours. `size` is (height, width). `most` bounds the number of
    Gaussians: MOST, on the CPU MOST_ON_CPU; a resumed run may have another, and leaves out the
    faintest where that is lower. `random_points` is how many to start from at random,
    RANDOM_POINTS. `sh_degree` is reached step by step. `antialiased` trains by the rules MIP
    instead of CLASSIC, and the result says so. Every `test_every`-th photo is held out, from the
    first on. The state is saved every `save_every` steps. `photos` says how the photos are found.
    """

    start: str | None = None
    model: str | Path | nn.Module | None = None
    weights: str | Path | None = None
    init: str | Path | None = None
    strategy: str | None = None
    steps: int = 3000
    size: tuple[int, int] | None = None
    most: int | None = None
    random_points: int | None = None
    sh_degree: int = 3
    antialiased: bool = False
    test_every: int = 8
    seed: int = 0
    save_every: int = 500
    resume: bool = False
    photos: PhotoOptions | None = None
    device: str = "auto"
    overwrite: bool = False


def check(options: Options) -> None:
    """Raises UserError for what no run can do."""
    least = {"steps": 1, "most": 1, "random_points": 1, "save_every": 1, "test_every": 2}
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and value < bound:
            raise UserError(f"`{name}={value}`", f"at least {bound}", f"raise `{name}`")
    if options.strategy == "mcmc" and (options.most or 0) > DRAWN_FROM:
        raise UserError(
            f"`most={options.most}` with `strategy=mcmc`",
            f"at most {DRAWN_FROM}, from which torch can draw at random",
            "choose fewer, or `strategy=default`",
        )
    if options.weights is not None and options.model is None:
        raise UserError("`weights` alone", "the model that they belong to", "add `model`")
    if not 0 <= options.sh_degree <= 3:
        raise UserError(f"`sh_degree={options.sh_degree}`", "0 to 3", "choose one of them")


def choose_strategy(wanted: str | None, device: torch.device) -> str:
    """One of STRATEGIES; UserError for one that is not known, or not to be had on the device."""
    if wanted is None:
        return "default" if render.obstacle("gsplat", device) else "gsplat-default"
    if wanted not in STRATEGIES:
        raise UserError(
            f"`strategy={wanted}`",
            f"one of {', '.join(STRATEGIES)}",
            suggest(wanted, list(STRATEGIES)),
        )
    problem = _gsplat.obstacle(wanted, device) if wanted.startswith("gsplat") else None
    if problem is not None:
        raise problem
    return wanted


def check_folder(folder: Path, options: Options) -> None:
    """Raises UserError where the folder holds another run, other files, or nothing to resume."""
    state = folder / STATE
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"{folder} is a file", "a folder for the results", "choose another `output`"
        )
    if options.resume and not state.is_file():
        raise UserError(f"there is no {state}", "an interrupted run", "begin one without `resume`")
    if not options.resume and not options.overwrite and folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"{folder} holds a run" if state.exists() else f"{folder} holds other files",
            "a new or empty folder",
            "go on with `resume=True`, begin anew with `overwrite=True`, or choose another `output`"
            if state.exists()
            else "choose another `output`, or write among them with `overwrite=True`",
        )


def choose_start(scene: Scene, options: Options) -> str:
    """One of STARTS; UserError where what it needs is not there, or what it does not is."""
    given = options.start
    if given is None:
        given = "file" if options.init else "prediction" if options.model else None
    if given is None:
        given = "random" if scene.points is None else "points"
    if given not in STARTS:
        raise UserError(
            f"`start={given}`", f"one of {', '.join(STARTS)}", suggest(given, list(STARTS))
        )
    if given == "points" and scene.points is None:
        raise UserError(
            f"{scene.name} has no sparse points",
            "the points of a COLMAP model",
            "start from random ones: `start=random`",
        )
    if given != "random" and options.random_points is not None:
        raise UserError(
            f"`random_points` with `start={given}`",
            "it with `start=random`",
            "drop `random_points`, or start at random",
        )
    for start, option, value in (
        ("prediction", "model", options.model),
        ("file", "init", options.init),
    ):
        if (given == start) != (value is not None):
            got = (
                f"`{option}` with `start={given}`"
                if value is not None
                else f"`start={start}` alone"
            )
            raise UserError(
                got, f"`start={start}` and `{option}` together", f"add or drop `{option}`"
            )
    return given
