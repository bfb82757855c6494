"""The official encoder of DepthSplat (Xu et al., CVPR 2025) from a checkout of cvg/depthsplat.

Its DINOv2 comes from the network unless a checkout of facebookresearch/dinov2 lies in its folder
`dinov2`. Weights are random.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from pmsplat.types import Views

from .process import Skipped

SETTINGS = Path("config/model/encoder/depthsplat.yaml")
DINO = "dinov2"


def encoder(checkout: Path, views: Views, changes: dict[str, Any]) -> Callable[[], Any]:
    """A call of the small model on `views`, in eval mode; `changes` are of its settings.

    Raises Skipped where something is missing.
    """
    from omegaconf import OmegaConf

    for needed in (checkout / SETTINGS, checkout / DINO / "hubconf.py"):
        if not needed.is_file():
            raise Skipped(f"--peer has no {needed.relative_to(checkout)}")
    settings: Any = OmegaConf.to_container(OmegaConf.load(checkout / SETTINGS))
    settings |= changes | {"visualizer": None}
    settings["gaussian_adapter"] = SimpleNamespace(**settings["gaussian_adapter"])
    device = views.images.device
    with _importable(checkout), _local_hub(checkout / DINO):
        from src.model.encoder.encoder_depthsplat import (  # pyright: ignore
            EncoderDepthSplat,
        )

        torch.manual_seed(0)
        model: nn.Module = EncoderDepthSplat(SimpleNamespace(**settings)).to(device).eval()
    cameras = views.cameras
    context = {
        "image": views.images,
        "extrinsics": cameras.c2w,
        "intrinsics": cameras.K,
        "near": cameras.near,
        "far": cameras.far,
    }
    return lambda: model(context, 0)


@contextmanager
def _importable(checkout: Path) -> Iterator[None]:
    """Its package is called `src`; its `__init__` files import the whole project, so that they are
    left out."""
    before = dict(sys.modules)
    sys.path.insert(0, str(checkout))
    for name in ("src.dataset", "src.model.encoder"):
        package: Any = SimpleNamespace(__path__=[str(checkout / name.replace(".", "/"))])
        package.__name__, package.__spec__ = name, None
        sys.modules[name] = package
    try:
        yield
    finally:
        sys.path.remove(str(checkout))
        for name in sys.modules.keys() - before.keys():
            if name.startswith("src"):
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
