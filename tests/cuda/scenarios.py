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

from pmsplat import registry
from pmsplat.evaluate import protocol
from pmsplat.foundation.lpips import TAPS
from pmsplat.losses import Term
from pmsplat.render import rasterize
from pmsplat.train import optim
from pmsplat.train.step import training_step
from pmsplat.types import Batch, Gaussians, Pointmap, Prediction, Rendering, StepOutput, Views
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
CROSSED = tuple(zip(VIEWS, ("tf32", "float32", "bf16", "tf32"), strict=True))
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
        every = tuple((v, p) for v in VIEWS for p in PRECISIONS)
        found[f"train {name}"] = partial(train, name=name, cases=every if name == TINY else CROSSED)
    for name, (component, settings) in published().items():
        found[f"predict {name}"] = partial(predict, component=component, settings=settings)
    for backend in ("auto", "gsplat"):
        found[f"draw {backend}"] = partial(draw, backend=backend)
    return found | {"losses": losses}


def configured() -> dict[str, tuple[str, dict[str, Any]]]:
    """Component and settings of every file of config/model."""
    found = {}
    for path in sorted(CONFIG.glob("*.yaml")):
        settings: Any = OmegaConf.to_container(OmegaConf.load(path))
        settings.pop("init_from", None)
        found[path.stem] = (settings.pop("name"), settings)
    return found


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
    return move(model, device)


def make_batch(device: FakeDevice, views: int) -> Batch:
    """One scene, with depth and a pointmap of its context views."""
    g = torch.Generator().manual_seed(0)

    def photos(count: int) -> Views:
        return Views(torch.zeros(1, count, 3, *SIZE), random_cameras(count, g))

    depth = torch.ones(1, views, *SIZE)
    pointmap = Pointmap(depth[..., None].expand(-1, -1, -1, -1, 3).contiguous(), depth)
    context = replace(photos(views), depth=depth, pointmap=pointmap)
    return move(Batch(context, photos(TARGETS), ["scene"]), device)


@contextmanager
def running_in(precision: str) -> Iterator[None]:
    """What the trainer sets for a precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    try:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


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
    """Steps as `TrainingModule` takes them, with the published losses and PM-Loss."""
    ledger = device.ledger
    model = build(*configured()[name], device).train()
    terms = {loss: make_term(loss) for loss in ("mse", "lpips", "pointmap")}
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
            outcome = training_step(protocol.pipeline(model, watch=watch), batch, terms, 0)
        with stage("backward"):
            outcome.loss.backward()
        del outcome
        with stage("update"):
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.found_inf = (~norm.isfinite()).float()  # pyright: ignore
            optimizer.step()
            schedule.step()
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, f"no gradient reaches {missing}"
        optimizer.zero_grad()


@torch.no_grad()
def predict(device: FakeDevice, component: str, settings: dict[str, Any]) -> None:
    """A prediction in float32 for two views, and one picture of it where it has Gaussians."""
    model, ledger = build(component, settings, device).eval(), device.ledger
    batch = make_batch(device, 2)
    camera = batch.target.cameras.at(slice(0, 1))
    for _ in range(2):
        ledger.forget()
        with ledger.stage("encode"):
            prediction = infer(model, batch.context)
        with ledger.stage("render"):
            for gaussians in prediction.gaussians:
                rasterize(gaussians, camera, batch.target.size)


def draw(device: FakeDevice, backend: str) -> None:
    """A drawing of 8 scenes of 131,072 Gaussians into 4 views each, with all that there is."""
    ledger, g = device.ledger, torch.Generator().manual_seed(0)
    scene = random_gaussians(2 * SIZE[0] * SIZE[1], g, batch=1)
    gaussians = move(scene.map(lambda x: x.expand(8, *x.shape[1:])), device)
    cameras = move(random_cameras(TARGETS, g, 8), device)
    features = device.empty((8, gaussians.means.shape[1], 5))
    for _ in range(2):
        ledger.forget()
        leaves = gaussians.map(lambda x: x.detach().requires_grad_())
        with ledger.stage("forward"):
            drawn = rasterize(
                leaves, cameras, SIZE, backend, attributes=features, extras=("screen",)
            )
        with ledger.stage("backward"):
            _sum(drawn).backward()
        del drawn, leaves


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


def _step_output(device: FakeDevice, batch: Batch, splats: Gaussians) -> StepOutput:
    gaussians = move(splats, device).map(lambda x: x.requires_grad_())
    depth = device.empty((1, 2, *SIZE)).requires_grad_()
    shape = (1, TARGETS, *SIZE)
    color = device.empty((1, TARGETS, 3, *SIZE)).requires_grad_()
    drawn = Rendering(color, device.empty(shape), device.empty(shape))
    return StepOutput(batch, Prediction((depth,), (gaussians,)), (drawn,))
