"""The parts of ffgs that the plug-in touches, where ffgs is not installed: same names, same calls.

Written from the contract in its documentation ("Adding a model", version 0.1.0.dev1).
"""

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch


@dataclass
class Views:
    images: torch.Tensor
    intrinsics: Any = None
    c2w: Any = None
    normalized_intrinsics: bool = False

    def require(self, *names: str, by: str) -> None:
        for name in names:
            if getattr(self, name) is None:
                raise ValueError(f"{by} needs {name}")


@dataclass
class ImageFitConfig:
    image_shape: list[int] = field(default_factory=lambda: [256, 256])


class Processor:
    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: str) -> "Processor":
        return cls(cls.config_cls(**data))  # type: ignore

    def fit_views(self, views: Views) -> Views:
        """Of images that have the size already."""
        assert list(views.images.shape[-2:]) == self.config.image_shape
        return views


@dataclass
class ModelFrame:
    anchor_c2w: torch.Tensor
    scale: float


@dataclass
class Prepared:
    model_input: Any
    frame: Any


@dataclass
class Gaussians:
    means: torch.Tensor
    scales: torch.Tensor
    quats: torch.Tensor
    opacities: torch.Tensor
    colors: torch.Tensor
    sh_degree: int | None


@dataclass(frozen=True)
class ModelSpec:
    model_type: str
    model_cls: type
    processor_cls: type
    convert_state_dict: Any = None
    display_name: str | None = None


def module() -> ModuleType:
    """A module `ffgs` of these."""
    found = ModuleType("ffgs")
    parts = (Views, ImageFitConfig, Processor, ModelFrame, Prepared, Gaussians, ModelSpec)
    for part in parts:
        setattr(found, part.__name__, part)
    return found
