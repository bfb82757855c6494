"""DepthSplat: posed photographs -> depth and 3D Gaussians, in one forward pass.

Xu et al., "DepthSplat: Connecting Gaussian Splatting and Depth", CVPR 2025 (the architecture of the
2025 releases).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError
from ..kernels.attention import BACKENDS
from ..nn.cost_volume import all_others, nearest_others
from ..nn.maps import join, resize
from ..types import Prediction, Views
from ._depth import DepthEstimate, DepthNetwork, Layout
from ._head import Rules, channels, gaussians_at

FEW_VIEWS = 3  # up to so many views, each is matched with all others


@dataclass
class Config:
    vit: str = "vits"  # monocular backbone: vits, vitb, vitl (DINOv2), or none
    pretrained: bool = False  # start the backbone from DINOv2's released weights
    scales: int = 1  # 2 refines the depth at twice the resolution
    lowest: int = 4  # the coarsest features have 1/4 or 1/8 of the image's resolution
    planes: int = 128  # depth hypotheses of the coarsest scale
    width: int = 128  # channels of the matched features
    transformer_layers: int = 6
    neighbors: int = 2  # views that each view is matched with, where there are more than three
    gaussians: bool = True  # False: depth only
    head_width: int = 64
    sh_degree: int = 2
    scale_unit: str = "world"  # Gaussian sizes in scene units, or in "pixel" footprints
    scale_max: float = 3.0  # in scene units
    attention: str = "sdpa"  # sdpa, xformers (CUDA), plain
    published: bool = False  # reproduce what the released weights were trained with, faults too

    def __post_init__(self) -> None:
        choices = {
            "vit": ("none", "vits", "vitb", "vitl"),
            "scales": (1, 2),
            "lowest": (4, 8),
            "sh_degree": (0, 1, 2, 3, 4),
            "scale_unit": ("world", "pixel"),
            "attention": BACKENDS,
        }
        for name, valid in choices.items():
            value = getattr(self, name)
            if value not in valid:
                wanted = ", ".join(map(str, valid))
                raise UserError(f"{name} = {value!r}", f"one of {wanted}", "choose one of them")
        if self.width % 16:
            raise UserError(f"width = {self.width}", "a multiple of 16", "choose one, such as 32")


class DepthSplat(nn.Module):
    """The encoder.

    Any number of views from two; height and width must be multiples of 4 · `lowest`. In train mode
    the prediction holds every scale's depth and Gaussians, coarse to fine; in eval mode the answer
    alone. A depth-only model predicts no Gaussians: its tuple is empty. Autocast is welcome:
    geometry stays in float32.

    The backbone's parameters, which want a smaller learning rate, are `backbone_parameters()`;
    their names start with `depth.vit.`.
    """

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.layout = Layout(
            vit=cfg.vit,
            scales=cfg.scales,
            lowest=cfg.lowest,
            planes=cfg.planes,
            width=cfg.width,
            transformer_layers=cfg.transformer_layers,
            attention=cfg.attention,
            published=cfg.published,
            pretrained=cfg.pretrained,
        )
        self.rules = Rules(cfg.sh_degree, cfg.scale_unit, cfg.scale_max, cfg.published)
        self.depth = DepthNetwork(self.layout)
        self.head = Head(self.layout, cfg.head_width, cfg.sh_degree) if cfg.gaussians else None
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def multiple(self) -> int:
        """Height and width of the images must be multiples of this."""
        return self.layout.multiple

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the monocular ViT."""
        return iter(()) if self.depth.vit is None else self.depth.vit.parameters()

    def forward(self, views: Views) -> Prediction:
        check_views(views, self.multiple)
        cameras, images = views.cameras, views.images
        height, width = views.size
        if images.shape[1] > FEW_VIEWS:
            others = nearest_others(cameras.c2w, self.cfg.neighbors)
        else:
            others = all_others(cameras.c2w)
        estimate = self.depth(images, cameras, others)
        coarse = estimate.scales[:-1] if self.training else ()
        inv_depths = (*(resize(x, (height, width)) for x in coarse), estimate.inv_depth)
        depths = tuple(1 / x for x in inv_depths)
        if self.head is None:
            return Prediction(depths, ())
        raw = self.head(images, depths[-1], estimate)
        return Prediction(depths, gaussians_at(raw, depths, images, cameras, self.rules))


class Head(nn.Module):
    """Image, depth, confidence and the depth network's features -> the numbers of every pixel."""

    def __init__(self, layout: Layout, width: int, sh_degree: int) -> None:
        super().__init__()
        _, _, features = layout.dpt_widths
        outputs = channels(sh_degree)
        self.features = layout.dpt(features, with_depth=False)
        self.regressor = nn.Sequential(
            nn.Conv2d(3 + 1 + 1 + features, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        inputs = width + 3 + features + 1
        last = nn.Conv2d(outputs, outputs, 3, padding=1, padding_mode="replicate")
        self.out = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="replicate"), nn.GELU(), last
        )
        with torch.no_grad():  # every Gaussian starts round and with its pixel's colour
            for rows in (slice(3, 6), slice(10, None)):
                last.weight[rows] = 0
                if last.bias is not None:
                    last.bias[rows] = 0

    def forward(
        self,
        images: Float[Tensor, "batch view 3 height width"],
        depth: Float[Tensor, "batch view height width"],
        estimate: DepthEstimate,
    ) -> Float[Tensor, "batch view channel height width"]:
        height, width = images.shape[-2:]
        maps = estimate.features
        features = self.features(maps.vit, maps.before(height), maps.after(height))
        flat = images.flatten(0, 1)
        confidence = nn.functional.interpolate(
            estimate.confidence[:, None], size=(height, width), mode="nearest"
        )
        x = join([flat, depth.flatten(0, 1)[:, None], confidence, features])
        x = self.regressor(x)
        x = self.out(join([x, flat, features, confidence]))
        return x.unflatten(0, images.shape[:2])


def check_views(views: Views, multiple: int) -> None:
    """Raises UserError for too few views, or for a size that is not a multiple of `multiple`."""
    count, (height, width) = views.images.shape[1], views.size
    if count < 2:
        raise UserError(
            f"{count} view", "two or more views of the same scene", "give more photographs"
        )
    if height % multiple or width % multiple:
        fit = f"{height // multiple * multiple}x{width // multiple * multiple}"
        raise UserError(
            f"images of {height}x{width} pixels",
            f"height and width that are multiples of {multiple}",
            f"resize or crop them, for instance to {fit}"
            if min(height, width) >= multiple
            else "use larger images",
        )


build = DepthSplat
