"""DepthSplat: posed photographs -> depth and 3D Gaussians, in one forward pass.

Xu et al., "DepthSplat: Connecting Gaussian Splatting and Depth", CVPR 2025 (the architecture of the
2025 releases).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..contracts import Conditioned, count_anchors
from ..kernels.convolution import Conv2d
from ..nn.anchors import Anchors
from ..nn.maps import join, pieces, set_memory_format, take
from ..registry import whole
from ..types import Prediction, Views
from ._checks import ABOVE_ZERO, check_choice, check_sizes, range_rules
from ._depth import DepthEncoder, DepthEstimate, DepthNetwork, Features, Layout, choose_others
from ._deviations import Deviations, expand_published
from ._head import (
    PixelHead,
    Rules,
    channels,
    gaussians_at,
    out_convolutions,
)
from ._padding import predict_padded

SCALES = {"world": "softplus", "pixel": "pixel"}  # how `scale_unit` is computed, see `_head.Rules`

RELEASED = Deviations.released(along_ray=False)


@dataclass
class Config:
    vit: str = "vits"  # monocular backbone: vits, vitb, vitl (DINOv2), or none
    init_from: list[str] = field(default_factory=list)
    """Weights that training starts from: dinov2, names of `zoo.init.SOURCES`, or files."""
    scales: int = 1  # 2 refines the depth at twice the resolution
    lowest: int = 4  # the coarsest features have 1/4 or 1/8 of the image's resolution
    planes: int = 128  # depth hypotheses of the coarsest scale
    depth_space: str = "inverse"  # what they are evenly spaced in: inverse (depth) or log (depth)
    width: int = 128  # channels of the matched features
    transformer_layers: int = 6
    windows: str = "2x2"  # of its attention; by_width: more of them in wide maps (see `_depth`)
    vit_limit: int = 0  # the ViT sees images with a longer side of at most this; 0: no limit
    neighbors: int = 2  # views that each view is matched with, where there are more than three
    anchors: int = 0  # views in which the features of all are gathered (`nn.anchors`); 0: off
    gaussians: bool = True  # False: depth only
    head_width: int = 64
    sh_degree: int = 2
    scale_unit: str = "world"  # Gaussian sizes in scene units, or in "pixel" footprints
    scale_max: float = 3.0  # in scene units
    near: float | None = 0.5
    """Nearest depth of the scenes it learns from, in its own unit of length, to which other scenes
    are scaled; None: it takes every scene in the scene's own unit."""
    far: float | None = None
    """Farthest depth of these scenes, searched to in all; None: it searches the range of each."""
    typical_depth: float | None = None
    """Where `far` is set: usual depth of these scenes, to which others are scaled, not by near."""
    attention: str = "sdpa"  # sdpa, xformers (CUDA), plain
    deviations: Deviations = field(default_factory=Deviations)
    """Faults of the released networks to reproduce; `published=true` sets all that they had."""

    def __post_init__(self) -> None:
        Layout.of(self)
        sizes = {"neighbors": whole(1), "head_width": whole(1), "scale_max": ABOVE_ZERO}
        check_sizes(self, sizes | range_rules(self.near))
        check_choice("scale_unit", self.scale_unit, tuple(SCALES))


class DepthSplat(DepthEncoder):
    """The encoder.

    It takes two or more views of any size (sides that are not multiples of 4 · `lowest` are padded,
    see `predict_padded`). In train mode the prediction holds the depth and the Gaussians of every
    scale, coarse to fine; in eval mode only the last. A depth-only model predicts no Gaussians: its
    tuple is empty. Under autocast the geometry stays in float32.

    The backbone's parameters, which want a smaller learning rate, are `backbone_parameters()`;
    their names start with `depth.vit.`.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg
        self.layout = Layout.of(cfg)
        self.rules = self._rules()
        self.depth = DepthNetwork(self.layout)
        self.head = self._head() if cfg.gaussians else None
        set_memory_format(self)

    def _rules(self) -> Rules:
        cfg: Config = self.cfg
        return Rules(cfg.sh_degree, SCALES[cfg.scale_unit], cfg.scale_max, cfg.deviations)

    def _head(self) -> PixelHead:
        cfg: Config = self.cfg
        return Head(self.layout, cfg.head_width, cfg.sh_degree)

    @property
    def multiple(self) -> int:
        """Images whose height and width are multiples of this are taken as they are."""
        return self.layout.multiple

    def multiple_at(self, width: int) -> int:
        """`multiple` for images about `width` pixels wide."""
        return self.layout.multiple_at(width)

    @property
    def draws(self) -> bool:
        """Whether it predicts Gaussians, not depth alone."""
        return self.cfg.gaussians

    def forward(self, views: Views, anchors: int | None = None) -> Prediction:
        """What it predicts; `anchors`: in how many views it gathers all, None: as its settings say.

        Raises UserError for fewer than two views, and for anchors of a model without them.
        """
        predict = partial(self._predict, anchors=count_anchors(anchors, self.anchors))
        return predict_padded(predict, views, self.multiple_at(views.size[1]))

    def others(self, c2w: Float[Tensor, "batch view 4 4"]) -> Int[Tensor, "batch view other"]:
        """Which views each view is matched with."""
        return choose_others(c2w, self.cfg.neighbors)

    def coarse(self, estimate: DepthEstimate) -> tuple[Tensor, ...]:
        """The depths before the last that training looks at too."""
        return estimate.coarse(self.layout.scales - 1)

    @property
    def condition_width(self) -> int:
        """Channels of the map that an update can start from (`contracts.ConditionedEncoder`)."""
        return 0 if self.head is None else self.head.inputs

    def predict_with_condition(self, views: Views, anchors: int | None = None) -> Conditioned:
        """The prediction, and what its last layers read; for sizes that need no padding."""
        assert self.head is not None  # as `draws` says
        seen = self._match(views, count_anchors(anchors, self.anchors))
        images = seen.views.images
        maps = list(self.head.maps(images, seen.depth.depths[-1], seen.estimate))
        raw = self.head.numbers(maps).unflatten(0, images.shape[:2])
        return Conditioned(self._place(raw, seen), torch.cat(maps))

    def _predict(self, views: Views, anchors: int) -> Prediction:
        seen = self._match(views, anchors)
        if self.head is None:
            return seen.depth
        raw = self.head(seen.views.images, seen.depth.depths[-1], seen.estimate)
        return self._place(raw, seen)

    def _match(self, views: Views, anchors: int) -> "Matched":
        """What the depth network says of the views, or of so many anchors among them."""
        chosen = Anchors.of(views.cameras.c2w, anchors) if anchors else None
        seen = views if chosen is None else chosen.views(views)
        others = self.others(seen.cameras.c2w)
        estimate = self.depth(views.images, seen.cameras, others, chosen)
        coarse = self.coarse(estimate) if self.training else ()
        confidence = estimate.confidence(views.size)[:, 0].unflatten(0, estimate.depth.shape[:2])
        index = None if chosen is None else chosen.index
        depth = Prediction((*coarse, estimate.depth), (), confidence, index)
        return Matched(seen, estimate, depth)

    def _place(
        self,
        raw: Float[Tensor, "batch view channel height width"],
        seen: "Matched",
    ) -> Prediction:
        """The prediction with the Gaussians that its numbers describe."""
        images, cameras = seen.views.images, seen.views.cameras
        levels = gaussians_at(raw, seen.depth.depths, images, cameras, self.rules)
        return replace(seen.depth, gaussians=levels)


@dataclass(frozen=True)
class Matched:
    """What the depth network says, and the views that it speaks of."""

    views: Views
    estimate: DepthEstimate
    depth: Prediction  # of every level, without Gaussians


class Head(PixelHead):
    """Image, depth, confidence and the depth network's features -> the channels of every pixel."""

    def __init__(self, layout: Layout, width: int, sh_degree: int) -> None:
        super().__init__()
        _, _, features = layout.dpt_widths
        outputs = channels(sh_degree)
        self.features = layout.dpt(features, with_depth=False)
        self.regressor = nn.Sequential(
            Conv2d(3 + 1 + 1 + features, width, 3, padding=1),
            nn.GELU(),
            Conv2d(width, width, 3, padding=1),
        )
        self.inputs = width + 3 + features + 1
        self.out = out_convolutions(self.inputs, outputs, sh_degree)

    def maps(
        self,
        images: Float[Tensor, "batch view 3 height width"],
        depth: Float[Tensor, "batch view height width"],
        estimate: DepthEstimate,
    ) -> Iterator[Tensor]:
        size = (images.shape[-2], images.shape[-1])
        flat, metric = images.flatten(0, 1), depth.flatten(0, 1)[:, None]
        confidence = estimate.confidence(size)
        for part in pieces(flat):
            maps = estimate.features.of(part)
            image, own, sure = (take(x, part) for x in (flat, metric, confidence))
            yield self._maps(image, own, sure, maps)

    def _maps(
        self, images: Tensor, depth: Tensor, confidence: Tensor, maps: Features
    ) -> Float[Tensor, "n channel height width"]:
        height = images.shape[-2]
        features = self.features(maps.vit, maps.before(height), maps.after(height))
        x = self.regressor(join([images, depth, confidence, features]))
        return join([x, images, features, confidence])


def upgrade(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of older checkpoints, and `published`, as this version has them."""
    return expand_published(settings, RELEASED)


build = DepthSplat
