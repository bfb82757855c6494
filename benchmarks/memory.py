"""Memory, files and mappings of a process over a long run: does anything grow?

python benchmarks/run.py memory --json benchmarks/memory.json --plot benchmarks/memory.png
    trains an encoder of two convolutions for 10,000 steps (with checkpoints, validations and two
    logs) and evaluates it on 2,000 procedural scenes, all of 32x32 pixels

Each is a command of its own, whose processes are looked at from outside: resident memory, open
files and mapped regions of memory, every second. The growth is a line through the last two thirds
of the steps or scenes: what is loaded, compiled and reserved once comes before. `--only train` or
`--only evaluate` asks one of them; what the file of figures has already of the other is kept.
"""

import argparse
import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVERY = 1.0  # seconds between looks
SETTLED = 1 / 3  # share of the steps or scenes before what is kept once is there
MODEL = "tests.lab.encoder"  # two convolutions: what surrounds an encoder is asked about


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument("--steps", type=int, default=10_000, help="of training (default: 10000)")
    parser.add_argument("--scenes", type=int, default=2_000, help="evaluated (default: 2000)")
    parser.add_argument("--only", choices=("train", "evaluate"), help="one of the two")
    parser.add_argument(
        "--folder", type=Path, help="for data and runs, kept for the next time (default: none)"
    )
    parser.add_argument("--plot", type=Path, metavar="OUT", help="a PNG of memory over the run")


@dataclass(frozen=True)
class Look:
    """A process and its children at one moment, when it had `done` so many steps or scenes."""

    seconds: float
    done: int
    mib: float
    files: int
    maps: int


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints a row for each job; gives the figures by name."""
    import json
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        jobs = {"train": training(folder, arguments), "evaluate": evaluation(folder, arguments)}
        found: dict[str, Any] = {}
        if arguments.only and arguments.json is not None and arguments.json.is_file():
            found = json.loads(arguments.json.read_text())["figures"]
        for name, words in jobs.items():
            if arguments.only in (None, name):
                found[name] = describe(watch(words, COUNTS[name], folder / "run"))
    print(f"{'':10}{'MiB at the end':>15}{'MiB grown':>11}{'files':>7}{'maps':>6}{'s':>7}")
    for name, row in found.items():
        print(
            f"{name:10}{row['mib']:>15.0f}{row['growth_mib']:>+11.2f}{row['growth_files']:>+7.1f}"
            f"{row['growth_maps']:>+6.1f}{row['seconds']:>7.0f}"
        )
    if arguments.plot is not None:
        plot(arguments.plot, found)
    return found


def common(folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Settings of both jobs."""
    words = ["+experiment=demo_tiny", f"model={MODEL}", f"dataset.root={folder / 'rooms'}"]
    words += ["dataset.scenes=64", f"dataset.test_scenes={arguments.scenes}"]
    words += ["dataset.frames=6", "dataset.size=[32,32]", "dataset.gap=[2,4]"]
    return [*words, f"output={folder / 'run'}"]


def training(folder: Path, arguments: argparse.Namespace) -> list[str]:
    """The words after `pmsplat`, of a run that does all that a long one does, often."""
    every = max(1, arguments.steps // 20)
    words = [f"trainer.steps={arguments.steps}", "trainer.batch_size=1", "trainer.log_every=20"]
    words += [f"trainer.checkpoint_every={every}", f"trainer.validate_every={5 * every}"]
    words += ["trainer.validate_scenes=4", "trainer.keep_checkpoints=2", "trainer.ema=0.999"]
    return ["train", *common(folder, arguments), *words, "trainer.resume=auto"]


def evaluation(folder: Path, arguments: argparse.Namespace) -> list[str]:
    """The words after `pmsplat`, for what training left."""
    return ["evaluate", *common(folder, arguments), "--device", "cpu"]


def count_steps(folder: Path) -> int:
    """Steps that the log of a training has."""
    logs = sorted(folder.glob("csv/version_*/metrics.csv"))
    rows = csv.DictReader(logs[-1].read_text().splitlines()) if logs else []
    steps = [int(row["step"]) for row in rows if row["step"]]
    return steps[-1] if steps else 0


def count_scenes(folder: Path) -> int:
    """Scenes that an evaluation has kept so far, until it writes its results."""
    kept = list(folder.glob("evaluation/results.partial-*.jsonl"))
    return sum(path.read_bytes().count(b"\n") - 1 for path in kept)


COUNTS = {"train": count_steps, "evaluate": count_scenes}


def watch(words: list[str], count: Callable[[Path], int], folder: Path) -> list[Look]:
    """Runs a command and looks at it until it ends; UserError where it fails."""
    import os
    import subprocess
    import sys
    import time

    from pmsplat.errors import UserError

    start, looks = time.perf_counter(), []
    root = Path(__file__).resolve().parents[1]
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "pmsplat", *words],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": paths},
    )
    while process.poll() is None:
        if (seen := look(process.pid, time.perf_counter() - start, count(folder))) is not None:
            looks.append(seen)
        time.sleep(EVERY)
    if process.returncode or len(looks) < 3:
        raise UserError(
            f"`pmsplat {words[0]}` that ended with {process.returncode}",
            "a whole run",
            "look at what it said",
        )
    return looks


def look(process: int, seconds: float, done: int) -> Look | None:
    """None where the process has just ended."""
    try:
        places = [Path(f"/proc/{process}")]
        for task in (places[0] / "task").iterdir():
            places += [Path(f"/proc/{child}") for child in (task / "children").read_text().split()]
        pages = sum(int((place / "statm").read_text().split()[1]) for place in places)
        files = sum(len(list((place / "fd").iterdir())) for place in places)
        maps = sum(len((place / "maps").read_text().splitlines()) for place in places)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Look(seconds, done, pages / 256, files, maps)  # of 4 KiB


def describe(looks: list[Look]) -> dict[str, Any]:
    """Growth over the settled part of a run, by lines of least squares, and the curve."""
    import numpy as np

    most = max(one.done for one in looks)
    settled = [one for one in looks if one.done >= SETTLED * most]
    units = np.array([one.done for one in settled])
    span = int(units[-1] - units[0])

    def grow(values: list[float]) -> float:
        return round(float(np.polyfit(units, values, 1)[0] * span), 3)

    return {
        "units": most,
        "seconds": round(looks[-1].seconds, 1),
        "mib": round(settled[-1].mib, 1),
        "over_units": span,
        "growth_mib": grow([one.mib for one in settled]),
        "growth_files": grow([one.files for one in settled]),
        "growth_maps": grow([one.maps for one in settled]),
        "curve": [f"{one.done} {one.mib:.1f}" for one in looks],
    }


def plot(path: Path, found: dict[str, Any]) -> None:
    """Memory over the steps or scenes that are done."""
    from matplotlib.figure import Figure

    from pmsplat.io.files import atomic

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    names = {"train": "training, {:,} steps", "evaluate": "evaluation, {:,} scenes"}
    for name, row in found.items():
        curve = [[float(number) for number in point.split()] for point in row["curve"]]
        curve = [(done, mib) for done, mib in curve if done]
        shares = [100 * done / row["units"] for done, _ in curve]
        axes.plot(shares, [mib for _, mib in curve], label=names[name].format(row["units"]))
    most = max(row["mib"] for row in found.values())
    axes.set(xlabel="steps or scenes done, in %", ylabel="resident memory in MiB")
    axes.set_ylim(0, 1.2 * most)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
