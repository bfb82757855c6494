"""An encoder of somebody else's, small enough for tests: colour -> depth and one splat a pixel."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn

from pmsplat.geometry import camera
from pmsplat.types import Gaussians, Prediction, Views

FOOTPRINT = 0.7  # pixels


@dataclass
class Config:
    width: int = 8
    levels: int = 2
    bad_from: int = 1_000_000  # calls after which the depth is NaN: a training gone wrong


class Encoder(nn.Module):
    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg, self.calls = cfg, 0
        self.net = nn.Sequential(
            nn.Conv2d(3, cfg.width, 3, padding=1), nn.GELU(), nn.Conv2d(cfg.width, 5, 3, padding=1)
        )

    def forward(self, views: Views) -> Prediction:
        cameras = views.cameras
        self.calls += 1
        raw = self.net(views.images.flatten(0, 1)).unflatten(0, views.images.shape[:2])
        raw = raw * (float("nan") if self.calls >= self.cfg.bad_from else 1.0)
        near, far = 1 / cameras.near, 1 / cameras.far
        inverse = far[..., None, None] + (near - far)[..., None, None] * raw[:, :, 0].sigmoid()
        depths = tuple(1 / inverse * scale for scale in (1.02, 1.0)[-self.cfg.levels :])
        kept = depths if self.training else depths[-1:]
        return Prediction(kept, tuple(self._splats(depth, raw, views) for depth in kept))

    def _splats(self, depth: torch.Tensor, raw: torch.Tensor, views: Views) -> Gaussians:
        means = camera.unproject_depth(depth, views.cameras.c2w, views.cameras.K)
        radius = FOOTPRINT * depth / (views.cameras.K[..., 0, 0] * views.size[1])[..., None, None]
        color = rearrange(views.images - 0.5 + raw[:, :, 2:], "b v c h w -> b (v h w) 1 c") / 0.2821
        opacities = rearrange((raw[:, :, 1] + 2).sigmoid(), "b v h w -> b (v h w)")
        return Gaussians(
            means=rearrange(means, "b v h w c -> b (v h w) c"),
            scales=rearrange(radius, "b v h w -> b (v h w) 1").expand(-1, -1, 3),
            quats_wxyz=means.new_tensor([1.0, 0, 0, 0]).expand(*opacities.shape, 4),
            opacities=opacities,
            sh=color,
        )


build = Encoder
