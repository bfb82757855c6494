"""Everything worth knowing about a GPU, in one prepared run that takes a given time.

python benchmarks/run.py gpu --minutes 8 --json gpu.json
    kernels compiled on all cores, tests, encoders, training steps, renderers, plane sweep, single
    kernels, nearest neighbors, refinement

For a machine that may have little installed: what is missing is said in one line. Each question
runs in a process of its own with its share of the time, so that neither a crash, nor a fault of the
GPU, nor an endless loop loses the others; a case that kills its process is named, and the next ones
go on in a new one. The file is renewed after every case. Without a GPU, --tiny tries each question
on the CPU at sizes that mean nothing. Times are medians with quartiles after a warm-up that
compiles; "busy" is the sum of the durations of the GPU's kernels, "peak" is memory above what was
there before (inputs and weights).
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .process import FAULT
from .rows import note, read
from .table import table

# Seconds of a run of eight minutes that each question may take, in order. What one leaves over goes
# to the next.
SECONDS = {
    "warm": 45,
    "tests": 75,
    "encoders": 95,
    "training": 95,
    "rasterizers": 65,
    "sweep": 40,
    "kernels": 20,
    "neighbors": 15,
    "refining": 30,
    "tuning": 120,  # only if named
}
ON_REQUEST = ("tuning",)
CLOSING = 4.0  # seconds kept for the table and the last file
WORTH_IT = 12.0  # seconds below which a process does not come to measure anything
POLL = 0.5
HERE = Path(__file__).resolve()


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument("--minutes", type=float, default=8.0, help="of the whole run (default: 8)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*SECONDS],
        metavar="NAME",
        help=f"of {', '.join(SECONDS)} (default: all but {', '.join(ON_REQUEST)})",
    )
    parser.add_argument("--peer", type=Path, metavar="PATH", help="a checkout of cvg/depthsplat")
    parser.add_argument("--tiny", action="store_true", help="tries every question at tiny sizes")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints a table; gives the cases of each question. Renews --json on the way."""
    from .. import measure

    check(arguments)
    ends = time.monotonic() + 60 * arguments.minutes - CLOSING
    names = [n for n in SECONDS if n in (arguments.only or SECONDS.keys() - set(ON_REQUEST))]
    found: dict[str, Any] = {}

    def keep(name: str, answer: dict[str, Any]) -> None:
        found[name] = answer
        if arguments.json is not None:
            measure.write(arguments.json, "gpu", found)

    for index, name in enumerate(names):
        rest = sum(SECONDS[later] for later in names[index:])
        share = (ends - time.monotonic()) * SECONDS[name] / rest
        if share < WORTH_IT:
            keep(name, {"skipped": f"{share:.0f} s were left of {arguments.minutes:g} minutes"})
            continue
        began = time.monotonic()
        print(f"{name}: up to {share:.0f} s", file=sys.stderr, flush=True)
        answer = ask(name, began + share, arguments, lambda so_far, name=name: keep(name, so_far))
        keep(name, answer | {"seconds": round(time.monotonic() - began, 1)})
    print(table(found))
    return found


def check(arguments: argparse.Namespace) -> None:
    """Raises UserError where nothing can be measured, before any process is started."""
    import torch

    from pmsplat.device import cuda_obstacle
    from pmsplat.errors import UserError

    from .. import peer

    if not arguments.minutes > 0:
        raise UserError(
            f"--minutes {arguments.minutes:g}", "a positive number", "leave it out for 8"
        )
    if not arguments.tiny and not torch.cuda.is_available():
        problem = cuda_obstacle()
        got = "no CUDA device" if problem is None else problem.got
        raise UserError(got, "a GPU to measure", "add --tiny to try all questions on the CPU")
    if arguments.peer is not None:
        with peer.wanted():
            peer.model_of(arguments.peer)


def ask(
    name: str,
    ends: float,
    arguments: argparse.Namespace,
    on_case: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """The cases of one question, measured by as many processes as it takes.

    A process that ends before its work is done was killed by the case that it had begun.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder) / "rows.jsonl", Path(folder) / "log"
        rows.touch()
        while True:
            code = _one_process(name, ends, arguments, rows, log, on_case)
            answer = read(rows)
            begun = [case for case, row in answer["cases"].items() if row == {}]
            for case in begun:
                why = "its time was over" if code is None else f"ended its process with {code}"
                note(rows, case, {"failed": f"{why}: {_last_line(log)}"})
            unfinished = code == FAULT or (code and begun)
            if not unfinished or ends - time.monotonic() < WORTH_IT:
                break
        answer = read(rows)
        if not answer["cases"] and "skipped" not in answer:
            answer["failed"] = f"ended with {code}: {_last_line(log)}"
        return answer


def _one_process(
    name: str,
    ends: float,
    arguments: argparse.Namespace,
    rows: Path,
    log: Path,
    on_case: Callable[[dict[str, Any]], None],
) -> int | None:
    """Runs a question in a process of its own; its exit code, None where its time was over."""
    words = [sys.executable, "-m", "benchmarks.gpu", name, "--rows", str(rows)]
    words += ["--seconds", f"{ends - time.monotonic():.1f}"]
    words += ["--tiny"] * arguments.tiny
    words += ["--peer", str(arguments.peer)] * (arguments.peer is not None)
    words += ["--threads", str(arguments.threads)] * (arguments.threads is not None)
    places = [str(HERE.parents[2] / "src"), str(HERE.parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
    size = 0
    with log.open("w") as out:
        process = subprocess.Popen(
            words, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while process.poll() is None and time.monotonic() < ends:
                time.sleep(POLL)
                if rows.stat().st_size != size:
                    size = rows.stat().st_size
                    on_case(read(rows))
            return process.poll()
        finally:  # of Ctrl-C too
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it said nothing"
