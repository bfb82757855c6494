"""Drawings, sweeps, searches and layers alone on the fake device, at the sizes of real runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pmsplat.kernels import cost_volume, harmonics
from pmsplat.kernels import neighbors as search
from pmsplat.kernels.neighbor_attention import attend_neighbors
from pmsplat.kernels.norm import Activation, group_norm, layer_norm
from pmsplat.kernels.residual import add_scaled
from pmsplat.kernels.unit_distance import unit_distance
from pmsplat.nn.cost_volume import all_others, homographies
from pmsplat.render import rasterize
from pmsplat.types import CLASSIC, DrawingRules, Rendering
from tests.scenes import random_cameras, random_gaussians

from .device import FakeDevice, move

SIZE, TARGETS = (256, 256), 4
SWEEP_PATHS = ("direct", "tiled", "all_pairs")
NORMS: tuple[tuple[int, int, Activation], ...] = (  # channels, groups, activation; as in our models
    (128, 8, "silu"),
    (64, 64, "relu"),
    (256, 8, "gelu"),
)


def draw(
    device: FakeDevice, backend: str, deterministic: bool = False, rules: DrawingRules = CLASSIC
) -> None:
    """A drawing of 8 scenes of 131,072 Gaussians into 4 views each, with all that there is; its
    gradients are the same in every run if `deterministic`."""
    ledger, g = device.ledger, torch.Generator().manual_seed(0)
    scene = random_gaussians(2 * SIZE[0] * SIZE[1], g, batch=1)
    gaussians = move(scene.map(lambda x: x.expand(8, *x.shape[1:])), device)
    cameras = move(random_cameras(TARGETS, g, 8), device)
    features = device.empty((8, gaussians.means.shape[1], 5))
    extras = ("screen",) if backend == "gsplat" else ("screen", "depth_median")
    for _ in range(2):
        ledger.forget()
        leaves = gaussians.map(lambda x: x.detach().requires_grad_())
        with reproducible(deterministic), ledger.stage("forward"):
            drawn = rasterize(
                leaves, cameras, SIZE, backend, attributes=features, extras=extras, rules=rules
            )
        with reproducible(deterministic), ledger.stage("backward"):
            _sum(drawn).backward()
        del drawn, leaves


@contextmanager
def reproducible(wanted: bool) -> Iterator[None]:
    """Inside, torch takes deterministic algorithms, if wanted."""
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _sum(drawn: Rendering) -> torch.Tensor:
    return drawn.color.sum() + drawn.depth.sum() + drawn.alpha.sum()


def neighbors(device: FakeDevice) -> None:
    """The nearest of 65,536 points, and the k nearest, in both precisions."""
    for _ in range(2):
        device.ledger.forget()
        for dtype in (torch.float32, torch.float64):
            points, reference = (device.empty((1, SIZE[0] * SIZE[1], 3), dtype) for _ in range(2))
            with device.ledger.stage(f"nearest {dtype}"):
                search.nearest_of_sane(points, reference)
            for k in (1, 8, 16):
                with device.ledger.stage(f"{k} nearest {dtype}"):
                    search.k_nearest_of_sane(points, reference, k)
            cameras = move(random_cameras(3, torch.Generator()).to(dtype), device)
            maps = device.empty((1, 3, *SIZE, 3), dtype)
            with device.ledger.stage(f"8 nearest in windows {dtype}"):
                search.k_nearest_in_windows(
                    maps, all_others(cameras.c2w), cameras.c2w, cameras.K, k=8
                )


def sweep(device: FakeDevice) -> None:
    """The plane sweep of six maps of 64x64 pixels by every path, forward and backward."""
    cameras, (height, width) = move(random_cameras(6, torch.Generator()), device), (64, 64)
    others = all_others(cameras.c2w)
    for _ in range(2):
        device.ledger.forget()
        for dtype in (torch.float32, torch.bfloat16):
            features = device.empty((1, 6, 128, height, width), dtype).requires_grad_()
            for path, shape, deterministic in (
                *((path, (1, 1), False) for path in SWEEP_PATHS),
                ("direct", (height, width), True),
            ):
                where = cost_volume.Sweep(
                    others,
                    homographies(cameras, others, height, width),
                    device.empty((1, 6, 32, *shape)),
                    pixel_center=0.5,
                )
                name = f"{path}{' deterministic' * deterministic} {dtype}"
                with reproducible(deterministic), device.ledger.stage(name):
                    cost_volume.correlation(features, where, path).sum().backward()


def sweep_of_12(device: FakeDevice) -> None:
    """The plane sweep of 12 views of 512x960 at an eighth, in bfloat16, with channels last."""
    cameras, (height, width) = move(random_cameras(12, torch.Generator()), device), (64, 120)
    others = all_others(cameras.c2w)
    where = cost_volume.Sweep(
        others,
        homographies(cameras, others, height, width),
        device.empty((1, 12, 128, 1, 1)),
        pixel_center=0.5,
    )
    tokens = device.empty((1, 12, height, width, 128), torch.bfloat16)
    for _ in range(2):
        features = tokens.permute(0, 1, 4, 2, 3).detach().requires_grad_()
        device.ledger.forget()
        with device.ledger.stage("forward"):
            volume = cost_volume.correlation(features, where)
        with device.ledger.stage("backward"):
            volume.sum().backward()
        del volume, features


def layers(device: FakeDevice) -> None:
    """Norms of maps of 64x64 pixels, distances of maps of features, scaled residuals and norms of
    tokens, attention of 57,344 points to neighbors, and turned harmonics; with gradients."""
    for _ in range(2):
        device.ledger.forget()
        for dtype in (torch.float32, torch.bfloat16):
            for channels, groups, activation in NORMS:
                x, weight = device.empty((2, 64, 64, channels), dtype), device.empty(channels)
                x, weight = x.permute(0, 3, 1, 2).requires_grad_(), weight.requires_grad_()
                affine = (None, None) if groups == channels else (weight, weight)
                with device.ledger.stage(f"norm {channels} {groups} {activation} {dtype}"):
                    group_norm(x, groups, *affine, activation).sum().backward()
            with device.ledger.stage(f"unit distance {dtype}"):
                _compare(device, dtype)
            tokens, scale = device.empty((2, 325, 384)), device.empty(384).requires_grad_()
            change = device.empty(tokens.shape, dtype).requires_grad_()
            with device.ledger.stage(f"scaled residual {dtype}"):
                add_scaled(tokens.requires_grad_(), change, scale).sum().backward()
            with device.ledger.stage(f"layer norm {dtype}"):
                layer_norm(tokens, scale, scale, dtype=dtype).sum().backward()
            with device.ledger.stage(f"layer norm, added {dtype}"):
                layer_norm(change, scale, scale, added_to=tokens).sum().backward()
            for near in (8, 16):
                with device.ledger.stage(f"attention to {near} neighbors {dtype}"):
                    _attend(device, near, dtype)
        for degree in (3, 4):
            count, (height, width) = (degree + 1) ** 2, SIZE
            raw = device.empty((1, 2, height * width, 3, count)).requires_grad_()
            matrix, base = device.empty((1, 2, count, count)), device.empty(raw.shape[:-1])
            with device.ledger.stage(f"harmonics {degree}"):
                harmonics.turn(matrix, raw, base).sum().backward()


def _compare(device: FakeDevice, dtype: torch.dtype) -> None:
    """Maps of the first and of the last layer that LPIPS compares, of four images."""
    shapes = (4, 64, *SIZE), (4, 512, 16, 16)
    maps, targets = ([device.empty(shape, dtype) for shape in shapes] for _ in range(2))
    weights = [device.empty(shape[1]) for shape in shapes]
    unit_distance([x.requires_grad_() for x in maps], targets, weights).sum().backward()


def _attend(device: FakeDevice, near: int, dtype: torch.dtype) -> None:
    qkv = device.empty((1, 57_344, 192), dtype).requires_grad_()
    table = device.empty((1, 57_344, near), torch.int64)
    queries, keys, values = qkv.chunk(3, dim=2)
    attend_neighbors(queries, keys, values, table).sum().backward()
