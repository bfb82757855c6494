"""A frozen encoder, and ReSplat's recurrent update of the Gaussians that it predicts.

Xu et al., "ReSplat: Learning Recurrent Gaussian Splatting", arXiv 2510.08575, train their update on
an initial model of their own. Here it starts from any encoder that gives the features which it made
its Gaussians from (`contracts.ConditionedEncoder`), with as many Gaussians as that has.
"""

from dataclasses import dataclass, field, replace
from math import lcm
from typing import Any, cast

import torch
from torch import nn

from .. import registry
from ..contracts import (
    ConditionedEncoder,
    conditioned_encoder,
    encoder_traits,
    multiple_at,
    pixels_per_side,
    predict_with_condition,
)
from ..kernels.attention import BACKENDS
from ..nn.maps import set_memory_format
from ..nn.points import BLOCK
from ..registry import check_settings, whole
from ..types import Prediction, Views
from ._checks import check_choice
from ._stepped import Stepped
from ._update import Splats, Update


@dataclass
class Config:
    base: dict[str, Any] = field(
        default_factory=lambda: {"name": "depthsplat"}, metadata=registry.nested("models")
    )
    """The encoder that is updated: its name beside its settings."""
    base_weights: str | None = None
    """What the base is loaded from where training starts, a published model or a checkpoint: its
    settings are then those of the base."""
    init_from: list[str] = field(default_factory=list)
    """Weights that the update starts from: resnet18, or names and files of models that have one."""
    steps: int = 4  # updates, where the caller does not say
    state_width: int = 512  # channels that the update remembers of a Gaussian
    attention: str = "sdpa"  # of the update: sdpa, xformers (CUDA), plain

    def __post_init__(self) -> None:
        registry.make_config("models", *registry.split_name(self.base))
        check_settings(self, {"steps": whole(0), "state_width": whole(1)}, "model.")
        check_choice("attention", self.attention, BACKENDS)


class Updated(Stepped):
    """The encoder: `base`, which stays as it is, in eval mode, and `update`, which learns.

    Depth is that of the base, and so are the first Gaussians, where all levels are asked for. Those
    after a step have harmonics of degree 3. What others need to know of scenes (`near` and the
    like) is that of the base.
    """

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.base: nn.Module = registry.build_nested("models", cfg.base).requires_grad_(False)
        self.traits = encoder_traits(self.base)
        base = conditioned_encoder(self.base, f"model.base={cfg.base['name']}")
        self.unit = pixels_per_side(base)
        self.update = Update(base.condition_width, self.unit, cfg.state_width, cfg.attention)
        set_memory_format(self)
        self.train()

    @property
    def multiple(self) -> int:
        return lcm(self.traits.multiple, BLOCK * self.unit)

    def multiple_at(self, width: int) -> int:
        return lcm(multiple_at(self.base, width), BLOCK * self.unit)

    @property
    def near(self) -> float | None:
        """The nearest depth of the scenes that its base learned from."""
        return self.traits.near

    @property
    def far(self) -> float | None:
        """The farthest depth of these scenes; None: of each scene."""
        return self.traits.far

    @property
    def typical_depth(self) -> float | None:
        """The usual depth of these scenes."""
        return self.traits.typical_depth

    @property
    def anchors(self) -> int:
        """In how many views its base gathers all, at most; 0: each view speaks for itself."""
        return self.traits.anchors

    @property
    def half_weights(self) -> bool:
        """Whether its base computes in the dtype of its weights."""
        return self.traits.half_weights

    @property
    def steps(self) -> int:
        return self.cfg.steps

    def train(self, mode: bool = True) -> "Updated":
        super().train(mode)
        self.base.eval()
        return self

    def _predict(self, views: Views, steps: int, all_levels: bool, anchors: int) -> Prediction:
        base = cast(ConditionedEncoder, self.base)  # as __init__ checked
        with torch.no_grad():
            found = predict_with_condition(base, views, anchors)
        (first,) = found.prediction.gaussians
        if not steps:
            return found.prediction
        views = found.prediction.select(views)
        splats = Splats.of(first, views.cameras.c2w)
        later = self._updated(splats, found.condition, views, first.rules, steps, all_levels)
        return replace(found.prediction, gaussians=(first, *later) if all_levels else later)


build = Updated
