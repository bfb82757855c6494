"""Sizes of the Triton kernels, one changed at a time: which of them is faster on this card.

Only if named: --only tuning. Each variant compiles its kernels anew, which takes seconds.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from .clock import measured
from .process import Case, Run, Skipped
from .rasterizers import SCENES, TINY, times
from .sweep import SHAPES, correlate, inputs
from .sweep import TINY as TINY_SHAPES

RENDERER = "pmsplat.render.triton"
DRAWINGS: tuple[dict[str, Any], ...] = (  # fields of its `Tuning`
    {},
    {"warps_back": 2},
    {"warps": 2},
    {"chunk_back": 8},
    {"parts_back": 1, "chunk_back": 8},
    {"parts_back": 1},
    {"chunk": 16},
    {"parts": 2},
    {"tile_h": 4, "parts_back": 1},
    {"tile_w": 16, "parts": 2, "parts_back": 4},
    {"precise": "ieee"},
    {"listers": 4096},
    {"listers": 16384},
    {"counts": 2**25, "listers": 16384},
    {"block": 256},
    {"tile_h": 16, "tile_w": 16, "warps": 4, "warps_back": 4},
)
DIRECT, TILED = "pmsplat.kernels._sweep_triton", "pmsplat.kernels._sweep_tiled_triton"
SWEEPS: tuple[tuple[str, str, dict[str, Any]], ...] = (  # path, module, its constants
    ("direct", DIRECT, {}),
    ("tiled", TILED, {}),
    ("all_pairs", DIRECT, {}),
    ("direct", DIRECT, {"PLANES": 128}),
    ("direct", DIRECT, {"PLANES": 32}),
    ("direct", DIRECT, {"CHANNELS": 64}),
    ("direct", DIRECT, {"CHANNELS": 128, "PLANES": 32}),
    ("direct", DIRECT, {"WARPS": 2}),
    ("direct", DIRECT, {"WARPS": 8}),
    ("direct", DIRECT, {"WARPS_BACKWARD": 2}),
    ("direct", DIRECT, {"WARPS_BACKWARD": 4}),
    ("tiled", TILED, {"TILE_X": 8}),
    ("tiled", TILED, {"TILE_Y": 8, "TILE_X": 8}),
    ("tiled", TILED, {"PLANES": 64}),
    ("tiled", TILED, {"SOURCES": 128}),
    ("tiled", TILED, {"SOURCES": 32}),
    ("tiled", TILED, {"CHANNELS": 64}),
    ("all_pairs", DIRECT, {"PIXELS_PAIRS": 16}),
    ("all_pairs", DIRECT, {"PIXELS_PAIRS": 4}),
    ("all_pairs", DIRECT, {"PLANES_PAIRS": 64}),
    ("all_pairs", DIRECT, {"WARPS_PAIRS": 4}),
)


def cases(run: Run) -> Iterator[Case]:
    """The kernels as they are, then with each change; drawing and sweep in turns."""
    drawings = [("draw", change) for change in DRAWINGS[: 2 if run.tiny else None]]
    sweeps = SWEEPS[: 3 if run.tiny else None]
    for index in range(max(len(drawings), len(sweeps))):
        for _, change in drawings[index : index + 1]:
            yield Case(f"draw {_say(change)}", lambda change=change: draw(change, run), 8.0)
        for path, module, change in sweeps[index : index + 1]:

            def sweep(path: str = path, module: str = module, change: Any = change) -> Any:
                return correlation(path, module, change, run)

            yield Case(f"sweep {path} {_say(change)}", sweep, 6.0)


def _say(change: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in change.items()) or "as it is"


def draw(change: dict[str, Any], run: Run) -> dict[str, Any]:
    """Eight scenes with gradients and depth; beside it, one large scene forward."""
    scenes = TINY if run.tiny else SCENES
    many = scenes["a1" if run.tiny else "a8"]
    with changed(RENDERER, "TUNING", change):
        found = times("triton", many, "f+b rgb+depth", run)
        large = times("triton", scenes["c"], "forward", run)
    found.pop("kernels", None)
    return found | {"c forward ms": large["ms"], "c busy ms": large.get("busy_ms")}


def correlation(path: str, module: str, change: dict[str, Any], run: Run) -> dict[str, Any]:
    """Twelve views in bfloat16, forward and backward; beside it, forward alone."""
    shape = TINY_SHAPES["tiny"] if run.tiny else SHAPES["12v 64x120"]
    features, where = inputs(shape, run.device, torch.bfloat16)
    leaf = features.detach().requires_grad_()

    def both(_: Any) -> None:
        leaf.grad = None
        correlate(path, leaf, where).sum().backward()

    with changed(module, None, change):
        found = measured(both, seconds=0.3)
        with torch.no_grad():
            forward = measured(lambda _: correlate(path, features, where), seconds=0.3)
    return found | {"forward ms": forward["ms"], "forward busy": forward.get("busy_ms")}


@contextmanager
def changed(module: str, value: str | None, change: dict[str, Any]) -> Iterator[None]:
    """Inside, constants of a module are others: fields of its `value`, or its own.

    Raises Skipped where this version has no such constant.
    """
    home = importlib.import_module(module)
    names = set(vars(getattr(home, value)) if value else vars(home))
    if missing := change.keys() - names:
        raise Skipped(f"{module} has no {', '.join(sorted(missing))}")
    if value:
        change = {value: replace(getattr(home, value), **change)}
    before = {name: getattr(home, name) for name in change}
    try:
        for name, new in change.items():
            setattr(home, name, new)
        yield
    finally:
        for name, old in before.items():
            setattr(home, name, old)
