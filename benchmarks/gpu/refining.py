"""Optimizing Gaussians on the photographs of a procedural room: steps per second by renderer."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pmsplat import render
from pmsplat.data import synthetic
from pmsplat.tasks.refine import Options, refine

from .process import Case, Run
from .rasterizers import require

RENDERERS = ("triton", "gsplat")


def cases(run: Run) -> Iterator[Case]:
    """One optimization by each renderer, of the same steps from the same points."""
    for backend in (*RENDERERS, "cpu") if run.tiny else RENDERERS:
        yield Case(f"refine with {backend}", lambda backend=backend: optimize(backend, run), 15.0)


def optimize(backend: str, run: Run) -> dict[str, Any]:
    """Steps per second, compiling in the first of them included, comparisons not."""
    require(backend, run.device)
    size, steps, points = ((32, 48), 4, 200) if run.tiny else ((256, 384), 400, 100_000)
    before = render.FAST
    render.FAST = (backend,)
    try:
        with tempfile.TemporaryDirectory() as folder:
            synthetic.write(folder, 1, 16, size, 0, "test")
            options = Options(
                start="random", strategy="default", steps=steps, size=size, random_points=points
            )
            found = refine(Path(folder) / "test", Path(folder) / "out", options)
    finally:
        render.FAST = before
    return {
        "steps/s": round(1 / found.seconds_per_step, 1),
        "PSNR before": round(found.before.psnr, 2),
        "PSNR after": round(found.after.psnr, 2),
        "Gaussians": found.after.gaussians,
    }
