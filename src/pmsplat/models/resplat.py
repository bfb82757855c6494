"""ReSplat: posed photographs -> few 3D Gaussians, then corrections from how their pictures err.

Xu, Barath, Geiger, Pollefeys, "ReSplat: Learning Recurrent Gaussian Splatting", arXiv 2510.08575.
The depth network is that of `depthsplat`, with depths evenly spaced in their logarithm.
"""

from dataclasses import dataclass, field, replace
from math import isqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..contracts import Conditioned, count_anchors
from ..nn.anchors import Anchors
from ..nn.maps import resize, set_memory_format
from ..nn.points import to_maps
from ..registry import check_settings, whole
from ..types import RESPLAT, Cameras, Gaussians, Prediction, Views
from . import _initial
from ._checks import ABOVE_ZERO, check_choice, check_near, range_rules
from ._depth import DepthEncoder, DepthEstimate, DepthNetwork, Layout, choose_others
from ._deviations import Deviations, expand_published
from ._stepped import Stepped
from ._update import Splats, Update

MATCHED = 2  # views that each view is matched with, where there are more than three
VIT_LIMIT = 560  # pixels along the longer side of what the ViT sees

RELEASED = replace(Deviations.released(along_ray=False), sh_basis=False, sh_signs=False)


@dataclass
class Config:
    vit: str = "vits"  # monocular backbone: vits, vitb, vitl (DINOv2), or none
    init_from: list[str] = field(default_factory=list)
    """Weights that training starts from: dinov2, resnet18, names of `zoo.init.SOURCES`, files."""
    lowest: int = 8  # the coarsest features have 1/4 or 1/8 of the image's resolution
    planes: int = 128  # depth hypotheses
    width: int = 128  # channels of the matched features
    transformer_layers: int = 6
    anchors: int = 0  # views in which the features of all are gathered (`nn.anchors`); 0: off
    half_depth: bool = False  # depth and features are those of images of half the size
    latent: int = 4  # a point stands for a block of 2x2 or 4x4 pixels
    gaussians_per_point: int = 1  # 1, 4 or 16: the pixels of a grid that is finer so many times
    point_width: int = 256  # channels of a point
    scale_max: float = 1.0  # of Gaussians before the update, in scene units
    steps: int | None = 4  # updates, where the caller does not say; None: a model without any
    state_width: int = 512  # channels that the update remembers of a Gaussian
    near: float | None = 0.01
    """Nearest depth of the scenes it learns from, in its own unit of length; None: it takes every
    scene in the scene's own unit."""
    far: float | None = 200.0
    """Farthest depth of these scenes; None: it searches the range of each scene."""
    typical_depth: float | None = 5.0  # usual depth of these scenes; None: they are known by near
    attention: str = "sdpa"  # sdpa, xformers (CUDA), plain
    deviations: Deviations = field(default_factory=Deviations)
    """Faults of the released networks to reproduce; `published=true` sets all that they had."""

    def __post_init__(self) -> None:
        layout_of(self)
        check_near(self.near)
        sizes = {
            "planes": whole(2),
            "transformer_layers": whole(0),
            "point_width": whole(4, multiple=4),
            "state_width": whole(1),
            "scale_max": ABOVE_ZERO,
            "steps": whole(0).or_none,
        }
        check_settings(self, sizes | range_rules(self.near), "model.")
        check_choice("latent", self.latent, (2, 4))
        finer = [1, 4, 16][: self.latent.bit_length()]
        check_choice("gaussians_per_point", self.gaussians_per_point, finer)


def layout_of(cfg: Config) -> Layout:
    """The depth network that such a Config describes; UserError for an invalid value."""
    return Layout.of(
        cfg, scales=1, depth_space="log", windows="by_width", vit_limit=VIT_LIMIT, taps=True
    )


class ReSplat(DepthEncoder, Stepped):
    """The encoder: an initial model, and an update that is applied as often as one likes.

    Each block of `unit` x `unit` pixels has one Gaussian.
    """

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.layout = layout_of(cfg)
        self.depth = DepthNetwork(self.layout)
        self.points = _initial.Points(self.layout, cfg.latent, cfg.point_width, cfg.half_depth)
        self.head = _initial.Head(cfg.point_width, cfg.gaussians_per_point)
        self.update = None
        if cfg.steps is not None:
            self.update = Update(cfg.point_width, self.unit, cfg.state_width, cfg.attention)
        set_memory_format(self)

    @property
    def multiple(self) -> int:
        """Images whose height and width are multiples of this are taken as they are."""
        return self.layout.multiple * self._halving

    @property
    def steps(self) -> int | None:
        """The number of updates where the caller does not say; None: it has no update."""
        return self.cfg.steps

    @property
    def unit(self) -> int:
        """Pixels along the side of the block that has one Gaussian."""
        return self.cfg.latent // isqrt(self.cfg.gaussians_per_point)

    @property
    def condition_width(self) -> int:
        """Channels of the map that an update starts from (`contracts.ConditionedEncoder`)."""
        return self.cfg.point_width

    def predict_with_condition(self, views: Views, anchors: int | None = None) -> Conditioned:
        """The initial model's prediction and features of points, for sizes without padding."""
        initial = self._initial(views, count_anchors(anchors, self.anchors))
        first = (self._in_world(initial),)
        return Conditioned(replace(initial.prediction, gaussians=first), initial.condition)

    @property
    def _halving(self) -> int:
        """How many times smaller the images are that the depth network sees."""
        return 2 if self.cfg.half_depth else 1

    def multiple_at(self, width: int) -> int:
        seen = -(-width // self._halving)
        return self.layout.multiple_at(seen) * self._halving

    def _predict(self, views: Views, steps: int, all_levels: bool, anchors: int) -> Prediction:
        # Where no parameter of the initial model learns, it keeps nothing for gradients.
        parts = (self.depth, self.points, self.head)
        learns = any(weight.requires_grad for part in parts for weight in part.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            initial = self._initial(views, anchors)
        levels: tuple[Gaussians, ...] = ()
        if all_levels or not steps:
            levels = (self._in_world(initial),)
        if steps:
            start = initial.splats, initial.condition, initial.views
            levels += self._updated(*start, RESPLAT, steps, all_levels)
        return replace(initial.prediction, gaussians=levels)

    def _initial(self, views: Views, anchors: int) -> "Initial":
        """The initial model: depth, features of points, and their Gaussians, of the views or of so
        many anchors among them."""
        chosen = Anchors.of(views.cameras.c2w, anchors) if anchors else None
        everything = views.images
        if chosen is not None:
            views = chosen.views(views)
        images, cameras, count = views.images, views.cameras, views.images.shape[1]
        estimate = self._estimate(everything, cameras, chosen)
        depth = estimate.depth.flatten(0, 1)[:, None]
        rows, columns = self.points.grid(images)
        z = resize(depth, (rows, columns))
        described = self.points.describe(images, z, estimate)
        confidence = estimate.confidence(views.size)[:, 0].unflatten(0, images.shape[:2])
        del estimate
        table = self._neighbors(_initial.places(z, cameras), cameras, _initial.NEIGHBORS)
        x = self.points(described, table, count, rows)
        splats = _initial.splats_at(self.head(x, count, rows), depth, views, self.cfg.scale_max)
        whole = resize(depth, views.size)[:, 0].unflatten(0, images.shape[:2])
        index = None if chosen is None else chosen.index
        depth = Prediction((whole,), (), confidence, index)
        return Initial(views, depth, to_maps(x, count, rows), splats)

    def _estimate(
        self,
        images: Float[Tensor, "batch view 3 height width"],
        cameras: Cameras,
        chosen: Anchors | None,
    ) -> DepthEstimate:
        """What the depth network says, of images of half the size where the settings want that."""
        if self.cfg.half_depth:
            half = images.shape[-2] // self._halving, images.shape[-1] // self._halving
            images = resize(images.flatten(0, 1), half).unflatten(0, images.shape[:2])
        return self.depth(images, cameras, choose_others(cameras.c2w, MATCHED), chosen)

    def _in_world(self, initial: "Initial") -> Gaussians:
        return initial.splats.in_world(initial.views.cameras.c2w, RESPLAT)


@dataclass(frozen=True)
class Initial:
    """What the initial model says, and the views that it speaks of."""

    views: Views
    prediction: Prediction  # depth alone
    condition: Float[Tensor, "n channel rows columns"]  # features of points, view after view
    splats: Splats


def upgrade(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with `published` as this version has them."""
    return expand_published(settings, RELEASED)


build = ReSplat
