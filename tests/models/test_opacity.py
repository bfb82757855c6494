"""Opacity that the photographs correct, against another optimizer, another rasteriser and a scene
of which it is known what is wrong."""

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from pmsplat import rasterize
from pmsplat.geometry import sh
from pmsplat.models._opacity import BETAS, LEAST, RATE, SLOPE, correct_opacity
from pmsplat.types import Cameras, Gaussians, Views

SIZE = 12, 16
SIDE = 0.25  # of the grid of a wall
STEPS = 4


def wall(depth: float, color: tuple[float, float, float], opacity: float) -> Gaussians:
    """Gaussians in a plane across the axis of a camera at the origin, as wide as its picture."""
    y, x = torch.meshgrid(torch.arange(-1, 1, SIDE), torch.arange(-1, 1, SIDE), indexing="ij")
    means = torch.stack([x, y, torch.ones_like(x)], dim=-1).flatten(0, 1)[None] * depth
    count = means.shape[1]
    tone = (torch.tensor(color) - 0.5) / sh.C0
    return Gaussians(
        means=means,
        scales=torch.full((1, count, 3), 0.6 * SIDE * depth),
        quats_wxyz=torch.tensor([1.0, 0, 0, 0]).expand(1, count, 4),
        opacities=torch.full((1, count), opacity),
        sh=tone.expand(1, count, 1, 3),
    )


def join(*parts: Gaussians, dim: int = 1) -> Gaussians:
    """All of the parts in one scene, or scene after scene (`dim` 0)."""

    def cat(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], dim)

    return Gaussians(cat("means"), cat("scales"), cat("quats_wxyz"), cat("opacities"), cat("sh"))


def looking(*sides: float) -> Cameras:
    """Cameras that look along z from so far to the right."""
    c2w = torch.eye(4).repeat(1, len(sides), 1, 1)
    c2w[..., 0, 3] = torch.tensor(sides)
    K = torch.tensor([[0.7, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1.0]]).expand(1, len(sides), 3, 3)
    bound = torch.ones(1, len(sides))
    return Cameras(c2w, K, 0.5 * bound, 20 * bound)


def make() -> tuple[Gaussians, Views, int]:
    """A blue wall that two photographs show, behind a thin red veil that is not there."""
    truth = wall(4, (0.2, 0.3, 0.9), 0.95)
    cameras = looking(-0.2, 0.2)
    views = Views(rasterize(truth, cameras, SIZE).color, cameras)
    given = replace(truth, opacities=torch.full_like(truth.opacities, 0.6))
    return join(given, wall(2, (0.9, 0.1, 0.1), 0.5)), views, given.means.shape[1]


def test_what_stands_before_the_photographed_fades() -> None:
    given, views, count = make()
    levels = correct_opacity(given, views, STEPS)
    assert len(levels) == STEPS

    def miss(gaussians: Gaussians) -> float:
        target = looking(0.0)
        seen = rasterize(wall(4, (0.2, 0.3, 0.9), 0.95), target, SIZE).color
        return (rasterize(gaussians, target, SIZE).color - seen).square().mean().item()

    misses = [miss(level) for level in (given, *levels)]
    assert all(after < before for before, after in pairwise(misses))
    assert misses[-1] < 0.1 * misses[0]
    assert levels[-1].opacities[:, count:].mean() < 0.1
    assert levels[-1].opacities[:, :count].mean() > 0.6
    for name in ("means", "scales", "quats_wxyz", "sh"):
        assert getattr(levels[-1], name) is getattr(given, name)


def test_steps_are_those_of_adam_in_float64() -> None:
    """With torch's optimizer and the reference rasteriser."""
    given, views, _ = make()
    logits = given.opacities.double().clamp(LEAST, 1 - LEAST).logit().requires_grad_()
    adam = torch.optim.Adam([logits], RATE, BETAS, SLOPE)
    exact = Gaussians(
        given.means.double(), given.scales.double(), given.quats_wxyz.double(),
        given.opacities.double(), given.sh.double(),
    )  # fmt: skip
    for level in correct_opacity(given, views, STEPS):
        now = replace(exact, opacities=logits.sigmoid())
        pictures = rasterize(now, views.cameras, SIZE, "reference").color
        adam.zero_grad()
        (pictures - views.images).square().sum().backward()
        adam.step()
        torch.testing.assert_close(
            level.opacities.double(), logits.detach().sigmoid(), rtol=0, atol=2e-4
        )


def test_scenes_do_not_depend_on_each_other() -> None:
    given, views, _ = make()
    other = replace(given, opacities=1 - given.opacities)
    cameras = looking(-0.2, 0.2)
    twice = Cameras(*(torch.cat([getattr(cameras, n)] * 2) for n in ("c2w", "K", "near", "far")))
    (alone,) = correct_opacity(other, views, 1)
    (joint,) = correct_opacity(
        join(given, other, dim=0), Views(views.images.repeat(2, 1, 1, 1, 1), twice), 1
    )
    torch.testing.assert_close(joint.opacities[1:], alone.opacities)


def test_inference_mode_changes_nothing() -> None:
    """There tensors have no gradient: those that were made in it too."""
    expected = correct_opacity(make()[0], make()[1], STEPS)[-1]
    with torch.inference_mode():
        gaussians, views, _ = make()
        assert gaussians.means.is_inference() and views.images.is_inference()
        found = correct_opacity(gaussians, views, STEPS)[-1]
        assert torch.equal(found.opacities, expected.opacities)
