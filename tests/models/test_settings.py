"""Settings that do not fit: one sentence, from the Config itself, before anything is built."""

from dataclasses import fields
from typing import Any

import pytest
import torch

from pmsplat import registry
from pmsplat.config import compose
from pmsplat.errors import UserError
from tests.models.tiny import SETTINGS, views

BAD: dict[str, list[Any]] = {
    "planes": [1, 0, -1],
    "transformer_layers": [-1],
    "width": [0, -1, 1, 33, 48, 80],
    "sh_degree": [-1, 5],
    "near": [0.0, -1.0, float("nan"), float("inf")],
}
BAD_OF: dict[str, dict[str, list[Any]]] = {
    "compact": {
        "half_width": [0, 24],
        "head_width": [0],
        "fine_planes": [-1],
        "blocks": [0],
        "neighbors": [0],
    },
    "depthsplat": {
        "neighbors": [0, -1],
        "head_width": [0, -1],
        "scale_max": [0.0, float("nan")],
        "far": [0.5, -1.0],
        "typical_depth": [0.0, float("nan")],
    },
    "depthsplat2024": {
        "neighbors": [-1],
        "features": [0, -1],
        "unet_width": [0, -4, 6, 36, 44],
        "scale_max": [-1.0],
    },
    "mvsplat": {},
    "resplat": {
        "latent": [1, 8],
        "gaussians_per_point": [2, 16],
        "point_width": [0, 6],
        "state_width": [0],
        "steps": [-1],
        "scale_max": [0.0],
        "far": [0.01, -1.0],
        "typical_depth": [0.0, -1.0],
    },
    "updated": {"state_width": [0], "steps": [-1]},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_wrong_number_is_named_with_what_fits(name: str) -> None:
    known = {field.name for field in fields(registry.module("models", name).Config)}
    for field, values in (BAD | BAD_OF[name]).items():
        for value in values if field in known else []:
            with pytest.raises(UserError, match=rf"{field} ?= ?.*; wanted "):
                registry.make_config("models", name, SETTINGS[name] | {field: value})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("depthsplat", {"scales": 2, "width": 96}, r"width=96; wanted a multiple of 64, or 16, 32"),
        ("depthsplat", {"width": 48}, r"width=48; wanted a multiple of 32, or 16; set"),
        ("depthsplat2024", {"scales": 2, "features": 15}, r"features=15; wanted a multiple of 2"),
        (
            "mvsplat",
            {"width": 40},
            "width=40; wanted a multiple of 32, or 4, 8, 12, 16, 20",
        ),
    ],
)
def test_settings_that_do_not_fit_each_other(
    name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        registry.make_config("models", name, SETTINGS[name] | settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("depthsplat", {"planes": 2, "width": 16, "head_width": 1, "transformer_layers": 0}),
        ("depthsplat", {"planes": 3, "width": 64, "neighbors": 9}),
        ("depthsplat", {"scales": 2, "width": 16, "planes": 2}),
        ("depthsplat2024", {"scales": 2, "features": 2, "unet_width": 4, "planes": 5}),
        ("depthsplat2024", {"features": 3, "unet_width": 40, "neighbors": 9}),
        ("depthsplat2024", {"features": 1, "unet_width": 12}),
        ("mvsplat", {"width": 4, "planes": 2}),
        ("mvsplat", {"width": 24, "planes": 7}),
        ("compact", {"fine_planes": 0, "planes": 2}),
        ("compact", {"blocks": 2, "fine_planes": 3, "neighbors": 9, "sh_degree": 2}),
        ("resplat", {"latent": 4, "gaussians_per_point": 16, "steps": 1}),
        ("resplat", {"latent": 4, "gaussians_per_point": 4, "steps": None}),
        ("resplat", {"lowest": 8, "gaussians_per_point": 1, "point_width": 4, "state_width": 1}),
    ],
)
def test_odd_settings_that_fit_run(
    name: str, settings: dict[str, Any], generator: torch.Generator
) -> None:
    """The rules refuse nothing that works."""
    model = registry.build("models", name, SETTINGS[name] | settings)
    with torch.no_grad():
        prediction = model.eval()(views(generator, 4, (32, 32)))
    assert prediction.depths[-1].isfinite().all()
    assert prediction.gaussians[-1].means.isfinite().all()


@pytest.mark.parametrize("width", [32 * 10**5, 32 * 10**12])
def test_a_network_beyond_all_memory_is_told(width: int) -> None:
    with pytest.raises(UserError, match=f"does not fit into memory.*width={width}"):
        registry.build("models", "mvsplat", {"width": width})


@pytest.mark.parametrize(
    "override",
    [
        "model.width=48",
        "model.planes=1",
        "model.neighbors=0",
        "optimizer.lr=-1",
        "optimizer.warm_up=2",
        "trainer.gradient_clip=-1",
        "renderer.background=[0,0,300]",
        "loss.mse.start_step=-1",
    ],
)
def test_a_run_with_such_settings_stops_before_data_is_read(override: str) -> None:
    key, value = override.split("=")
    setting = key.rpartition(".")[2]
    with pytest.raises(UserError, match=rf"{setting}=.*; wanted "):
        compose(["+experiment=re10k_small", override])
    assert value


@pytest.mark.parametrize(
    ("package", "name", "settings", "message"),
    [
        ("data", "re10k", {"size": [0, 256]}, r"dataset\.size=\(0, 256\)"),
        ("data", "re10k", {"flip": 2.0}, r"dataset\.flip=2.0; wanted a number .* at most 1"),
        ("data", "re10k", {"near": -1.0}, r"dataset\.near=-1"),
        ("data", "dl3dv", {"near": 5.0, "far": 2.0}, "a near below far"),
        ("data", "synthetic", {"scenes": 0}, r"dataset\.scenes=0"),
        ("losses", "depth", {"value": -1.0}, r"loss\.depth\.value=-1"),
        ("foundation.teachers", "given", {"downsample": 0}, r"teacher\.downsample=0"),
        ("foundation.teachers", "vggt", {"model": "VGGT-2B"}, "one of VGGT-1B, VGGT-1B-Commercial"),
        ("foundation.teachers", "depth_anything_3", {"model": "DA3"}, "one of DA3-SMALL, DA3-BASE"),
    ],
)
def test_data_losses_and_teachers_say_so_too(
    package: str, name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        registry.build(package, name, settings)
