"""How benchmarks measure: warm-up, synchronised median of several, peak memory, conditions.

After the benchmark contract of kornia: device, threads, versions and commit go with the figures.
"""

import argparse
import ctypes
import ctypes.util
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pmsplat.errors import UserError
from pmsplat.io.files import write_text

PACKAGES = (
    "pmsplat", "torch", "triton", "numpy", "numba", "timm", "gsplat", "xformers", "torchvision",
    "pytorch-lightning",
)  # fmt: skip
COMMIT = "PMSPLAT_COMMIT"  # says the commit where the checkout was copied without .git
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Timing:
    """Wall time in ms of one call: median, and the quartiles around it."""

    median_ms: float
    low_ms: float
    high_ms: float
    calls: int

    def __str__(self) -> str:
        return f"{self.median_ms:.1f} ({self.low_ms:.1f}-{self.high_ms:.1f})"


def at_least(least: int) -> Callable[[str], int]:
    """The `type` of an option that is a whole number, no smaller than `least`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?\d+", text, re.ASCII) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}; wanted a whole number from {least}")
        return int(text)

    return read


def use_threads(threads: int | None) -> None:
    """Gives torch and numba so many threads; None leaves them all cores."""
    if threads is None:
        return
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise UserError(f"--threads is {threads}", f"1 to {cores}", "name as many as there are")
    torch.set_num_threads(threads)
    if _has_numba():
        from pmsplat.render import cpu

        cpu.set_threads(threads)


def synchronize() -> None:
    """Waits for the device, so that a clock read afterwards means something."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(
    call: Callable[[Any], Any],
    calls: int,
    prepare: Callable[[], Any] = lambda: None,
    warm_up: int = 2,
) -> Timing:
    """The time of `call(prepare())`, of which only `call` counts."""
    seconds = [_milliseconds(call, prepare()) for _ in range(warm_up + calls)]
    return _timing(seconds[warm_up:])


def alternately(
    calls: dict[str, Callable[[], Any]], rounds: int, warm_up: int = 2
) -> dict[str, Timing]:
    """The time of each call, made by turns, so that a change of the machine meets all alike."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(warm_up + rounds):
        for name, call in calls.items():
            found[name].append(_milliseconds(lambda _, call=call: call(), None))
    return {name: _timing(each[warm_up:]) for name, each in found.items()}


def _milliseconds(call: Callable[[Any], Any], given: Any) -> float:
    synchronize()
    start = time.perf_counter()
    call(given)
    synchronize()
    return 1e3 * (time.perf_counter() - start)


def _timing(milliseconds: list[float]) -> Timing:
    calls = len(milliseconds)
    low, middle, high = statistics.quantiles(milliseconds, n=4) if calls > 1 else milliseconds * 3
    return Timing(round(middle, 3), round(low, 3), round(high, 3), calls)


def spread(values: Sequence[float], decimals: int = 2, sign: str = "") -> str:
    """Mean ± standard deviation over seeds; `sign`: "+" for differences."""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):{sign}.{decimals}f} ±{deviation:.{decimals}f}"


def make_once(folder: Path, made: dict[str, Any], make: Callable[[Path], None]) -> None:
    """What `make` puts into a folder, whole, with a note of what it was `made` of.

    A folder with the same note is left alone. Raises UserError where something else stands there.
    """
    note = folder / "made.json"
    if folder.is_dir():
        if not note.is_file() or json.loads(note.read_text()) != made:
            raise UserError(
                f"{folder} of another scene or size", "a folder of its own", "choose --output"
            )
        return
    working = folder.with_suffix(".part")
    shutil.rmtree(working, ignore_errors=True)
    make(working)
    (working / note.name).write_text(json.dumps(made))
    working.rename(folder)


def peak_mib(call: Callable[[], Any]) -> float | None:
    """Peak memory of `call` in MiB above what stood before, once what was free is given back.

    Of the GPU if there is one, else of the process; None where the system does not tell it.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    libc = ctypes.util.find_library("c")
    if not CLEAR.exists() or libc is None or not hasattr(ctypes.CDLL(libc), "malloc_trim"):
        return None
    ctypes.CDLL(libc).malloc_trim(0)
    CLEAR.write_text("5")  # resets the high-water mark (man 5 proc)
    before = _status_kib("VmRSS")
    call()
    return round((_status_kib("VmHWM") - before) / 2**10, 1)


def _status_kib(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1))


def write(path: Path, question: str, found: dict[str, Any]) -> None:
    """Writes the figures of a question with their conditions; a reader never sees half a file."""
    whole = {"question": question, "conditions": conditions(), "figures": found}
    write_text(path, json.dumps(whole, indent=2) + "\n")


def conditions() -> dict[str, Any]:
    """What the figures depend on: machine, threads, versions, commit."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        **_devices(),
        "cores": os.cpu_count(),
        "threads": {"torch": torch.get_num_threads(), "numba": _numba_threads()},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def figures(timings: dict[str, Timing], **others: Any) -> dict[str, Any]:
    """Timings and other numbers as one flat JSON object."""
    return {**{name: asdict(timing) for name, timing in timings.items()}, **others}


def _devices() -> dict[str, Any]:
    """The device that is measured: the GPU if there is one, beside the processor; or that alone."""
    processor = _processor()
    if not torch.cuda.is_available():
        return {"device": processor}
    found = torch.cuda.get_device_properties(0)
    return {
        "device": found.name,
        "gpu_gib": round(found.total_memory / 2**30, 1),
        "capability": f"{found.major}.{found.minor}",
        "cuda": torch.version.cuda,
        "processor": processor,
    }


def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def _numba_threads() -> int | None:
    if not _has_numba():
        return None
    from pmsplat.render import cpu

    return cpu.threads()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this checkout, with + if it has changes.

    Outside of one: what $PMSPLAT_COMMIT says, else None.
    """
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return os.environ.get(COMMIT)

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True)
        return done.stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
