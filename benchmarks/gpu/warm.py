"""Compiles the kernels of the other questions first: Triton keeps on disk what it has compiled.

A first pass of an encoder compiles its kernels one after another on one core. Here many processes
do so at once, each for a chore of its own; a row says how long its process took, import included.
"""

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from .process import Case, Run, Skipped, find_device

SPARE = 3.0  # seconds kept to read what a process said
UNUSABLE = 3  # exit code where something is missing, which the last line names


def cases(run: Run) -> Iterator[Case]:
    """Every chore, as it ends; all are begun at once, as far as there are cores."""
    at_once = max(1, (os.cpu_count() or 1) - 1)
    with ThreadPoolExecutor(at_once) as pool:
        begun = {pool.submit(_in_process, name, run): name for name in CHORES}
        for answer in as_completed(begun):
            yield Case(begun[answer], answer.result, least=0.0)


def _in_process(name: str, run: Run) -> dict[str, Any]:
    """Runs a chore in a process of its own; Skipped where it cannot be done here."""
    words = [sys.executable, "-m", "benchmarks.gpu.warm", name, *["--tiny"] * run.tiny]
    start = time.monotonic()
    try:
        done = subprocess.run(
            words, timeout=max(1.0, run.left() - SPARE), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        raise TimeoutError(f"it had not ended after {late.timeout:.0f} s") from late
    lines = [line for line in done.stdout.splitlines() if line.strip()] or ["it said nothing"]
    if done.returncode == UNUSABLE:
        raise Skipped(lines[-1])
    if done.returncode:
        raise RuntimeError(f"ended with {done.returncode}: {lines[-1]}")
    return {"s": round(time.monotonic() - start, 1)}


def _encode(model: str, *kinds: str) -> Callable[[Run], None]:
    def chore(run: Run) -> None:
        import torch

        import pmsplat

        from . import encoders, room
        from .clock import precision

        subjects = {"small": encoders.SMALL_2, "base": encoders.BASE_2, "12": encoders.SMALL_12}
        subjects["compact"] = encoders.SHIPPED_2
        one = encoders.SMALLEST if run.tiny else subjects[model]
        network = encoders.make_encoder(one, run)
        views = room.views(1, one.views, *one.size, run.device, between=False)
        for kind in kinds:
            with torch.no_grad(), precision(kind, run.device):
                network(views)
        pmsplat.compile(network, precision="bf16", kept=0)(views)

    return chore


def _train(place: int) -> Callable[[Run], None]:
    def chore(run: Run) -> None:
        from . import training

        training.take_step(training.TINY_JOBS[-1] if run.tiny else training.JOBS[place], run)

    return chore


def _draw(backend: str) -> Callable[[Run], None]:
    def chore(run: Run) -> None:
        from . import rasterizers

        rasterizers.errors(backend, run)
        for scene in (rasterizers.TINY if run.tiny else rasterizers.SCENES).values():
            rasterizers.draw_once(backend, scene, scene.passes[-1], run)

    return chore


def _sweep(kind: str) -> Callable[[Run], None]:
    def chore(run: Run) -> None:
        from . import sweep

        shapes = sweep.TINY if run.tiny else sweep.SHAPES
        for path in sweep.PATHS[:-1]:  # all but the definition
            sweep.errors(path, kind, run)
            for shape in shapes.values():
                features, where = sweep.inputs(shape, run.device, sweep.KINDS[kind])
                sweep.correlate(path, features.requires_grad_(), where).sum().backward()

    return chore


def _search(run: Run) -> None:
    from . import neighbors

    size = next(iter((neighbors.TINY if run.tiny else neighbors.SIZES).values()))
    neighbors.search_once(*size, run)


def _others(run: Run) -> None:
    from . import kernels

    for name, make in kernels.WORKS.items():
        for kind in kernels.KINDS if name in kernels.HALF else ("float32",):
            work = make(run, kernels.KINDS[kind])
            kernels.compute(work.kernel, work.leaves)


CHORES: dict[str, Callable[[Run], None]] = {
    "train small tf32": _train(0),
    "train small bf16": _train(2),
    "encode small": _encode("small", "tf32", "bf16"),
    "encode compact": _encode("compact", "tf32"),
    "encode base": _encode("base", "tf32", "bf16"),
    "encode 12 views": _encode("12", "tf32"),
    "draw by triton": _draw("triton"),
    "draw by gsplat": _draw("gsplat"),
    "sweep fp16": _sweep("fp16"),
    "sweep bf16": _sweep("bf16"),
    "sweep float32": _sweep("float32"),
    "neighbors": _search,
    "kernels": _others,
    "train mvsplat": _train(8),
}


def main() -> int:
    """Does one chore: python -m benchmarks.gpu.warm NAME."""
    from pmsplat.errors import UserError

    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CHORES)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    device = find_device()
    try:
        CHORES[given.name](Run(device, given.tiny, math.inf))
    except (Skipped, UserError, ModuleNotFoundError) as reason:
        print(reason)
        return UNUSABLE
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
