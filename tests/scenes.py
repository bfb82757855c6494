"""Small deterministic cameras and Gaussians for tests."""

from dataclasses import replace

import torch

from pmsplat.geometry import gaussian, se3
from pmsplat.types import MIP, RESPLAT, Cameras, DrawingRules, Gaussians

PARAMETERS = ("means", "scales", "quats_wxyz", "opacities", "sh")  # the tensors of Gaussians
ODD_RULES = DrawingRules(0.1, antialiased=True, alpha_cap=0.9, near=1.5, far=0.045, clamp="image")
BLURRED = DrawingRules(blur=0.7)
RULES = {"mip": MIP, "resplat": RESPLAT, "odd": ODD_RULES, "blurred": BLURRED}  # besides CLASSIC


def random_cameras(
    views: int,
    generator: torch.Generator,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    spread: float = 0.3,
) -> Cameras:
    """Cameras near the origin that look roughly along +z, each with its own intrinsics."""

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(batch, views, *shape, generator=generator, dtype=dtype)

    quats = torch.cat([torch.ones(batch, views, 1, dtype=dtype), 0.1 * noise(3)], dim=-1)
    c2w = se3.compose(gaussian.quat_to_rotation(quats), spread * noise(3))
    K = torch.eye(3, dtype=dtype).repeat(batch, views, 1, 1)
    K[..., 0, 0] = 0.9 + 0.05 * noise()
    K[..., 1, 1] = 1.1 + 0.05 * noise()
    K[..., :2, 2] = 0.5 + 0.02 * noise(2)
    near = torch.full((batch, views), 0.5, dtype=dtype)
    return Cameras(c2w=c2w, K=K, near=near, far=200 * near)


def random_gaussians(
    count: int,
    generator: torch.Generator,
    batch: int = 1,
    degree: int = 2,
    dtype: torch.dtype = torch.float32,
) -> Gaussians:
    """Gaussians in front of `random_cameras`, of mixed size, shape, opacity and colour."""

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(batch, count, *shape, generator=generator, dtype=dtype)

    centre = torch.tensor([0.0, 0.0, 4.0], dtype=dtype)
    spread = torch.tensor([1.2, 1.2, 0.8], dtype=dtype)
    return Gaussians(
        means=centre + spread * noise(3),
        scales=torch.exp(-2.2 + 0.5 * noise(3)),
        quats_wxyz=torch.nn.functional.normalize(noise(4), dim=-1),
        opacities=torch.sigmoid(1.5 * noise()),
        sh=torch.cat([noise(1, 3), 0.15 * noise((degree + 1) ** 2 - 1, 3)], dim=-2),
    )


def limits_of_resplat(
    generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> tuple[Gaussians, Cameras]:
    """A scene in which every number of RESPLAT acts: 240 Gaussians, two cameras off centre.

    Some lie just before and behind the planes of their cameras, some beside the image, where the
    Jacobian is clamped; some are needles and discs; some reach alphas from 0.99 to 0.999.
    """
    cameras = random_cameras(2, generator, dtype=dtype, spread=0.0)
    cameras.K[..., 0, 2] += torch.tensor([0.25, -0.2], dtype=dtype)
    cameras.K[..., 1, 2] += torch.tensor([-0.2, 0.15], dtype=dtype)
    cameras.near[:], cameras.far[:] = 2.0, 6.0
    gaussians = random_gaussians(240, generator, degree=1, dtype=dtype)
    planes = torch.tensor([1.98, 2.01, 5.98, 6.01], dtype=dtype).repeat(10)
    planes += 0.01 * torch.rand(40, generator=generator, dtype=dtype)  # none of equal depth
    rays = 0.25 * torch.randn(40, 2, generator=generator, dtype=dtype)
    towards = torch.cat([rays, torch.ones_like(rays[:, :1])], dim=-1)
    c2w = cameras.c2w[0, torch.arange(40) % 2]
    at_planes = planes[:, None] * (c2w[:, :3, :3] @ towards[..., None])[..., 0]
    gaussians.means[0, :40] = at_planes + c2w[:, :3, 3]
    gaussians.means[0, 40:80, :2] *= 3
    gaussians.scales[0, 40:80] *= 4
    gaussians.scales[0, 80:100, 0] *= 1e-3
    gaussians.scales[0, 100:120, :2] *= 1e-3
    gaussians.scales[0, 120:180] *= 0.1
    gaussians.scales[0, 180:190] = 1.0
    gaussians.means[0, 180:190, :2] *= 2
    gaussians.means[0, 180:190, 2] = 5.2
    gaussians.opacities[0, 80:180] *= 0.5
    gaussians.opacities[0, 180:190] = torch.linspace(0.99, 1.0, 10, dtype=dtype)
    return replace(gaussians, rules=RESPLAT), cameras


def are_equal(one: Gaussians, other: Gaussians) -> bool:
    """Whether two are the same to the bit, rules and origin included."""
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)
