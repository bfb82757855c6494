"""What may be chosen for an optimisation, and what cannot be."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ...data.folder import PhotoScene
from ...errors import UserError
from ...registry import suggest
from ._strategy import STRATEGIES

STARTS = ("points", "random", "prediction", "file")
STATE = "state.pt"
MOST, MOST_ON_CPU = 1_000_000, 50_000
DRAWN_FROM = 2**24  # the most categories of torch.multinomial


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


def check(options: Options) -> None:
    """Raises UserError for what no run can do."""
    if options.strategy not in STRATEGIES:
        raise UserError(
            f"--strategy {options.strategy}",
            f"one of {', '.join(STRATEGIES)}",
            suggest(options.strategy, list(STRATEGIES)),
        )
    for name in ("steps", "most", "random_points", "save_every"):
        if getattr(options, name) < 1:
            raise UserError(f"{name} = {getattr(options, name)}", "at least 1", "choose more")
    if options.strategy == "mcmc" and (options.most or 0) > DRAWN_FROM:
        raise UserError(
            f"most = {options.most} with --strategy mcmc",
            f"at most {DRAWN_FROM}, from which torch can draw at random",
            "choose fewer, or --strategy default",
        )
    if options.weights is not None and options.model is None:
        raise UserError("--weights alone", "the --model that they belong to", "add --model")
    if not 0 <= options.sh_degree <= 3:
        raise UserError(f"sh_degree = {options.sh_degree}", "0 to 3", "choose one of them")


def check_folder(folder: Path, options: Options) -> None:
    """Raises UserError where the folder holds another run, other files, or nothing to resume."""
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


def choose_start(scene: PhotoScene, options: Options) -> str:
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
