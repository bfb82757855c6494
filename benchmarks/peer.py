"""The official encoders from checkouts of cvg/depthsplat, as of 2025 or of October 2024, and of
donydchen/mvsplat.

DepthSplat's DINOv2 comes from the network unless a checkout of facebookresearch/dinov2 lies in its
folder `dinov2`. Weights are random.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from pmsplat.errors import UserError
from pmsplat.types import Views

SETTINGS = Path("config/model/encoder")
MVSPLAT_EXPERIMENT = Path("config/experiment/re10k.yaml")
DINO = Path("dinov2")


# Settings of ours that the official ones follow below, and those that change no network.
FOLLOWED = {"vit", "scales", "lowest", "gaussians", "features", "unet_width", "neighbors"}
SAME = {"near", "scale_max", "offsets", "published"}


class Missing(Exception):
    """A network that cannot be made from a checkout, and why."""


@contextmanager
def wanted() -> Iterator[None]:
    """Inside, what is missing is an error of the user, who named the checkout."""
    try:
        yield
    except Missing as reason:
        raise UserError(
            f"--peer: {reason}", "a checkout of an official model", "see benchmarks/README.md"
        ) from reason


def model_of(checkout: Path) -> str:
    """Which of our models a checkout is the official code of.

    Raises Missing for another one, and without the backbone.
    """
    found = SETTINGS / "costvolume.yaml"
    if (checkout / found).is_file():
        return "mvsplat"
    found = SETTINGS / "depthsplat.yaml"
    for needed in (found, DINO / "hubconf.py"):
        if not (checkout / needed).is_file():
            raise Missing(f"{checkout} has no {needed}")
    return "depthsplat" if "local_mv_match" in (checkout / found).read_text() else "depthsplat2024"


def encoder(checkout: Path, name: str, ours: dict[str, Any], views: int) -> nn.Module:
    """The official encoder of so many views, in eval mode, by the settings of our model `name`.

    Raises Missing where the checkout has no such network, or a package is missing that it needs.
    """
    from pmsplat import registry

    if (found := model_of(checkout)) != name:
        raise Missing(f"{checkout} is the code of {found}, not of {name}")
    if unknown := ours.keys() - FOLLOWED - SAME:
        raise Missing(f"the official {name} has no {', '.join(sorted(unknown))}")
    settings = _settings(checkout, name, registry.make_config("models", name, ours))
    torch.manual_seed(0)
    with _importable(checkout, views), _local_hub(checkout / DINO):
        if name == "mvsplat":
            module, kind = "encoder_costvolume", "EncoderCostVolume"
        else:
            module, kind = "encoder_depthsplat", "EncoderDepthSplat"
        try:
            official = getattr(importlib.import_module(f"src.model.encoder.{module}"), kind)
        except ModuleNotFoundError as error:
            raise Missing(f"the official {name} needs {error.name}, which is absent") from error
        return official(SimpleNamespace(**settings)).eval()


def predict(official: nn.Module, views: Views) -> Any:
    """One forward pass of an official encoder."""
    cameras = views.cameras
    context = {
        "image": views.images,
        "extrinsics": cameras.c2w,
        "intrinsics": cameras.K,
        "near": cameras.near,
        "far": cameras.far,
    }
    return official(context, 0)


def predicted(found: Any) -> list[Tensor]:
    """All tensors with gradients in a prediction, ours or an official one."""
    if isinstance(found, Tensor):
        return [found] if found.requires_grad else []
    if isinstance(found, dict):
        found = list(found.values())
    elif not isinstance(found, (list, tuple)):
        found = list(getattr(found, "__dict__", {}).values())
    return [tensor for part in found for tensor in predicted(part)]


def _settings(checkout: Path, name: str, ours: Any) -> dict[str, Any]:
    """The official settings that make the network of our `ours`."""
    from omegaconf import OmegaConf

    def load(path: Path) -> Any:
        return OmegaConf.to_container(OmegaConf.load(checkout / path))

    file = "costvolume" if name == "mvsplat" else "depthsplat"
    settings = load(SETTINGS / f"{file}.yaml") | {"visualizer": None}
    for part in ("gaussian_adapter", "opacity_mapping"):
        if part in settings:
            settings[part] = SimpleNamespace(**settings[part])
    if name == "mvsplat":  # its released network is that of an experiment
        return settings | load(MVSPLAT_EXPERIMENT)["model"]["encoder"]
    settings |= {
        "num_scales": ours.scales,
        "upsample_factor": ours.lowest // 2 ** (ours.scales - 1),
        "lowest_feature_resolution": ours.lowest,
        "monodepth_vit_type": ours.vit,
        "train_depth_only": not ours.gaussians,
    }
    if name == "depthsplat2024":
        settings |= {
            "feature_upsampler_channels": ours.features,
            "gaussian_regressor_channels": ours.unet_width,
            "color_large_unet": True,
        }
        if ours.neighbors:
            nearest = ours.neighbors + 1
            settings["costvolume_nearest_n_views"] = nearest
            settings["multiview_trans_nearest_n_views"] = nearest
    return settings


@contextmanager
def _importable(checkout: Path, views: int) -> Iterator[None]:
    """Its package is called `src`; its `__init__` files import the whole project, so that they are
    left out. MVSplat reads the number of views from a global setting."""
    before = dict(sys.modules)
    sys.path.insert(0, str(checkout))
    for name in ("src.dataset", "src.model.encoder"):
        package: Any = SimpleNamespace(__path__=[str(checkout / name.replace(".", "/"))])
        package.__name__, package.__spec__ = name, None
        sys.modules[name] = package
    sampler = SimpleNamespace(num_context_views=views)
    dataset = SimpleNamespace(view_sampler=sampler)
    try:
        importlib.import_module("src.global_cfg").set_cfg(
            SimpleNamespace(mode="test", dataset=dataset)
        )
        yield
    finally:
        sys.path.remove(str(checkout))
        for name in sys.modules.keys() - before.keys():
            if name.split(".")[0] == "src":
                del sys.modules[name]


@contextmanager
def _local_hub(folder: Path) -> Iterator[None]:
    """torch.hub loads DINOv2 from `folder`, with random weights."""
    before = torch.hub.load

    def load(_: str, name: str, **__: Any) -> Any:
        return before(str(folder), name, source="local", pretrained=False)

    torch.hub.load = load
    try:
        yield
    finally:
        torch.hub.load = before
