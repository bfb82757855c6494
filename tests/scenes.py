"""Small deterministic cameras and Gaussians for tests."""

import torch

from pmsplat.geometry import gaussian, se3
from pmsplat.types import MIP, Cameras, DrawingRules, Gaussians

PARAMETERS = ("means", "scales", "quats_wxyz", "opacities", "sh")  # the tensors of Gaussians
ODD_RULES = DrawingRules(blur=0.1, antialiased=True, alpha_cap=0.9, near=1.5)
RULES = {"mip": MIP, "odd": ODD_RULES, "blurred": DrawingRules(blur=0.7)}  # besides CLASSIC


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


def are_equal(one: Gaussians, other: Gaussians) -> bool:
    """Whether two are the same to the bit, rules and origin included."""
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)
