"""What is tried on the fake device: every encoder in training and in use, every loss alone.

A scenario does its work twice and counts the second time: caches are warm then, as in a long run.
Sizes are those of real runs (256x256 pixels, four targets), since shapes cost nothing here.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn
from torchvision.models import vgg16

import pmsplat
from pmsplat import registry
from pmsplat.contracts import encoder_traits
from pmsplat.device import float32_products
from pmsplat.evaluate import protocol
from pmsplat.foundation.lpips import TAPS
from pmsplat.kernels import cost_volume, harmonics
from pmsplat.kernels import neighbors as search
from pmsplat.kernels.neighbor_attention import attend_neighbors
from pmsplat.kernels.norm import Activation, group_norm
from pmsplat.losses import Term
from pmsplat.nn.cost_volume import all_others, homographies
from pmsplat.nn.half import CastTogether
from pmsplat.nn.maps import set_memory_format
from pmsplat.render import rasterize
from pmsplat.train import optim
from pmsplat.train.step import training_step
from pmsplat.types import (
    CLASSIC,
    RESPLAT,
    Batch,
    DrawingRules,
    Gaussians,
    Pointmap,
    Prediction,
    Rendering,
    StepOutput,
    Views,
)
from pmsplat.zoo.infer import infer
from pmsplat.zoo.published import MARCH_SETTINGS, ZOO
from tests.scenes import random_cameras, random_gaussians

from .device import FakeDevice, move

Scenario = Callable[[FakeDevice], None]

CONFIG = Path(__file__).parents[2] / "config" / "model"
SIZE, TARGETS = (256, 256), 4
TINY = "depthsplat_tiny"
VIEWS = (2, 3, 6, 12)
PRECISIONS = ("float32", "tf32", "bf16")
CROSSED = ((2, "tf32"), (6, "bf16"))
OTHERS = ((3, "float32"), (12, "tf32"))
LARGE = {  # predictions beyond those of training: of which model, how many views, of which size
    "37 views": ("depthsplat-gs-base-re10k-256x448-view2", 37, (256, 448)),
    "512x960": ("depthsplat-gs-base-re10k-256x256-view2", 12, (512, 960)),
    "24 views in 6": ("depthsplat-dl3dv-zpressor-n50-256x448", 24, (256, 448)),
}
SWEEP_PATHS = ("direct", "tiled", "all_pairs")
NORMS: tuple[tuple[int, int, Activation], ...] = (  # channels, groups, activation; as in our models
    (128, 8, "silu"),
    (64, 64, "relu"),
    (256, 8, "gelu"),
)
LOSSES: dict[str, dict[str, Any]] = {  # the settings of each loss that are tried
    "mse": {"": {}},
    "lpips": {"": {}},
    "ssim": {"": {}},
    "depth": {"": {}},
    "log_depth": {"": {}},
    "pointmap": {
        "": {},
        "robust": {"robust": 20},
        "trim": {"trim": 0.1},
        "scale": {"alignment": "scale"},
        "confidence": {"confidence": True, "distrust": 0.1, "border": 4},
        "all": {"robust": 3, "confidence": True, "trim": 0.1},
    },
}


def scenarios() -> dict[str, Scenario]:
    """All of them, by name."""
    found: dict[str, Scenario] = {}
    for name in configured():
        if name == TINY:
            every = tuple((v, p) for v in VIEWS for p in PRECISIONS)
            found[f"train {name}"] = partial(train, name=name, cases=every)
            continue
        found[f"train {name}"] = partial(train, name=name, cases=CROSSED)
        found[f"train {name}, other views"] = partial(train, name=name, cases=OTHERS)
    for name, (component, settings) in published().items():
        found[f"predict {name}"] = partial(predict, component=component, settings=settings)
    for name, (model, views, size) in LARGE.items():
        component, settings = published()[model]
        found[f"predict {name}"] = partial(
            predict, component=component, settings=settings, views=views, size=size
        )
    for precision in PRECISIONS:
        found[f"graph {precision}"] = partial(graph, precision=precision)
    found["predict compact"] = partial(predict, component="compact", settings={})
    found["graph compact"] = partial(graph, precision="float32", name="compact")
    found |= {
        "draw auto": partial(draw, backend="auto"),
        "draw resplat": partial(draw, backend="auto", rules=RESPLAT),
        "draw gsplat": partial(draw, backend="gsplat"),
        "draw deterministic": partial(draw, backend="triton", deterministic=True),
    }
    return found | {
        "layers": layers, "losses": losses, "neighbors": neighbors, "sweep": sweep,
    }  # fmt: skip


def configured() -> dict[str, tuple[str, dict[str, Any]]]:
    """Component and settings of every file of config/model."""
    found = {}
    for path in sorted(CONFIG.glob("*.yaml")):
        settings = configuration(path.stem)
        found[path.stem] = (settings.pop("name"), settings)
    return found


def configuration(name: str) -> dict[str, Any]:
    """One of these files and, where it names another as its base, that too; without weights."""
    settings: Any = OmegaConf.to_container(OmegaConf.load(CONFIG / f"{name}.yaml"))
    for weights in ("init_from", "base_weights"):
        settings.pop(weights, None)
    if isinstance(base := settings.get("base"), str):
        settings["base"] = configuration(base)
    return settings


def published() -> dict[str, tuple[str, dict[str, Any]]]:
    """The same of the released models, one for each kind of settings."""
    kinds = {str((p.model, p.settings)): name for name, p in reversed(ZOO.items())}
    found = {name: (ZOO[name].model, ZOO[name].settings) for name in reversed(kinds.values())}
    march = ("depthsplat", MARCH_SETTINGS)
    return {
        name: (component, settings | {"published": True})
        for name, (component, settings) in {**found, "march-2025": march}.items()
    }


def build(component: str, settings: dict[str, Any], device: FakeDevice) -> Any:
    """An encoder on the device, whose parameters were never filled."""
    with torch.device("meta"):
        model = registry.build("models", component, settings)
    set_memory_format(model)
    return move(model, device)


def make_batch(device: FakeDevice, views: int, size: tuple[int, int] = SIZE) -> Batch:
    """One scene, with depth and a pointmap of its context views."""
    g = torch.Generator().manual_seed(0)

    def photos(count: int) -> Views:
        return Views(torch.zeros(1, count, 3, *size), random_cameras(count, g))

    depth = torch.ones(1, views, *size)
    pointmap = Pointmap(depth[..., None].expand(-1, -1, -1, -1, 3).contiguous(), depth)
    context = replace(photos(views), depth=depth, pointmap=pointmap)
    return move(Batch(context, photos(TARGETS), ["scene"]), device)


@contextmanager
def running_in(precision: str) -> Iterator[None]:
    """What the trainer sets for a precision."""
    with (
        float32_products(tf32=precision != "float32"),
        torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"),
    ):
        yield


@cache
def make_term(name: str, **settings: Any) -> Term:
    """A loss; LPIPS gets weights of zeros."""
    if name == "lpips":
        os.environ["PMSPLAT_LPIPS"] = lpips_weights()
    return Term(registry.build("losses", name, settings))


@cache
def lpips_weights() -> str:
    """A file of weights of the right shapes."""
    with torch.device("meta"):
        features = vgg16(weights=None).features
    shapes = {f"features.{name}": x.shape for name, x in features.state_dict().items()}
    widths = [shapes[f"features.{tap - 1}.bias"][0] for tap in TAPS["vgg16"]]
    shapes |= {f"lin{i}.model.1.weight": (1, width, 1, 1) for i, width in enumerate(widths)}
    path = Path(tempfile.mkdtemp()) / "lpips.npz"
    weights: Any = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    np.savez(path, **weights)
    return str(path)


def train(device: FakeDevice, name: str, cases: Sequence[tuple[int, str]]) -> None:
    """Steps as `TrainingModule` takes them, with the published losses and, where there is a
    Gaussian for each pixel, PM-Loss."""
    ledger = device.ledger
    component, settings = configured()[name]
    model = build(component, settings, device).train()
    encoder = CastTogether(model)
    losses = ("mse", "lpips") if component == "resplat" else ("mse", "lpips", "pointmap")
    terms = {loss: make_term(loss) for loss in losses}
    optimizer, schedule = optim.build(model, optim.Config(), 1000)
    warm_up = [(2, precision) for precision in ("tf32", "bf16")]
    for at, (views, precision) in enumerate([*warm_up, *cases]):
        batch, case = make_batch(device, views), f"{views} {precision}"
        if at <= len(warm_up):
            ledger.forget()
        ledger.rebase()

        def stage(part: str, case: str = case) -> Any:
            return ledger.stage(f"{case} {part}")

        watch: Any = stage
        with running_in(precision), stage("losses"):
            outcome = training_step(protocol.pipeline(encoder, watch=watch), batch, terms, 0)
        with stage("backward"):
            outcome.loss.backward()
        del outcome
        with stage("update"):
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.found_inf = (~norm.isfinite()).float()  # pyright: ignore
            optimizer.step()
            schedule.step()
        silent = "compress" if views <= encoder_traits(model).anchors else None  # no supports
        missing = [
            n
            for n, p in model.named_parameters()
            if p.requires_grad and p.grad is None and silent not in n.split(".")
        ]
        assert not missing, f"no gradient reaches {missing}"
        optimizer.zero_grad()


@torch.no_grad()
def predict(
    device: FakeDevice,
    component: str,
    settings: dict[str, Any],
    views: int = 2,
    size: tuple[int, int] = SIZE,
) -> None:
    """A prediction in float32, and one picture of it where it has Gaussians."""
    model, ledger = build(component, settings, device).eval(), device.ledger
    batch = make_batch(device, views, size)
    camera = batch.target.cameras.at(slice(0, 1))
    for _ in range(2):
        ledger.forget()
        with ledger.stage("encode"):
            prediction = infer(model, batch.context)
        with ledger.stage("render"):
            for gaussians in prediction.gaussians:
                rasterize(gaussians, camera, batch.target.size)


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


def losses(device: FakeDevice) -> None:
    """Every loss alone, forward and backward, on a prediction of two views."""
    ledger, batch = device.ledger, make_batch(device, 2)
    pixels = 2 * SIZE[0] * SIZE[1]
    splats = random_gaussians(pixels, torch.Generator().manual_seed(0))
    for _ in range(2):
        ledger.forget()
        for loss, variants in LOSSES.items():
            for variant, settings in variants.items():
                step = _step_output(device, batch, splats)
                with ledger.stage(f"{loss} {variant}".strip()):
                    value: Any = make_term(loss, **settings).loss(step)
                    getattr(value, "value", value).backward()
                del step, value


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


def layers(device: FakeDevice) -> None:
    """Norms of maps of 64x64 pixels, attention of 57,344 points to neighbors, and turned harmonics,
    forward and backward."""
    for _ in range(2):
        device.ledger.forget()
        for dtype in (torch.float32, torch.bfloat16):
            for channels, groups, activation in NORMS:
                x, weight = device.empty((2, 64, 64, channels), dtype), device.empty(channels)
                x, weight = x.permute(0, 3, 1, 2).requires_grad_(), weight.requires_grad_()
                affine = (None, None) if groups == channels else (weight, weight)
                with device.ledger.stage(f"norm {channels} {groups} {activation} {dtype}"):
                    group_norm(x, groups, *affine, activation).sum().backward()
            for near in (8, 16):
                with device.ledger.stage(f"attention to {near} neighbors {dtype}"):
                    _attend(device, near, dtype)
        for degree in (3, 4):
            count, (height, width) = (degree + 1) ** 2, SIZE
            raw = device.empty((1, 2, height * width, 3, count)).requires_grad_()
            matrix, base = device.empty((1, 2, count, count)), device.empty(raw.shape[:-1])
            with device.ledger.stage(f"harmonics {degree}"):
                harmonics.turn(matrix, raw, base).sum().backward()


def _attend(device: FakeDevice, near: int, dtype: torch.dtype) -> None:
    qkv = device.empty((1, 57_344, 192), dtype).requires_grad_()
    table = device.empty((1, 57_344, near), torch.int64)
    queries, keys, values = qkv.chunk(3, dim=2)
    attend_neighbors(queries, keys, values, table).sum().backward()


def graph(device: FakeDevice, precision: str, name: str = "depthsplat_small") -> None:
    """`pmsplat.compile`: prediction and drawing captured once, and repeated."""
    model = build(*configured()[name], device).eval()
    batch, ledger = make_batch(device, 2), device.ledger
    with ledger.stage("capture"):
        compiled = pmsplat.compile(model, batch.context, batch.target.cameras, precision=precision)
    ledger.rebase()
    with ledger.stage("repeat"):
        compiled.draw(batch.context, batch.target.cameras)


def _step_output(device: FakeDevice, batch: Batch, splats: Gaussians) -> StepOutput:
    gaussians = move(splats, device).map(lambda x: x.requires_grad_())
    depth = device.empty((1, 2, *SIZE)).requires_grad_()
    shape = (1, TARGETS, *SIZE)
    color = device.empty((1, TARGETS, 3, *SIZE)).requires_grad_()
    drawn = Rendering(color, device.empty(shape), device.empty(shape))
    return StepOutput(batch, Prediction((depth,), (gaussians,)), (drawn,))
