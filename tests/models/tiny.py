"""Encoders small enough for a test, and views for them."""

from typing import Any

import torch
from torch import nn

from pmsplat import registry
from pmsplat.types import Views
from tests.scenes import random_cameras

MODELS = registry.names("models")
SMALL: dict[str, Any] = {"width": 32, "planes": 16, "transformer_layers": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "compact": {"width": 32, "half_width": 16, "head_width": 8, "planes": 16},
    "depthsplat": SMALL | {"vit": "none", "head_width": 16},
    "depthsplat2024": SMALL | {"vit": "none", "features": 16, "unet_width": 8},
    "mvsplat": SMALL,
    # a Gaussian for each pixel, as the others have it, and those of the initial model alone
    "resplat": SMALL
    | {"vit": "none", "lowest": 4, "latent": 2, "gaussians_per_point": 4, "steps": 0}
    | {"point_width": 16, "state_width": 16},
    "updated": {
        "base": {"name": "depthsplat", **SMALL, "vit": "none", "head_width": 16},
        "steps": 0,
        "state_width": 16,
    },
}
OURS = ("compact", "updated")  # never released by others
RELEASED = [name for name in MODELS if name not in OURS]  # whose faults are settings of their own
# what has more than one scale can have two
SCALES: dict[str, dict[str, Any]] = {
    name: {"scales": 2} for name in ("depthsplat", "depthsplat2024")
}


def views(
    generator: torch.Generator, count: int = 2, size: tuple[int, int] = (32, 48), batch: int = 1
) -> Views:
    cameras = random_cameras(count, generator, batch)
    return Views(torch.rand(batch, count, 3, *size, generator=generator), cameras)


def tiny(name: str = "depthsplat", **changes: object) -> Any:
    """A small encoder of that kind, with random weights."""
    torch.manual_seed(0)
    return registry.build("models", name, SETTINGS[name] | changes)


def shaken(model: nn.Module) -> Any:
    """Every parameter off its initial value, so that no branch is silent."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()
