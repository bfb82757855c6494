"""The process of one question: begins its cases in order, while there is time."""

import argparse
import importlib
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .rows import note, read

FAULT = 70  # exit code after an error that leaves the GPU's context unusable
STICKY = ("illegal memory access", "device-side assert", "misaligned address", "launch failure")
LEAST = 4.0  # seconds that must be left to begin a case


class Skipped(Exception):
    """Why a case is not measured here, in one sentence."""


@dataclass(frozen=True)
class Run:
    """What a question is told: where it runs, at which sizes, and until when."""

    device: str  # cuda or cpu
    tiny: bool
    ends: float  # of time.monotonic()
    peer: Path | None = None

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()


@dataclass(frozen=True)
class Case:
    """One row of figures; `least` is how many seconds must be left to begin it."""

    name: str
    measure: Callable[[], dict[str, Any]]
    least: float = LEAST


def answer(name: str, run: Run, rows: Path) -> int:
    """Measures what the rows do not have yet; the exit code of the process.

    `name` is a module of this package, or of another by its full name.
    """
    from pmsplat.errors import UserError

    module = importlib.import_module(name if "." in name else f".{name}", __package__)
    problem: str | None = module.obstacle(run) if hasattr(module, "obstacle") else None
    if problem is not None:
        note(rows, None, {"skipped": problem})
        return 0
    cases: Iterator[Case] = module.cases(run)
    known = read(rows)["cases"]
    for case in cases:
        if case.name in known:
            continue
        if run.left() < case.least:
            note(rows, case.name, {"skipped": f"{run.left():.0f} s were left"})
            continue
        note(rows, case.name, {})
        try:
            figures = case.measure()
        except (Skipped, UserError, ModuleNotFoundError) as reason:
            figures = {"skipped": str(reason)}
        except Exception as error:  # noqa: BLE001  # one case must not lose the others
            traceback.print_exc()
            figures = {"failed": _describe(error)}
        _give_back(run)
        note(rows, case.name, figures)
        if any(word in str(figures.get("failed")) for word in STICKY):
            return FAULT
    return 0


def _describe(error: Exception) -> str:
    """The error in a line, and where in this checkout it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "pmsplat" in f.filename or "benchmarks" in f.filename]
    where = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{where}: {lines[0] if lines else ''}"[:300]


def _give_back(run: Run) -> None:
    """Frees what a case left, so that the next begins with an empty card."""
    import gc

    import torch

    gc.collect()
    if run.device == "cuda":
        try:
            torch.cuda.empty_cache()
        except RuntimeError:  # the context is broken, which the caller says
            traceback.print_exc()


def find_device() -> str:
    """cuda; or cpu, where Triton interprets its kernels if it was not imported before."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    os.environ.setdefault("TRITON_INTERPRET", "1")
    return "cpu"


def main() -> int:
    """The exit code: 0 where nothing is left to do."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    ends = time.monotonic() + arguments.seconds

    from ..measure import use_threads

    use_threads(arguments.threads)
    device = find_device()
    if device == "cpu" and not arguments.tiny:
        note(arguments.rows, None, {"skipped": "no CUDA device; --tiny tries it on the CPU"})
        return 0
    return answer(arguments.name, Run(device, arguments.tiny, ends, arguments.peer), arguments.rows)
