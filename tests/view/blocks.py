"""A scene that no turn or mirror maps to itself: red upper left, green upper right, blue below."""

from dataclasses import replace

import torch

from pmsplat.types import Cameras, Gaussians

SIZE = (120, 160)
PLACES = {"red": (-0.7, -0.5, 4.0), "green": (0.9, -0.5, 6.0), "blue": (-0.7, 0.6, 3.0)}
COUNT = 300  # Gaussians of a block


def blocks(unit: float = 1.0, degree: int = 0) -> Gaussians:
    """Three blocks of 0.5 * 0.5 * 0.1 around PLACES, in OpenCV axes."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.5, 0.5, 0.1])
    means, harmonics = [], torch.zeros(3 * COUNT, (degree + 1) ** 2, 3)
    for i, place in enumerate(PLACES.values()):
        noise = torch.rand(COUNT, 3, generator=generator) - 0.5
        means.append(torch.tensor(place) + spread * noise)
        color = torch.eye(3)[i]
        harmonics[i * COUNT : (i + 1) * COUNT, 0] = (color - 0.5) / 0.28209479177387814
    if degree:
        harmonics[:, 1:] = 0.1 * torch.randn(harmonics[:, 1:].shape, generator=generator)
    count = 3 * COUNT
    return Gaussians(
        means=unit * torch.cat(means)[None],
        scales=torch.full((1, count, 3), 0.05 * unit),
        quats_wxyz=torch.tensor([1.0, 0, 0, 0]).repeat(1, count, 1),
        opacities=torch.full((1, count), 0.95),
        sh=harmonics[None],
    )


def rated(gaussians: Gaussians) -> Gaussians:
    """The same blocks; of the red one 0.1 is known, of the green one 0.5, of the blue one 0.9."""
    sure = torch.tensor([0.1, 0.5, 0.9]).repeat_interleave(COUNT)
    return replace(gaussians, confidence=sure[None])


def lookers(unit: float = 1.0) -> Cameras:
    """Three cameras that look along z: at the origin, to the right and behind it, and above it."""
    c2w = torch.eye(4).repeat(1, 3, 1, 1)
    c2w[0, 1, :3, 3] = torch.tensor([1.0, 0, -1]) * unit
    c2w[0, 2, :3, 3] = torch.tensor([0.0, -1, 0]) * unit
    K = torch.tensor([[0.9, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]]).repeat(1, 3, 1, 1)
    near = torch.full((1, 3), unit)
    return Cameras(c2w, K, near, 20 * near)
