"""A ray-traced room: Gaussians as a trained encoder leaves them, and batches to train on.

Planes, boxes and spheres, 1 to 20 units away; the views are consistent with each other. The
Gaussians stand at the surfaces, off by 1 % smoothly and by 0.2 % from pixel to pixel, with standard
deviations of 0.5 to 1.5 pixels in their view, any rotation and opacities of 0.3 to 0.9.
"""

from typing import Any

import torch
from torch import Tensor

from pmsplat.geometry import camera, se3
from pmsplat.types import Cameras, Gaussians, Pointmap, Views

HALF = (9.0, 3.5, 10.5)  # of the room
CENTER = (0.0, 0.0, 9.0)
BOXES, SPHERES = 14, 10
NEAR, FAR = 0.5, 100.0
SPACING = 0.25  # between neighbouring views


def cameras(count: int, height: int, width: int, device: str, between: bool = False) -> Cameras:
    """Views side by side that look at the far half of the room; `between`: half a step aside."""
    across = torch.arange(count, device=device, dtype=torch.float32)
    across = SPACING * (across - (count - 1) / 2 + 0.5 * between)
    eye = torch.stack([across, 0.1 * torch.sin(3 * across), 0.05 * across], dim=-1)
    goal = torch.tensor([0.0, 0.3, 9.0], device=device).expand_as(eye) + 0.3 * eye
    up = torch.tensor([0.0, -1.0, 0.0], device=device).expand_as(eye)
    K = torch.eye(3, device=device).repeat(1, count, 1, 1)
    K[..., 0, 0], K[..., 1, 1] = 0.9 * min(height / width, 1.0), 0.9 * min(width / height, 1.0)
    K[..., :2, 2] = 0.5
    near = torch.full((1, count), NEAR, device=device)
    return Cameras(se3.look_at(eye, goal, up)[None], K, near, FAR / NEAR * near)


def depth_and_color(at: Cameras, height: int, width: int) -> tuple[Tensor, Tensor]:
    """What each camera of scene 0 sees: z [view, h, w], and RGB in [0, 1] [view, 3, h, w]."""
    generator = torch.Generator().manual_seed(1)
    origin = at.c2w[0, :, None, None, :3, 3]
    rays = camera.rays(at.c2w[0], at.K[0], height, width)
    half, center = rays.new_tensor(HALF), rays.new_tensor(CENTER)
    inverse = 1 / torch.where(rays.abs() < 1e-9, 1e-9, rays)
    depth = ((center - origin) * inverse + half * inverse.abs()).amin(dim=-1)
    places = torch.rand(BOXES + SPHERES, 4, generator=generator).to(rays)
    for i, (x, y, z, size) in enumerate(places.unbind(0)):
        middle = torch.stack([14 * x - 7, 5 * y - 2.5, 3 + 13 * z])
        hit = _ball(origin - middle, rays, 0.3 + 0.9 * size)
        if i < BOXES:
            hit = _box((middle - origin) * inverse, inverse.abs() * (0.3 + 0.9 * size))
        depth = torch.minimum(depth, hit)
    points = origin + depth[..., None] * rays
    waves = points[..., [0, 1, 2]] * points.new_tensor([2.1, 3.3, 1.7])
    color = 0.5 + 0.2 * torch.sin(waves) + 0.15 * torch.sin(5.3 * waves.roll(1, dims=-1))
    return depth, color.permute(0, 3, 1, 2).clamp(0, 1)


def _box(middle: Tensor, reach: Tensor) -> Tensor:
    enter, leave = (middle - reach).amax(dim=-1), (middle + reach).amin(dim=-1)
    return torch.where((enter > 0.5) & (enter < leave), enter, torch.inf)


def _ball(origin: Tensor, rays: Tensor, radius: Tensor) -> Tensor:
    squared, along = rays.square().sum(-1), -(origin * rays).sum(-1)
    inner = along.square() - squared * (origin.square().sum(-1) - radius.square())
    depth = (along - inner.clamp_min(0).sqrt()) / squared
    return torch.where((inner > 0) & (depth > 0.5), depth, torch.inf)


def gaussians(scenes: int, views: int, height: int, width: int, device: str) -> Gaussians:
    """One Gaussian of SH degree 2 for each pixel of the views; every scene has its own noise."""
    at = cameras(views, height, width, device)
    depth, color = depth_and_color(at, height, width)
    noise = torch.Generator(device).manual_seed(2)
    count = views * height * width

    def normal(*shape: int) -> Tensor:
        return torch.randn(scenes, count, *shape, generator=noise, device=device)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(scenes, count, *shape, generator=noise, device=device)

    grid = camera.pixel_grid(height, width, like=at.K)
    smooth = torch.sin(9 * grid[..., 0]) * torch.cos(7 * grid[..., 1])
    exact = (depth * (1 + 0.01 * smooth)).reshape(1, count)
    z = exact * (1 + 0.002 * normal())
    size = torch.tensor([width, height], device=device)
    aside = (uniform(2) - 0.5) / size + grid.expand(views, -1, -1, -1).reshape(count, 2)
    pixel = torch.arange(views, device=device).repeat_interleave(height * width)
    ahead = camera.directions(aside, at.K[0, pixel])
    means = se3.transform(at.c2w[0, pixel], ahead[..., None, :] * z[..., None, None])[..., 0, :]
    footprint = z / (at.K[0, 0, 0, 0] * width)
    sh = 0.1 * normal(9, 3)
    sh[:, :, 0] = (color.permute(0, 2, 3, 1).reshape(1, count, 3) - 0.5) / 0.2820948
    return Gaussians(
        means=means,
        scales=footprint[..., None] * (0.5 + uniform(3)),
        quats_wxyz=torch.nn.functional.normalize(normal(4), dim=-1),
        opacities=0.3 + 0.6 * uniform(),
        sh=sh,
    )


def views(scenes: int, count: int, height: int, width: int, device: str, between: bool) -> Views:
    """Photographs of the room with exact pointmaps, equal in all scenes but for their grain."""
    at = cameras(count, height, width, device, between)
    depth, color = depth_and_color(at, height, width)
    noise = torch.Generator(device).manual_seed(3)
    grain = torch.randn(scenes, *color.shape, generator=noise, device=device)
    points = camera.unproject_depth(depth, at.c2w[0], at.K[0])

    def repeat(one: Tensor) -> Any:
        return one.repeat(scenes, *[1] * (one.dim() - 1))

    return Views(
        (color + 0.02 * grain).clamp(0, 1),
        at.map(repeat),
        pointmap=Pointmap(repeat(points[None]), torch.ones_like(repeat(depth[None]))),
    )
