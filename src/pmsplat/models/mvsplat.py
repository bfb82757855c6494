"""MVSplat: posed photographs -> 3D Gaussians by plane sweep alone, without a pretrained backbone.

Chen et al., "MVSplat: Efficient 3D Gaussian Splatting from Sparse Multi-View Images", ECCV 2024.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from ..contracts import Conditioned, count_anchors
from ..foundation.imagenet import MEAN, STD
from ..kernels import cpu_rules
from ..kernels.attention import BACKENDS
from ..kernels.convolution import Conv2d
from ..nn.anchors import Anchors, Compress, maps_of
from ..nn.cnn import CNN
from ..nn.cost_volume import Regressor, all_others, cost_volume, full_range
from ..nn.maps import ChannelsFirst, for_convolutions, join, pieces, resize
from ..nn.multiview import MultiViewTransformer, add_position
from ..nn.unet import GroupNorm, UNet
from ..types import Prediction, Views
from ._checks import ANCHORS, check_choice, check_sizes, check_width
from ._deviations import Deviations, expand_published
from ._head import Rules, channels, gaussians_at
from ._padding import predict_padded

FINE, FINE_LEVELS, FINE_GROUPS = 32, 5, 4  # the U-Net at full size: width, levels, first norm

RELEASED = Deviations.released(along_ray=True)


@dataclass
class Config:
    init_from: list[str] = field(default_factory=list)
    """Weights that training starts from: names of `zoo.init.SOURCES`, or files."""
    planes: int = 128  # depth hypotheses
    width: int = 128  # channels of the matched features
    transformer_layers: int = 6
    anchors: int = 0  # views in which the features of all are gathered (`nn.anchors`); 0: off
    sh_degree: int = 4
    near: float | None = 1.0
    """Nearest depth of the scenes it learns from, in its own unit of length, to which other scenes
    are scaled; None: it takes every scene in the scene's own unit."""
    attention: str = "sdpa"  # sdpa, xformers (CUDA), plain
    deviations: Deviations = field(default_factory=Deviations)
    """Faults of the released networks to reproduce; `published=true` sets all that they had."""

    def __post_init__(self) -> None:
        check_sizes(self, {"anchors": ANCHORS})
        check_width(self.width, 1, 4)
        check_choice("attention", self.attention, BACKENDS)


class MVSplat(ChannelsFirst):
    """The encoder: any number of views from two, of any size (`predict_padded`).

    Its convolutions are computed without transforms: its depth is so sensitive to rounding that the
    error of those exceeds the tolerance of the official outputs, 2.5 times on three views of 64x96.

    With `deviations.along_ray`, depth is z in the sweep but a distance along the ray where the
    Gaussians are placed, as its released weights were trained; what is returned is the former.
    """

    multiple = 16
    half_weights = True
    mean: Tensor
    std: Tensor

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        width = cfg.width
        self.rules = Rules(
            cfg.sh_degree,
            "pixel",
            torch.inf,
            cfg.deviations,
            image_color=False,
        )
        for name, value in (("mean", MEAN), ("std", STD)):
            buffer = torch.tensor(value, device="cpu")[:, None, None]
            self.register_buffer(name, buffer, persistent=False)
        self.cnn = CNN((width // 2, width * 3 // 4, width), (1, 2, 1))
        self.compress = Compress(width, cfg.attention) if cfg.anchors else None
        self.transformer = MultiViewTransformer(
            width,
            cfg.transformer_layers,
            mask_by_view=cfg.deviations.mask_by_view,
            backend=cfg.attention,
        )
        self.regressor = Regressor(
            cfg.planes + width, width, 3, cfg.planes, cfg.attention, post_norm=True
        )
        self.up = Conv2d(2 * width, width, 3, padding=1)
        self.narrow = Conv2d(width, FINE, 3, padding=1)
        self.stem = nn.Sequential(
            Conv2d(FINE + 5, FINE, 3, padding=1), GroupNorm(FINE, FINE_GROUPS, "gelu")
        )
        self.unet = UNet((FINE,) * FINE_LEVELS, post_norm=True, backend=cfg.attention)
        outputs = channels(cfg.sh_degree) - 1
        self.condition_width = FINE + 3 + width
        self.out = nn.Sequential(
            Conv2d(self.condition_width, 2 * outputs, 3, padding=1),
            nn.GELU(),
            Conv2d(2 * outputs, outputs, 3, padding=1),
        )
        self.residual = nn.Sequential(
            Conv2d(FINE, 2 * FINE, 3, padding=1),
            nn.GELU(),
            Conv2d(2 * FINE, 2, 3, padding=1),
        )

    @property
    def near(self) -> float | None:
        """The nearest depth of the scenes it learned from, in its own unit; None: in theirs."""
        return self.cfg.near

    @property
    def anchors(self) -> int:
        """In how many views it gathers all, at most; 0: each view speaks for itself."""
        return self.cfg.anchors

    def forward(self, views: Views, anchors: int | None = None) -> Prediction:
        """What it predicts; `anchors`: in how many views it gathers all, None: as its settings say.

        Raises UserError for fewer than two views, and for anchors of a model without them.
        """
        predict = partial(self._predict, anchors=count_anchors(anchors, self.anchors))
        return predict_padded(predict, views, self.multiple)

    def predict_with_condition(self, views: Views, anchors: int | None = None) -> Conditioned:
        """The prediction, and what its last layers read; for sizes that need no padding."""
        with cpu_rules.without_transforms():
            matched = self._match(views, count_anchors(anchors, self.anchors))
            maps = list(matched.maps())
            return Conditioned(self._place(matched, maps), torch.cat(maps))

    def _predict(self, views: Views, anchors: int) -> Prediction:
        with cpu_rules.without_transforms():
            matched = self._match(views, anchors)
            return self._place(matched, matched.maps())

    def _match(self, views: Views, anchors: int) -> "Matched":
        """Depth, and the features that Gaussians are made from, of the views or of anchors."""
        batch, deviations = len(views.images), self.cfg.deviations
        # Features of every view, informed by those that it gathers, then by all others.
        normalized = (views.images.flatten(0, 1) - self.mean) / self.std
        typed, index = normalized.to(self.cnn.stem.weight.dtype), None
        if anchors:
            assert self.compress is not None
            chosen = Anchors.of(views.cameras.c2w, anchors)
            index, views = chosen.index, chosen.views(views)
            seen = maps_of(self.cnn, typed, chosen).coarse(batch)
            cnn = for_convolutions(self.compress(*seen, chosen.owner).flatten(0, 1))
        else:
            cnn = self.cnn(typed)[-1]
        cameras, flat = views.cameras, views.images.flatten(0, 1)
        maps, others = cnn.unflatten(0, (batch, -1)), all_others(cameras.c2w)
        count = maps.shape[1]
        matched = self.transformer(add_position(maps), others)

        # Match them over the whole range of depth.
        whole = full_range(
            cameras.near.flatten().float(), cameras.far.flatten().float(), self.cfg.planes
        )
        volume = cost_volume(
            matched,
            cameras,
            others,
            whole,
            reference_K=deviations.reference_K,
            pixel_corners=deviations.pixel_corners,
        )
        matched = for_convolutions(matched.flatten(0, 1))
        match = self.regressor([volume, matched], whole, count)

        # At full size, correct the depth.
        coarse = resize(match.value[:, None], views.size)
        confidence = match.confidence_at(views.size)
        features = gelu(resize(self.up(join([matched, cnn])), views.size))
        x = self.stem(join([flat, self.narrow(features), coarse, confidence]))
        x = self.unet(x, count)
        correction = self.residual(x).float()
        inv_depth = whole.hold(coarse[:, 0] + correction[:, 0], hard_clamp=deviations.hard_clamp)
        depth = (1 / inv_depth).unflatten(0, (batch, count))
        sure = confidence[:, 0].unflatten(0, (batch, count))
        known = Prediction((depth,), (), sure, index)
        return Matched(views, known, correction[:, 1:], x, features)

    def _place(self, matched: "Matched", maps: Iterable[Tensor]) -> Prediction:
        """The Gaussians that its last layers make of `maps`."""
        raw = torch.cat(list(map(self.out, maps)))
        numbers = torch.cat([matched.opacity, raw.float()], dim=1)
        depth, views = matched.depth, matched.views
        numbers = numbers.unflatten(0, views.images.shape[:2])
        levels = gaussians_at(numbers, depth.depths, views.images, views.cameras, self.rules)
        return replace(depth, gaussians=levels)


@dataclass(frozen=True)
class Matched:
    """What is known of every pixel once the views are matched."""

    views: Views
    depth: Prediction  # without Gaussians
    opacity: Float[Tensor, "n 1 height width"]  # before its sigmoid
    x: Float[Tensor, "n _ height width"]
    features: Float[Tensor, "n _ height width"]

    def maps(self) -> Iterator[Float[Tensor, "n channel height width"]]:
        """What the last layers read, of some images after others."""
        images = self.views.images.flatten(0, 1)
        for p in pieces(images):
            yield join([self.x[p], images[p], self.features[p]])


def upgrade(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of older checkpoints, and `published`, as this version has them."""
    return expand_published(settings, RELEASED)


build = MVSplat
