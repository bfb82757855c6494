"""DepthSplat as first released, in October 2024, and the network that PM-Loss fine-tunes.

The depth network is that of `depthsplat`; a U-Net at full resolution makes the Gaussians. Xu et
al., "DepthSplat: Connecting Gaussian Splatting and Depth", arXiv 2410.13862; Shi et al.,
"Revisiting Depth Representations for Feed-Forward 3D Gaussian Splatting", arXiv 2506.05327.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu

from ..kernels.convolution import Conv2d
from ..nn.cost_volume import all_others, nearest_others
from ..nn.maps import UpConv, join, pieces
from ..nn.unet import GroupNorm, UNet
from ..registry import whole
from ._checks import ABOVE_ZERO, HEAD, check_choice, check_sizes, check_unet_width
from ._depth import DepthEstimate, Features, Layout
from ._deviations import Deviations, expand_published
from ._head import PixelHead, Rules, channels, out_convolutions
from .depthsplat import DepthSplat

UNET_LEVELS = (1, 2, 4, 4, 4)  # times `unet_width`, from full resolution to 1/16
WIDE = (
    128  # from this number of features on, the last convolutions are twice as wide as their output
)
OFFSETS = ("bounded", "free")

RELEASED = Deviations.released(along_ray=True)


@dataclass
class Config:
    vit: str = "vits"  # monocular backbone: vits, vitb, vitl (DINOv2), or none
    init_from: list[str] = field(default_factory=list)
    """Weights that training starts from: dinov2, names of `zoo.init.SOURCES`, or files."""
    scales: int = 1  # 2 refines the depth at twice the resolution
    lowest: int = 4  # the coarsest features have 1/4 or 1/8 of the image's resolution
    planes: int = 128  # depth hypotheses of the coarsest scale
    width: int = 128  # channels of the matched features
    transformer_layers: int = 6
    neighbors: int = 0  # nearest views that each view is matched with; 0: all others
    anchors: int = 0  # views in which the features of all are gathered (`nn.anchors`); 0: off
    gaussians: bool = True  # False: depth only
    features: int = 64  # channels of the full-size features that the Gaussians are made from
    unet_width: int = 16  # of the U-Net that makes them, at full size
    sh_degree: int = 4
    scale_max: float = 0.3  # of Gaussians, in scene units
    offsets: str = "bounded"  # Gaussians stay in their pixel, or are "free" to leave it (PM-Loss)
    near: float | None = 0.5
    """Nearest depth of the scenes it learns from, in its own unit of length, to which other scenes
    are scaled; None: it takes every scene in the scene's own unit."""
    attention: str = "sdpa"  # sdpa, xformers (CUDA), plain
    deviations: Deviations = field(default_factory=Deviations)
    """Faults of the released networks to reproduce; `published=true` sets all that they had."""

    def __post_init__(self) -> None:
        Layout.of(self)
        features = whole(self.scales, multiple=self.scales)  # each scale makes as many of them
        check_sizes(self, {"neighbors": whole(0), "features": features, "scale_max": ABOVE_ZERO})
        check_unet_width(self.unet_width)
        check_choice("offsets", self.offsets, OFFSETS)


class DepthSplat2024(DepthSplat):
    """The encoder; it takes views, sizes and modes as `DepthSplat` does.

    In train mode the prediction also holds every scale's depth before the last refinement.
    """

    def _rules(self) -> Rules:
        cfg: Config = self.cfg
        return Rules(
            cfg.sh_degree,
            "exp",
            cfg.scale_max,
            cfg.deviations,
            free_offset=cfg.offsets == "free",
        )

    def _head(self) -> PixelHead:
        cfg: Config = self.cfg
        return Head(self.layout, cfg.features, cfg.unet_width, cfg.sh_degree)

    def others(self, c2w: Float[Tensor, "batch view 4 4"]) -> Int[Tensor, "batch view other"]:
        return nearest_others(c2w, self.cfg.neighbors) if self.cfg.neighbors else all_others(c2w)

    def coarse(self, estimate: DepthEstimate) -> tuple[Tensor, ...]:
        return estimate.coarse(self.layout.scales)


class Enlarge(nn.Module):
    """All maps of one scale -> `outputs` channels at full size."""

    def __init__(self, inputs: int, doublings: int, outputs: int) -> None:
        super().__init__()
        width = 2 * outputs * max(doublings - 1, 1)
        self.project = Conv2d(inputs, width, 1)
        self.steps = nn.ModuleList()
        for step in range(doublings):
            following = outputs if step == doublings - 1 else width // 2
            self.steps.append(UpConv(width, following, "replicate"))
            width = following

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        for index, step in enumerate(self.steps):
            x = step(x if index == 0 else gelu(x))
        return x


class Head(PixelHead):
    """Image, depth, confidence and the depth network's maps -> the channels of every pixel."""

    def __init__(self, layout: Layout, features: int, unet_width: int, sh_degree: int) -> None:
        super().__init__()
        self.enlarge = nn.ModuleList(
            Enlarge(
                layout.known_widths(scale),
                (layout.lowest >> scale).bit_length() - 1,
                features // layout.scales,
            )
            for scale in range(layout.scales)
        )
        self.stem = Conv2d(3 + 1 + 1 + features, unet_width, 3, padding=1)
        self.norm = GroupNorm(unet_width, activation="gelu")
        widths = tuple(unet_width * level for level in UNET_LEVELS)
        self.unet = UNet(widths, head=min(HEAD, unet_width), backend=layout.attention)
        self.smooth = Conv2d(unet_width, unet_width, 3, padding=1)
        hidden = channels(sh_degree) * (2 if features >= WIDE else 1)
        self.inputs = unet_width + 3 + features + 1
        self.out = out_convolutions(self.inputs, hidden, sh_degree)

    def maps(
        self,
        images: Float[Tensor, "batch view 3 height width"],
        depth: Float[Tensor, "batch view height width"],
        estimate: DepthEstimate,
    ) -> Iterator[Tensor]:
        flat, metric = images.flatten(0, 1), depth.flatten(0, 1)[:, None]
        confidence = estimate.confidence((images.shape[-2], images.shape[-1]))
        parts = pieces(flat)
        features = torch.cat([self._features(estimate.features.of(part)) for part in parts])
        stems = [self.stem(join([flat[p], metric[p], confidence[p], features[p]])) for p in parts]
        x = self.unet(self.norm(torch.cat(stems)), images.shape[1])
        for p in parts:
            yield join([self.smooth(x[p]), flat[p], features[p], confidence[p]])

    def _features(self, maps: Features) -> Float[Tensor, "n channel height width"]:
        return join([enlarge(join(maps.at(i))) for i, enlarge in enumerate(self.enlarge)])


def upgrade(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of older checkpoints, and `published`, as this version has them."""
    return expand_published(settings, RELEASED)


build = DepthSplat2024
