"""The depth network of DepthSplat (2024 and 2025 alike) and ReSplat: images and cameras -> depth.

Xu et al., "DepthSplat: Connecting Gaussian Splatting and Depth", CVPR 2025; Xu et al., "ReSplat:
Learning Recurrent Gaussian Splatting", ECCV 2026.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UserError
from ..foundation.imagenet import MEAN, STD
from ..kernels.attention import BACKENDS
from ..kernels.convolution import Conv2d
from ..nn import cost_volume
from ..nn.anchors import Anchors, Compress, maps_of
from ..nn.cnn import CNN
from ..nn.dpt import DPT
from ..nn.maps import BorderConv, pieces, resize, take
from ..nn.multiview import MultiViewTransformer, add_position, windows_per_axis
from ..nn.unet import zeroed
from ..registry import check_settings, whole
from ..types import Cameras
from ._checks import ANCHORS, check_choice, check_width
from ._deviations import Deviations

FINE_PLANES = 32  # hypotheses of the second scale, half a coarse step apart
VIT_WIDTHS = {"none": 0, "vits": 384, "vitb": 768, "vitl": 1024}
# channels of the dense heads by backbone: the four levels, then depth features, Gaussian features
DPT_WIDTHS = {
    "vits": ((48, 96, 192, 384), 32, 64),
    "vitb": ((96, 192, 384, 768), 48, 96),
    "vitl": ((128, 256, 512, 1024), 64, 128),
}
FEW_VIEWS = 3  # up to this number, each view is matched with all others
SPACES = {"inverse": cost_volume.INVERSE, "log": cost_volume.LOG}
# columns of the coarsest map beyond each of which it has twice as many windows per axis
WINDOWS = {"2x2": (), "by_width": (96, 192)}

CHOICES = {
    "vit": tuple(VIT_WIDTHS),
    "scales": (1, 2),
    "lowest": (4, 8),
    "attention": BACKENDS,
    "depth_space": tuple(SPACES),
    "windows": tuple(WINDOWS),
}


def choose_others(
    c2w: Float[Tensor, "batch view 4 4"], neighbors: int
) -> Int[Tensor, "batch view other"]:
    """The views that each view is matched with: all others of few views, else the nearest."""
    few = c2w.shape[1] <= FEW_VIEWS
    return cost_volume.all_others(c2w) if few else cost_volume.nearest_others(c2w, neighbors)


@dataclass(frozen=True)
class Layout:
    """The sizes and rules of the depth network, from the settings of a model."""

    vit: str  # none, vits, vitb, vitl
    scales: int  # 1 or 2
    lowest: int  # the coarsest maps have 1/lowest of the resolution: 4 or 8
    planes: int
    width: int
    transformer_layers: int
    attention: str
    deviations: Deviations
    depth_space: str = "inverse"  # in which depth is searched and corrected: inverse, log
    windows: str = "2x2"  # of the transformer; by_width: 4x4 above 96 columns, 8x8 above 192
    vit_limit: int = 0  # the ViT sees images with a longer side of at most this; 0: no limit
    anchors: int = 0  # views in which all are gathered; 0: each view speaks for itself
    taps: bool = False  # keep the ViT's maps as they are: `Features.taps`

    @classmethod
    def of(cls, cfg: Any, **fixed: Any) -> "Layout":
        """The layout that a model's Config describes; UserError for an invalid value.

        `fixed` are fields that the model does not leave to its settings.
        """
        settings = {f.name: getattr(cfg, f.name) for f in fields(cls) if hasattr(cfg, f.name)}
        layout = cls(**settings | fixed)
        for name, valid in CHOICES.items():
            check_choice(name, getattr(layout, name), valid)
        check_settings(layout, {"vit_limit": whole(0), "anchors": ANCHORS}, "model.")
        check_width(layout.width, layout.scales, 16)
        return layout

    @property
    def vit_width(self) -> int:
        return VIT_WIDTHS[self.vit]

    @property
    def cnn_widths(self) -> tuple[int, int, int]:
        return self.width // 2, self.width * 3 // 4, self.width

    @property
    def cnn_strides(self) -> tuple[int, int, int]:
        return (1, 1, 2) if self.lowest == 4 else (1, 2, 2)

    @property
    def dpt_widths(self) -> tuple[tuple[int, int, int, int], int, int]:
        """Channels of the four levels; of the depth head; of the Gaussian features."""
        if self.vit != "none":
            return DPT_WIDTHS[self.vit]
        w = self.width
        return (w, w, w, w), w // 2, w

    @property
    def multiple(self) -> int:
        """Height and width of the images must be multiples of this."""
        return 4 * self.lowest

    def multiple_at(self, width: int) -> int:
        """The same for images about `width` pixels wide: wide ones are cut into more windows."""
        columns = -(-width // self.multiple) * self.multiple // self.lowest
        windows = windows_per_axis(columns, WINDOWS[self.windows])
        return max(self.multiple, self.lowest * windows)

    def known_widths(self, scale: int) -> int:
        """Channels of `Features.at(scale)` together."""
        return self.cnn_widths[2 - scale] + (self.width >> scale) + (self.vit_width >> scale)

    def dpt(self, features: int, with_depth: bool) -> DPT:
        """A dense head over the maps that `Features.before` and `.after` list."""
        before, after = [0, 0, 0, 0], [0, 0, 0, 0]
        strides = [2, 4, 8]
        stride = 2
        for width, step in zip(self.cnn_widths, self.cnn_strides, strict=True):
            stride *= step
            before[strides.index(stride)] += width
        for scale in range(self.scales):
            level = strides.index(self.lowest >> scale)
            after[level] += self.width >> scale
            if with_depth and scale == self.scales - 1:
                after[level] += 1
        widths, _, _ = self.dpt_widths
        return DPT(self.vit_width, widths, before, after, features)


@dataclass(frozen=True)
class Features:
    """The maps of all views that the heads read, (batch view) first."""

    cnn: tuple[Tensor, ...]  # high to low resolution
    matched: tuple[Tensor, ...]  # low to high resolution, informed by the other views
    vit: tuple[Tensor, ...]  # four levels at 1/8, empty without a backbone
    monocular: tuple[Tensor, ...]  # of the ViT, as large as `matched`; empty without a backbone
    taps: tuple[Tensor, ...] = ()  # `vit` before it was resized; empty unless `Layout.taps`

    def at(self, scale: int) -> list[Tensor]:
        """All maps of one scale, which have one resolution."""
        return [
            self.cnn[len(self.cnn) - 1 - scale],
            self.matched[scale],
            *self.monocular[scale : scale + 1],
        ]

    def of(self, images: slice) -> "Features":
        """The maps of some images."""
        parts = ((take(x, images) for x in getattr(self, f.name)) for f in fields(self))
        return Features(*map(tuple, parts))

    def before(self, height: int) -> list[list[Tensor]]:
        """The maps that a dense head joins before the ViT's, at 1/2, 1/4, 1/8, 1/16 of `height`."""
        return [[x for x in self.cnn if x.shape[-2] * s == height] for s in (2, 4, 8, 16)]

    def after(self, height: int, extra: Tensor | None = None) -> list[list[Tensor]]:
        """The maps that it joins after the ViT's: matched features, then an `extra` map."""
        maps = [*self.matched, *([] if extra is None else [extra])]
        return [[x for x in maps if x.shape[-2] * s == height] for s in (2, 4, 8, 16)]


@dataclass(frozen=True)
class DepthEstimate:
    """Depth within [near, far] in scene units, and what it was made from."""

    depth: Float[Tensor, "batch view height width"]  # z, refined, at full size
    matches: tuple[cost_volume.Match, ...]  # the estimate of each scale, coarse to fine
    space: cost_volume.DepthSpace  # of the values of `matches`
    features: Features

    def confidence(self, size: tuple[int, int]) -> Float[Tensor, "n 1 height width"]:
        """The probability of the finest scale's best hypothesis, at the pixels of images."""
        return self.matches[-1].confidence_at(size)

    def coarse(self, count: int) -> tuple[Float[Tensor, "batch view height width"], ...]:
        """The depth of the first `count` scales at full size, before it is refined."""
        size = (self.depth.shape[-2], self.depth.shape[-1])
        values = [m.value.unflatten(0, self.depth.shape[:2]) for m in self.matches[:count]]
        return tuple(self.space.to_depth(resize(x, size)) for x in values)


class Pyramid(nn.Module):
    """A map -> the map at twice the resolution with half the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width // 2, 2, 2)
        self.smooth = Conv2d(width // 2, width // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.smooth(nn.functional.gelu(self.up(x)))


class DepthNetwork(nn.Module):
    """CNN features matched across views, and monocular ViT features, -> depth."""

    mean: Tensor
    std: Tensor

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        width, vit_width, attention = layout.width, layout.vit_width, layout.attention
        self.register_buffer(
            "mean", torch.tensor(MEAN, device="cpu")[:, None, None], persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(STD, device="cpu")[:, None, None], persistent=False
        )
        self.cnn = CNN(layout.cnn_widths, layout.cnn_strides)
        self.compress = Compress(width, attention) if layout.anchors else None
        self.transformer = MultiViewTransformer(
            width,
            layout.transformer_layers,
            wide=WINDOWS[layout.windows],
            mask_by_view=layout.deviations.mask_by_view,
            backend=attention,
        )
        self.vit = None
        if vit_width:
            from ..foundation.dinov2 import DinoV2  # late: timm takes a second to import

            self.vit = DinoV2(layout.vit, attention, layout.vit_limit)
        fine = layout.scales > 1
        self.matched_pyramid = Pyramid(width) if fine else None
        self.vit_pyramid = Pyramid(vit_width) if fine and vit_width else None
        self.regressors = nn.ModuleList()
        for scale in range(layout.scales):
            planes = layout.planes if scale == 0 else FINE_PLANES
            inputs = planes + layout.known_widths(scale)
            self.regressors.append(
                cost_volume.Regressor(inputs, width >> scale, 3 + scale, planes, attention)
            )
        _, features, _ = layout.dpt_widths
        self.refine = layout.dpt(features, with_depth=True)
        self.residual = nn.Sequential(
            BorderConv(features, features // 2),
            nn.GELU(),
            BorderConv(features // 2, 16),
            nn.GELU(),
            zeroed(Conv2d(16, 1, 1)),
        )

    def forward(
        self,
        images: Float[Tensor, "batch given 3 height width"],
        cameras: Cameras,
        others: Int[Tensor, "batch view other"],
        anchors: Anchors | None = None,
    ) -> DepthEstimate:
        """`others[b, v]` lists the views that view v is matched with.

        With `anchors`, images are those of all views, cameras and others those of the anchors, of
        which the estimate speaks.
        """
        (batch, views), (height, width) = others.shape[:2], images.shape[-2:]
        deviations, space = self.layout.deviations, SPACES[self.layout.depth_space]
        step = self.layout.multiple_at(width)
        if height % step or width % step:
            raise UserError(
                f"images of {height}x{width} pixels",
                f"multiples of {step} at this width",
                f"crop or resize them to {height // step * step}x{width // step * step}",
            )
        # Features of every view, each informed by the views it is matched with.
        normalized = ((images - self.mean) / self.std).flatten(0, 1)
        features = self._features(normalized, others, anchors)
        near, far = cameras.near.flatten().float(), cameras.far.flatten().float()
        whole = cost_volume.full_range(near, far, self.layout.planes, space)

        # Match coarse to fine: each scale searches around the estimate of the one before.
        matches: list[cost_volume.Match] = []
        for scale, regressor in enumerate(self.regressors):
            matched = features.matched[scale]
            candidates = whole
            if scale > 0:
                coarse = resize(matches[-1].value[:, None], (matched.shape[-2], matched.shape[-1]))
                candidates = cost_volume.around(coarse[:, 0], whole, FINE_PLANES)
            volume = cost_volume.cost_volume(
                matched.unflatten(0, (batch, views)),
                cameras,
                others,
                candidates,
                reference_K=deviations.reference_K,
                pixel_corners=deviations.pixel_corners,
            )
            matches.append(regressor([volume, *features.at(scale)], candidates, views))

        # Refine the finest estimate at full size.
        low = matches[-1].value[:, None]
        parts = pieces(normalized[: batch * views])
        residual = torch.cat(
            [self._residual(features.of(part), take(low, part), height) for part in parts]
        )
        refined = (resize(low, (height, width)) + residual)[:, 0]
        depth = space.to_depth(whole.hold(refined, hard_clamp=deviations.hard_clamp))
        return DepthEstimate(depth.unflatten(0, (batch, views)), tuple(matches), space, features)

    def _residual(self, features: Features, low: Tensor, height: int) -> Tensor:
        """The correction of the finest scale's estimate at full resolution."""
        maps = self.refine(features.vit, features.before(height), features.after(height, low))
        return self.residual(maps).float()

    def _features(self, images: Tensor, others: Tensor, anchors: Anchors | None) -> Features:
        batch, typed = len(others), images.to(self.cnn.stem.weight.dtype)
        if anchors is None:
            cnn = self.cnn(typed)
            coarse = add_position(cnn[-1].unflatten(0, (batch, -1)))
        else:
            assert self.compress is not None
            maps = maps_of(self.cnn, typed, anchors)
            seen = map(add_position, maps.coarse(batch))
            coarse, cnn, images = self.compress(*seen, anchors.owner), maps.own, anchors.own(images)
        matched = [self.transformer(coarse, others).flatten(0, 1)]
        if self.matched_pyramid is not None:
            matched.append(self.matched_pyramid(matched[0]))
        if self.vit is None:
            return Features(cnn, tuple(matched), (), ())
        height, width = images.shape[-2:]
        taps = self.vit(images)
        vit = tuple(resize(x, (height // 8, width // 8)) for x in taps)
        monocular = [resize(vit[-1], (coarse.shape[-2], coarse.shape[-1]))]
        if self.vit_pyramid is not None:
            monocular.append(self.vit_pyramid(monocular[0]))
        kept = taps if self.layout.taps else ()
        return Features(cnn, tuple(matched), vit, tuple(monocular), kept)


class DepthEncoder(nn.Module):
    """What encoders around a `DepthNetwork` tell of themselves by their settings."""

    half_weights = True
    cfg: Any
    depth: DepthNetwork

    @property
    def anchors(self) -> int:
        """In how many views it gathers all, at most; 0: each view speaks for itself."""
        return self.cfg.anchors

    @property
    def near(self) -> float | None:
        """The nearest depth of the scenes it learned from, in its own unit; None: in theirs."""
        return self.cfg.near

    @property
    def far(self) -> float | None:
        """The farthest depth of these scenes; None: of each scene."""
        return getattr(self.cfg, "far", None)

    @property
    def typical_depth(self) -> float | None:
        """The usual depth of these scenes; None: they are known by near."""
        return getattr(self.cfg, "typical_depth", None)

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the monocular ViT."""
        return iter(()) if self.depth.vit is None else self.depth.vit.parameters()
