"""Single kernels beside their twins in torch: norms, residuals, LPIPS's layers and distances,
harmonics, alignment, attention to neighbors.

The others have questions of their own (`sweep`, `neighbors`, `rasterizers`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pmsplat.geometry import align
from pmsplat.kernels import alignment, harmonics, neighbor_attention, neighbors, norm, residual
from pmsplat.kernels.convolution import conv_relu
from pmsplat.kernels.unit_distance import unit_distance

from .clock import measured, relative
from .process import Case, Run

KINDS = {"float32": torch.float32, "bf16": torch.bfloat16}
MAPS, TINY_MAPS = (2, 128, 64, 64), (1, 16, 4, 6)  # of the small encoder's CNN and transformer
TOKENS, TINY_TOKENS = (2, 325, 384), (1, 5, 8)  # of the small ViT
LAYERS = [(64, 256), (128, 128), (256, 64), (512, 32), (512, 16)]  # channels and sides in VGG-16
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


def layer_norm(run: Run, dtype: torch.dtype) -> Work:
    """Of the tokens of two images in the small ViT; the twin is what autocast does in bf16."""
    shape = TINY_TOKENS if run.tiny else TOKENS
    affine = (_noise(shape[-1], run=run), _noise(1, shape[-1], run=run)[0])

    def by(path: Any) -> Callable[..., Tensor]:
        return lambda *leaves: norm.layer_norm(*leaves, dtype=dtype, path=path)

    leaves = _noise(*shape, run=run), *affine
    return Work(tuple(leaf.requires_grad_() for leaf in leaves), by("auto"), by("torch"))


def layer_of_lpips(run: Run, dtype: torch.dtype) -> Work:
    """The second convolution of VGG-16 over four images of 256x256, with bias and ReLU."""
    side, channels = (8, 4) if run.tiny else (256, 64)
    conv = torch.nn.Conv2d(channels, channels, 3, padding=1, device=run.device, dtype=dtype)
    conv = conv.requires_grad_(False).to(memory_format=torch.channels_last)
    x = _noise(4, side, side, channels, run=run, dtype=dtype).permute(0, 3, 1, 2)

    def twin(x: Tensor) -> Tensor:
        kind = x.dtype  # float64 where errors are measured
        weights = conv.weight.to(kind), None if conv.bias is None else conv.bias.to(kind)
        return torch.relu(torch.nn.functional.conv2d(x, *weights, padding=1))

    return Work((x.requires_grad_(),), lambda x: conv_relu(conv, x), twin)


def distance(run: Run, dtype: torch.dtype) -> Work:
    """What LPIPS computes of the features of four pairs of images of 256x256."""
    layers = [(8, 6), (16, 3)] if run.tiny else LAYERS
    maps, targets = (
        [
            torch.relu(_noise(4, side, side, channels, run=run, dtype=dtype)).permute(0, 3, 1, 2)
            for channels, side in layers
        ]
        for _ in range(2)
    )
    targets = [x.roll(1, dims=0) for x in targets]
    weights = [torch.rand(n, device=run.device) for n, _ in layers]

    def by(path: Any) -> Callable[..., Tensor]:
        def call(*maps: Tensor) -> Tensor:
            kind = maps[0].dtype if path == "torch" else dtype
            parts = ([x.to(kind) for x in part] for part in (targets, weights))
            return unit_distance(maps, *parts, path=path)

        return call

    return Work(tuple(x.requires_grad_() for x in maps), by("auto"), by("torch"))


def scaled(run: Run, dtype: torch.dtype) -> Work:
    """The change of a layer of the small ViT, scaled and added to the tokens of two images."""
    shape = TINY_TOKENS if run.tiny else TOKENS
    x, change = _noise(*shape, run=run), _noise(*shape, run=run, dtype=dtype)
    leaves = x, change, 0.1 * _noise(shape[-1], run=run)

    def by(path: Any) -> Callable[..., Tensor]:
        return lambda *leaves: residual.add_scaled(*leaves, path=path)

    return Work(tuple(leaf.requires_grad_() for leaf in leaves), by("auto"), by("torch"))


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
    "layer norm": layer_norm,
    "scaled residual": scaled,
    "layer of LPIPS": layer_of_lpips,
    "unit distance": distance,
    "harmonics": turn,
    "alignment": trust,
    "attention to neighbors": attend,
}
HALF = (
    "group norm", "instance norm", "layer norm", "scaled residual", "unit distance",
    "attention to neighbors",
)  # fmt: skip
