"""Single kernels beside their twins in torch: norms, harmonics, alignment, attention to neighbors.

The others have questions of their own (`sweep`, `neighbors`, `rasterizers`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pmsplat.geometry import align
from pmsplat.kernels import alignment, harmonics, neighbor_attention, neighbors, norm

from .clock import measured, relative
from .process import Case, Run

KINDS = {"float32": torch.float32, "bf16": torch.bfloat16}
MAPS, TINY_MAPS = (2, 128, 64, 64), (1, 16, 4, 6)  # of the small encoder's CNN and transformer
POINTS, TINY_POINTS = 57_344, 64
CHANNELS, NEAREST, ROUNDS = 64, 16, 3


@dataclass(frozen=True)
class Work:
    """A kernel and its twin, and what both are given; `leaves` get gradients."""

    leaves: tuple[Tensor, ...]
    kernel: Callable[..., Tensor]
    twin: Callable[..., Tensor]


def cases(run: Run) -> Iterator[Case]:
    """Every kernel with the errors beside its twin in float64, then the twin."""
    for name, make in WORKS.items():
        for kind in KINDS if name in HALF else ("float32",):

            def ours(make: Any = make, kind: str = kind) -> dict[str, Any]:
                work = make(run, KINDS[kind])
                return _measure(work.kernel, work.leaves) | errors(work)

            def theirs(make: Any = make, kind: str = kind) -> dict[str, Any]:
                work = make(run, KINDS[kind])
                return _measure(work.twin, work.leaves)

            yield Case(f"{name} {kind}", ours)
            yield Case(f"{name} {kind}, torch", theirs)


def _measure(call: Callable[..., Tensor], leaves: tuple[Tensor, ...]) -> dict[str, Any]:
    return measured(lambda _: compute(call, leaves), seconds=0.5)


def compute(call: Callable[..., Tensor], leaves: tuple[Tensor, ...]) -> Tensor:
    """Forward, and backward where a leaf wants it, from a gradient that is nowhere alike."""
    for leaf in leaves:
        leaf.grad = None
    out = call(*leaves)
    if out.requires_grad:
        count = torch.arange(out.numel(), device=out.device)
        out.backward(torch.sin(count).view_as(out).to(out.dtype))
    return out.detach()


def errors(work: Work) -> dict[str, Any]:
    """Relative errors of values and of gradients, the worst of them."""
    exact = tuple(x.detach().double().requires_grad_(x.requires_grad) for x in work.leaves)
    values = relative(compute(work.kernel, work.leaves), compute(work.twin, exact))
    pairs = [(x.grad, y.grad) for x, y in zip(work.leaves, exact, strict=True)]
    gradients = [relative(x, y) for x, y in pairs if x is not None and y is not None]
    return {"values": values} | ({"gradient": max(gradients)} if gradients else {})


def _noise(*shape: int, run: Run, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers of the same seed each time."""
    generator = torch.Generator(run.device).manual_seed(len(shape))
    return torch.randn(*shape, generator=generator, device=run.device).to(dtype)


def group_norm(run: Run, dtype: torch.dtype) -> Work:
    """Of eight groups with silu after it, channels last."""
    n, channels, height, width = TINY_MAPS if run.tiny else MAPS
    x = _noise(n, height, width, channels, run=run, dtype=dtype).permute(0, 3, 1, 2)
    weight = 1 + 0.1 * _noise(channels, run=run)

    def by(path: Any) -> Callable[..., Tensor]:
        def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            if path == "torch":
                weight, bias = weight.to(x), bias.to(x)
            return norm.group_norm(x, 8, weight, bias, "silu", path=path)

        return call

    leaves = x, weight, 0.1 * _noise(channels, run=run)
    return Work(tuple(leaf.requires_grad_() for leaf in leaves), by("auto"), by("torch"))


def instance_norm(run: Run, dtype: torch.dtype) -> Work:
    """With relu after it, channels last."""
    n, channels, height, width = TINY_MAPS if run.tiny else MAPS
    x = _noise(n, height, width, channels, run=run, dtype=dtype).permute(0, 3, 1, 2)

    def by(path: Any) -> Callable[..., Tensor]:
        return lambda x: norm.group_norm(x, channels, activation="relu", path=path)

    return Work((x.requires_grad_(),), by("auto"), by("torch"))


def turn(run: Run, dtype: torch.dtype) -> Work:
    """The harmonics of degree 4 of two views of 256x256."""
    pixels = TINY_POINTS if run.tiny else 65_536
    matrix = _noise(1, 2, 25, 25, run=run, dtype=dtype)
    raw, base = (
        _noise(1, 2, pixels, 3, *more, run=run, dtype=dtype).requires_grad_()
        for more in ((25,), ())
    )

    def by(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda raw, base: function(matrix.to(raw), raw, base)

    return Work((raw, base), by(harmonics.turn), by(harmonics.turn_by_torch))


def trust(run: Run, dtype: torch.dtype) -> Work:
    """Which points fit a similarity, a tenth of them being wrong: no gradients."""
    count = TINY_POINTS if run.tiny else 2 * 65_536
    source = _noise(1, count, 3, run=run, dtype=dtype)
    target = 1.5 * source + 0.01 * source.roll(1, dims=1)
    target[:, ::10] += 2
    weights = torch.ones_like(source[..., 0])

    def by(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda source, target, w: function(align.umeyama, source, target, w, ROUNDS)

    return Work((source, target, weights), by(alignment.trusted), by(align.trusted))


def attend(run: Run, dtype: torch.dtype) -> Work:
    """Attention of points to the nearest sixteen."""
    count = TINY_POINTS if run.tiny else POINTS
    points = _noise(1, count, 3, run=run)
    table = neighbors.k_nearest_of_sane(points, points, NEAREST)
    inverse = neighbor_attention.invert(table, count)
    qkv = _noise(3, 1, count, CHANNELS, run=run, dtype=dtype)
    leaves = tuple(x.clone().requires_grad_() for x in qkv)
    return Work(
        leaves,
        lambda q, k, v: neighbor_attention.attend_neighbors(q, k, v, table, inverse),
        lambda q, k, v: neighbor_attention.attend_by_torch(q, k, v, table),
    )


WORKS: dict[str, Callable[[Run, torch.dtype], Work]] = {
    "group norm": group_norm,
    "instance norm": instance_norm,
    "harmonics": turn,
    "alignment": trust,
    "attention to neighbors": attend,
}
HALF = ("group norm", "instance norm", "attention to neighbors")
