"""The depth network of DepthSplat (2024 and 2025 alike): images and cameras -> inverse depth.

Xu et al., "DepthSplat: Connecting Gaussian Splatting and Depth", CVPR 2025.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..kernels.attention import BACKENDS
from ..kernels.convolution import Conv2d
from ..nn import cost_volume
from ..nn.cnn import CNN
from ..nn.dpt import DPT
from ..nn.maps import BorderConv, pieces, resize
from ..nn.multiview import MultiViewTransformer
from ..nn.unet import zeroed
from ..types import Cameras
from ._checks import check_choice, check_width
from ._deviations import Deviations

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which all parts expect
FINE_PLANES = 32  # hypotheses of the second scale, half a coarse step apart
VIT_WIDTHS = {"none": 0, "vits": 384, "vitb": 768, "vitl": 1024}
# channels of the dense heads by backbone: the four levels, then depth features, Gaussian features
DPT_WIDTHS = {
    "vits": ((48, 96, 192, 384), 32, 64),
    "vitb": ((96, 192, 384, 768), 48, 96),
    "vitl": ((128, 256, 512, 1024), 64, 128),
}


CHOICES = {
    "vit": tuple(VIT_WIDTHS),
    "scales": (1, 2),
    "lowest": (4, 8),
    "attention": BACKENDS,
}


@dataclass(frozen=True)
class Layout:
    """The sizes of the depth network, from the settings of a model."""

    vit: str  # none, vits, vitb, vitl
    scales: int  # 1 or 2
    lowest: int  # the coarsest maps have 1/lowest of the resolution: 4 or 8
    planes: int
    width: int
    transformer_layers: int
    attention: str
    deviations: Deviations

    @classmethod
    def of(cls, cfg: Any) -> "Layout":
        """The layout that a model's Config describes; UserError for an invalid value."""
        layout = cls(**{f.name: getattr(cfg, f.name) for f in fields(cls)})
        for name, valid in CHOICES.items():
            check_choice(name, getattr(layout, name), valid)
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

    def at(self, scale: int) -> list[Tensor]:
        """All maps of one scale, which have one resolution."""
        return [
            self.cnn[len(self.cnn) - 1 - scale],
            self.matched[scale],
            *self.monocular[scale : scale + 1],
        ]

    def of(self, images: slice) -> "Features":
        """The maps of some images."""
        return Features(*(tuple(x[images] for x in getattr(self, f.name)) for f in fields(self)))

    def before(self, height: int) -> list[list[Tensor]]:
        """The maps that a dense head joins before the ViT's, at 1/2, 1/4, 1/8, 1/16 of `height`."""
        return [[x for x in self.cnn if x.shape[-2] * s == height] for s in (2, 4, 8, 16)]

    def after(self, height: int, extra: Tensor | None = None) -> list[list[Tensor]]:
        """The maps that it joins after the ViT's: matched features, then an `extra` map."""
        maps = [*self.matched, *([] if extra is None else [extra])]
        return [[x for x in maps if x.shape[-2] * s == height] for s in (2, 4, 8, 16)]


@dataclass(frozen=True)
class DepthEstimate:
    """Inverse depth within [1/far, 1/near], and the maps that it was made from."""

    scales: tuple[
        Float[Tensor, "batch view _ _"], ...
    ]  # the estimate of each scale, coarse to fine
    inv_depth: Float[Tensor, "batch view height width"]  # refined, at full size
    confidence: Float[Tensor, "n _ _"]  # probability of the finest scale's best hypothesis
    features: Features


class Pyramid(nn.Module):
    """A map -> the map at twice the resolution with half the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width // 2, 2, 2)
        self.smooth = Conv2d(width // 2, width // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.smooth(nn.functional.gelu(self.up(x)))


class DepthNetwork(nn.Module):
    """CNN features matched across views, and monocular ViT features, -> inverse depth."""

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
        self.transformer = MultiViewTransformer(
            width,
            layout.transformer_layers,
            mask_by_view=layout.deviations.mask_by_view,
            backend=attention,
        )
        self.vit = None
        if vit_width:
            from ..foundation.dinov2 import DinoV2  # late: timm takes a second to import

            self.vit = DinoV2(layout.vit, attention)
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
        images: Float[Tensor, "batch view 3 height width"],
        cameras: Cameras,
        others: Int[Tensor, "batch view other"],
    ) -> DepthEstimate:
        """`others[b, v]` lists the views that view v is matched with."""
        batch, views, _, height, width = images.shape
        deviations = self.layout.deviations
        # Features of every view, each informed by the views it is matched with.
        normalized = ((images - self.mean) / self.std).flatten(0, 1)
        features = self._features(normalized, others)
        near, far = cameras.near.flatten().float(), cameras.far.flatten().float()
        whole = cost_volume.full_range(near, far, self.layout.planes)

        # Match coarse to fine: each scale searches around the estimate of the one before.
        matches: list[cost_volume.Match] = []
        for scale, regressor in enumerate(self.regressors):
            matched = features.matched[scale]
            candidates = whole
            if scale > 0:
                coarse = resize(
                    matches[-1].inv_depth[:, None], (matched.shape[-2], matched.shape[-1])
                )
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
        low = matches[-1].inv_depth[:, None]
        residual = torch.cat(
            [self._residual(features.of(part), low[part], height) for part in pieces(normalized)]
        )
        refined = (resize(low, (height, width)) + residual)[:, 0]
        inv_depth = whole.hold(refined, hard_clamp=deviations.hard_clamp)
        return DepthEstimate(
            tuple(rearrange(m.inv_depth, "(b v) h w -> b v h w", v=views) for m in matches),
            inv_depth.unflatten(0, (batch, views)),
            matches[-1].confidence,
            features,
        )

    def _residual(self, features: Features, low: Tensor, height: int) -> Tensor:
        """The correction of the finest scale's inverse depth at full resolution."""
        maps = self.refine(features.vit, features.before(height), features.after(height, low))
        return self.residual(maps).float()

    def _features(self, images: Tensor, others: Tensor) -> Features:
        cnn = self.cnn(images.to(self.cnn.stem.weight.dtype))
        coarse = cnn[-1].unflatten(0, (len(others), -1))
        matched = [self.transformer(coarse, others).flatten(0, 1)]
        if self.matched_pyramid is not None:
            matched.append(self.matched_pyramid(matched[0]))
        if self.vit is None:
            return Features(cnn, tuple(matched), (), ())
        height, width = images.shape[-2:]
        vit = tuple(resize(x, (height // 8, width // 8)) for x in self.vit(images))
        monocular = [resize(vit[-1], (coarse.shape[-2], coarse.shape[-1]))]
        if self.vit_pyramid is not None:
            monocular.append(self.vit_pyramid(monocular[0]))
        return Features(cnn, tuple(matched), vit, tuple(monocular))
