"""Guesses from keys and shapes which published models a checkpoint could be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .. import registry
from .convert import DEPTH, ENCODER
from .published import ZOO

POSITIONS = "pretrained.pos_embed"  # of the ViT
# Of ReSplat: rows of its head for each Gaussian, and what its regressor reads at 1/4 but the ViT's
GAUSSIAN_ROWS, COARSE_CHANNELS = 58, 466
ZPRESSOR = 6  # anchors of every released file that has some: no shape tells
VITS = {384: "vits", 768: "vitb", 1024: "vitl"}


@dataclass(frozen=True)
class ShapeMatch:
    """The published models that have such shapes, and the shapes in words."""

    names: tuple[str, ...]
    text: str


def recognize_shapes(state: Mapping[str, Tensor]) -> ShapeMatch:
    """Which published models have the keys and shapes of `state`, an official checkpoint or not."""
    outer = _find_prefix(state)
    shapes = {
        key.removeprefix(outer).removeprefix(ENCODER): tuple(value.shape)
        for key, value in state.items()
    }
    anchors = ZPRESSOR if any(".zipmatch." in f".{key}" for key in shapes) else 0
    if f"{DEPTH}corr_refine_net.0.weight" in shapes:
        known = (name for name in ZOO if ZOO[name].model == "mvsplat")
        names = tuple(name for name in known if _setting(name, "anchors") == anchors)
        return ShapeMatch(names, f"MVSplat (anchors={anchors})")
    prefix = DEPTH if f"{DEPTH}{POSITIONS}" in shapes else ""
    ends = [f"{prefix}{POSITIONS}", f"{prefix}upsampler.concat_projects.2.weight"]
    if any(end not in shapes for end in ends):
        first, shape = next(iter(shapes.items()))
        what = f"the first of {len(shapes)} tensors is {first!r} {list(shape)}"
        return ShapeMatch((), f"no model that pmsplat knows ({what})")
    outputs, inputs, *_ = shapes[ends[1]]
    if "gaussian_regressor.0.weight" in shapes and "proj.weight" in shapes:
        return _recognize_resplat(shapes)
    found: dict[str, Any] = {
        "vit": VITS.get(shapes[ends[0]][-1], f"width {shapes[ends[0]][-1]}"),
        "scales": 2 if f"{prefix}regressor.1.0.weight" in shapes else 1,
        "lowest": 4 if inputs == outputs else 8,
        "gaussians": bool(prefix),
        "anchors": anchors,
    }
    is_2024 = "feature_upsampler.upsampler.0.0.weight" in shapes
    if is_2024:
        width, inputs, *_ = shapes["gaussian_regressor.0.weight"]
        found |= {"unet_width": width, "features": inputs - 5}
    kinds = ("depthsplat2024",) if is_2024 else ("depthsplat",)
    kinds = kinds if prefix else ("depthsplat", "depthsplat2024")
    names = tuple(name for name in ZOO if ZOO[name].model in kinds and _agrees(name, found))
    release = "DepthSplat" + (
        " of 2024" if is_2024 else " of 2025" if prefix else "'s or ReSplat's depth"
    )
    words = ", ".join(f"{key}={value}" for key, value in found.items() if key != "gaussians")
    return ShapeMatch(names, f"{release} ({words})")


def _recognize_resplat(shapes: Mapping[str, tuple[int, ...]]) -> ShapeMatch:
    """Which ReSplat models have such shapes."""
    outputs, inputs, *_ = shapes[f"{DEPTH}upsampler.concat_projects.2.weight"]
    width, channels, *_ = shapes["gaussian_regressor.0.weight"]
    vit = shapes[f"{DEPTH}{POSITIONS}"][-1]
    updates = "update_proj.weight" in shapes
    found: dict[str, Any] = {
        "vit": VITS.get(vit, f"width {vit}"),
        "lowest": 4 if inputs == outputs else 8,
        "latent": 4 if channels == vit // 4 + COARSE_CHANNELS else 2,
        "gaussians_per_point": shapes["gaussian_head.2.weight"][0] // GAUSSIAN_ROWS,
        "point_width": width,
    }
    names = tuple(
        name
        for name in ZOO
        if ZOO[name].model == "resplat"
        and _agrees(name, found)
        and (_setting(name, "steps") is not None) == updates
    )
    words = ", ".join(f"{key}={value}" for key, value in found.items())
    return ShapeMatch(names, f"ReSplat ({words}, {'with' if updates else 'without'} an update)")


def _find_prefix(state: Mapping[str, Tensor]) -> str:
    """What a file puts before the official names, such as `model.`, by a name that each has."""
    for end in (f"{DEPTH}corr_refine_net.0.weight", f"{DEPTH}{POSITIONS}", POSITIONS):
        for key in state:
            if f".{key}".endswith(f".{end}"):
                return key.removesuffix(end).removesuffix(ENCODER)
    return ""


def _agrees(name: str, found: Mapping[str, Any]) -> bool:
    return all(_setting(name, key) == value for key, value in found.items())


def _setting(name: str, key: str) -> Any:
    """A setting of a published model."""
    default = registry.module("models", ZOO[name].model).Config()
    return ZOO[name].settings.get(key, getattr(default, key))
