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
from pmsplat.foundation import vgg19
from pmsplat.foundation.lpips import TAPS
from pmsplat.losses import Term
from pmsplat.nn.half import CastTogether
from pmsplat.nn.maps import set_memory_format
from pmsplat.render import rasterize
from pmsplat.train import optim
from pmsplat.train.step import training_step
from pmsplat.types import (
    RESPLAT,
    Batch,
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
from .operations import SIZE, TARGETS, draw, layers, neighbors, sweep, sweep_of_12

Scenario = Callable[[FakeDevice], None]

CONFIG = Path(__file__).parents[2] / "config" / "model"
VIEWS = (2, 3, 6, 12)
PRECISIONS = ("float32", "tf32", "bf16")
CROSSED, OTHERS = ((2, "tf32"), (6, "bf16")), ((3, "float32"), (12, "tf32"))
# The small model also as it is trained fastest; the tiny one in all, in CI in what others leave out
SMALL, ALSO = "depthsplat_small", ((2, "bf16"),)
TINY, LEFT_OUT = "depthsplat_tiny", ((3, "float32"), (12, "bf16"))
LARGE = {  # predictions beyond those of training: of which model, how many views, of which size
    "37 views": ("depthsplat-gs-base-re10k-256x448-view2", 37, (256, 448)),
    "512x960": ("depthsplat-gs-base-re10k-256x256-view2", 12, (512, 960)),
    "24 views in 6": ("depthsplat-dl3dv-zpressor-n50-256x448", 24, (256, 448)),
}
LOSSES: dict[str, dict[str, Any]] = {  # the settings of each loss that are tried
    "mse": {"": {}},
    "l1": {"": {}},
    "lpips": {"": {}},
    "ssim": {"": {}},
    "perceptual": {"": {"net": "vgg19"}, "half": {"net": "vgg19", "downsample": 2}},
    "depth": {"": {}},
    "log_depth": {"": {}},
    "smoothness": {"": {}},
    "opacity": {"": {}},
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
        cases, others = CROSSED, OTHERS
        if name == SMALL:
            cases = (*CROSSED, *ALSO)
        elif name == TINY:
            every = ((views, precision) for views in VIEWS for precision in PRECISIONS)
            cases, others = LEFT_OUT, tuple(case for case in every if case not in LEFT_OUT)
        found[f"train {name}"] = partial(train, name=name, cases=cases)
        found[f"train {name}, other views"] = partial(train, name=name, cases=others)
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
        "sweep of 12 views": sweep_of_12,
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
    """A loss; its network gets weights of zeros."""
    if name == "lpips":
        os.environ["PMSPLAT_LPIPS"] = lpips_weights()
    if name == "perceptual":
        settings["weights"] = vgg19_weights()
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


@cache
def vgg19_weights() -> str:
    """The same of VGG-19, for `perceptual`."""
    path = Path(tempfile.mkdtemp()) / "vgg19.pth"
    torch.save(
        {
            f"features.{place}.{part}": torch.zeros(shape)
            for place, kernel in zip(vgg19.PLACES, vgg19._shapes(), strict=True)
            for part, shape in (("weight", kernel), ("bias", kernel[:1]))
        },
        path,
    )
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


def losses(device: FakeDevice) -> None:
    """Every loss alone, forward and backward, on a prediction of two views, which gets a gradient
    from each."""
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
                assert any(leaf.grad is not None for leaf in _leaves(step)), loss
                del step, value


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


def _leaves(step: StepOutput) -> list[torch.Tensor]:
    """The tensors of a prediction and its rendering that losses have gradients of."""
    gaussians = step.prediction.gaussians[-1]
    return [step.prediction.depths[-1], gaussians.means, gaussians.opacities, step.rendering.color]
