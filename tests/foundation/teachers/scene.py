"""A small scene whose depth and cameras are known, for teachers to be asked about."""

import torch

from pmsplat.geometry import camera
from pmsplat.types import Views
from tests.scenes import random_cameras


def known_views(
    height: int, width: int, generator: torch.Generator, views: int = 3, batch: int = 2
) -> Views:
    """Waves of depth about 3, a step in the middle, images of noise; every camera elsewhere."""
    xy = camera.pixel_grid(height, width, like=torch.zeros(()))
    phase = 6 * torch.rand(batch, views, 1, 1, generator=generator)
    depth = 3 + torch.sin(7 * xy[..., 0] + phase) * torch.cos(5 * xy[..., 1] - phase)
    depth = depth + 2 * (xy[..., 0] > 0.5)
    images = torch.rand(batch, views, 3, height, width, generator=generator)
    return Views(images, random_cameras(views, generator, batch), depth=depth)


def world_points(views: Views) -> torch.Tensor:
    """Where the pixels of `known_views` are."""
    assert views.depth is not None
    return camera.unproject_depth(views.depth, views.cameras.c2w, views.cameras.K)
