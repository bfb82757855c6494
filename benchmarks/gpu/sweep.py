"""The plane sweep by each of its paths, by precision, with the peers' table of cases."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from pmsplat.kernels import cost_volume
from pmsplat.kernels.cost_volume import Sweep
from pmsplat.nn import cost_volume as network

from . import room
from .clock import free_gib, measured, relative
from .process import Case, Run, Skipped

PATHS = ("direct", "tiled", "all_pairs", "torch")
KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16, "float32": torch.float32}
PARTS = (("fp16", "bf16"), ("float32",))  # in order of value: the definition is slow


@dataclass(frozen=True)
class Shape:
    """Feature maps of some scenes, each view matched with `others` views."""

    scenes: int
    views: int
    others: int
    size: tuple[int, int]
    channels: int = 128
    planes: int = 128
    per_pixel: bool = False

    @property
    def warped_gib(self) -> float:
        """What the definition stores: warped features and their product."""
        pixels = self.scenes * self.views * self.others * self.size[0] * self.size[1]
        return 2 * 4 * pixels * self.channels * self.planes / 2**30


SHAPES = {
    "2v 64x64": Shape(1, 2, 1, (64, 64)),
    "12v 64x120": Shape(1, 12, 2, (64, 120)),
    "6v 64x112": Shape(1, 6, 2, (64, 112)),
    "16 x 2v 64x64": Shape(16, 2, 1, (64, 64)),
    "2v 128x128 per pixel": Shape(1, 2, 1, (128, 128), 64, 32, True),
}
SMALL = Shape(1, 3, 2, (16, 24), 64, 16)
SMALL_PER_PIXEL = Shape(1, 2, 1, (16, 24), 64, 16, True)
TINY = {"tiny": Shape(1, 2, 1, (4, 6), 16, 4)}


def cases(run: Run) -> Iterator[Case]:
    """Errors beside float64 first, then times."""
    for path in PATHS:
        for kind in KINDS if path != "torch" else ("float32",):
            yield Case(f"{path} {kind} errors", lambda p=path, k=kind: errors(p, k, run))
    shapes = (TINY if run.tiny else SHAPES).items()
    for kinds, (name, shape) in product(PARTS, shapes):
        for kind, backward, path in product(kinds, (False, True), PATHS):
            if path == "torch" and kind != "float32":
                continue

            def measure(
                shape: Shape = shape, path: str = path, kind: str = kind, backward: bool = backward
            ) -> dict[str, Any]:
                return times(shape, path, kind, backward, run)

            yield Case(f"{name} {path} {kind} {'f+b' if backward else 'fwd'}", measure)


def inputs(shape: Shape, device: str, dtype: torch.dtype) -> tuple[Tensor, Sweep]:
    """Features with channels last in memory, as the transformer leaves them, and the sweep."""
    height, width = shape.size
    noise = torch.Generator(device).manual_seed(0)
    at = room.cameras(shape.views, 4 * height, 4 * width, device)
    at = at.map(lambda one: one.repeat(shape.scenes, *[1] * (one.dim() - 1)))
    others = network.nearest_others(at.c2w, shape.others)
    inv_depth = torch.linspace(0.01, 1.0, shape.planes, device=device)[:, None, None]
    inv_depth = inv_depth.expand(shape.scenes, shape.views, -1, 1, 1)
    if shape.per_pixel:
        coarse = torch.rand(shape.scenes, shape.views, 1, *shape.size, generator=noise,
                            device=device)  # fmt: skip
        inv_depth = 0.2 * inv_depth + 0.05 + 0.8 * coarse
    features = torch.randn(
        shape.scenes, shape.views, height, width, shape.channels, generator=noise, device=device
    ).to(dtype)
    where = Sweep(others, network.homographies(at, others, height, width), inv_depth, 0.5)
    return features.permute(0, 1, 4, 2, 3), where


def correlate(path: str, features: Tensor, where: Sweep) -> Tensor:
    """By the definition, or by a path; UserError where it is not to be had here."""
    if path == "torch":
        return cost_volume.warped(features, where)
    return cost_volume.correlation(features, where, path)


def errors(path: str, kind: str, run: Run) -> dict[str, Any]:
    """Errors of values and of the gradient to the features, the worst of some small sweeps."""
    found = {"values": 0.0, "gradient": 0.0}
    for shape in TINY.values() if run.tiny else (SMALL, SMALL_PER_PIXEL):
        features, where = inputs(shape, run.device, torch.float32)
        exact = features.double().requires_grad_()
        double = Sweep(
            where.others, where.homographies.double(), where.inv_depth.double(), where.pixel_center
        )
        expected = cost_volume.warped(exact, double)
        weight = torch.sin(torch.arange(expected.numel(), device=run.device)).view_as(expected)
        (expected * weight).sum().backward()
        leaf = features.to(KINDS[kind]).requires_grad_()
        got = correlate(path, leaf, where)
        (got.float() * weight).sum().backward()
        assert exact.grad is not None and leaf.grad is not None
        found["values"] = max(found["values"], relative(got.detach(), expected.detach()))
        found["gradient"] = max(found["gradient"], relative(leaf.grad, exact.grad))
    return found


def times(shape: Shape, path: str, kind: str, backward: bool, run: Run) -> dict[str, Any]:
    """Forward, or forward and backward to the features."""
    need = shape.warped_gib * (2.5 if backward else 1.2)
    if path == "torch" and run.device == "cuda" and need > free_gib():
        raise Skipped(f"the definition would store {need:.0f} GiB")
    features, where = inputs(shape, run.device, KINDS[kind])
    leaf = features.requires_grad_(backward)

    def call(_: Any) -> None:
        leaf.grad = None
        out = correlate(path, leaf, where)
        if backward:
            out.backward(gradient)

    gradient = torch.ones_like(correlate(path, features.detach(), where))
    with torch.set_grad_enabled(backward):
        return measured(call, seconds=0.5)
