"""Circles around a scene: nearly everything is seen, and up is what photographers held for up."""

import math
from dataclasses import replace

import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.geometry import camera, se3
from pmsplat.types import Gaussians
from pmsplat.view.orbit import axis, circle_from, circle_scene, upward


def gaussians(means: torch.Tensor, opacities: torch.Tensor) -> Gaussians:
    """Small round ones."""
    count = len(means)
    return Gaussians(
        means=means[None],
        scales=torch.full((1, count, 3), 0.01),
        quats_wxyz=torch.tensor([1.0, 0, 0, 0]).repeat(1, count, 1),
        opacities=opacities[None],
        sh=torch.zeros(1, count, 1, 3),
    )


@pytest.mark.parametrize("size", [(60, 80), (80, 30), (30, 80)])
@pytest.mark.parametrize("up", ["-y", "z"])
def test_an_orbit_has_room_for_nearly_everything(
    size: tuple[int, int], up: str, generator: torch.Generator
) -> None:
    """A mast, a boom across it, and floaters too faint to count."""
    means = torch.randn(3000, 3, generator=generator) * 0.05
    means[:1000, 1] += torch.linspace(-4, 1, 1000)
    means[1000:2000, 0] += torch.linspace(-1, 2, 1000)
    means[2900:] *= 1000
    opacities = torch.full((3000,), 0.9)
    opacities[2900:] = 0.01
    orbit = circle_scene(gaussians(means, opacities), 24, size, up)
    assert len(orbit.c2w) == 24 and orbit.start is None
    assert orbit.K[0, 0] * size[1] == pytest.approx(orbit.K[1, 1].item() * size[0])  # square pixels
    nearest = math.inf
    for c2w in orbit.c2w:
        seen = camera.project_world(means[:2900], c2w, orbit.K)
        off = (seen[:, :2] - 0.5).abs().amax(dim=-1)
        assert (seen[:, 2] > 0).all() and (off < 0.5).float().mean() > 0.98
        nearest = min(nearest, 0.5 - off.quantile(0.99).item())
    assert nearest < 0.15  # not far away either


@pytest.mark.parametrize("share", [0.002, 0.015, 0.04])
def test_a_few_floaters_do_not_move_an_orbit(share: float, generator: torch.Generator) -> None:
    """Opaque ones too, a thousand times as far away as the scene is wide."""
    means = torch.randn(4000, 3, generator=generator) * 0.4
    alone = circle_scene(gaussians(means, torch.full((4000,), 0.9)), 12)
    far = int(4000 * share)
    means[:far] *= 2000
    orbit = circle_scene(gaussians(means, torch.full((4000,), 0.9)), 12)
    torch.testing.assert_close(orbit.c2w, alone.c2w, rtol=0, atol=0.1)
    assert orbit.c2w[:, :3, 3].norm(dim=-1).mean() < 5


def test_a_wide_background_is_no_floater(generator: torch.Generator) -> None:
    """An object with a tenth of the opacity around it, twenty times as far."""
    means = torch.randn(4000, 3, generator=generator) * 0.4
    means[:400] = 8 * torch.nn.functional.normalize(means[:400], dim=-1)
    orbit = circle_scene(gaussians(means, torch.full((4000,), 0.9)), 12)
    assert orbit.c2w[:, :3, 3].norm(dim=-1).mean() > 8


@pytest.mark.parametrize("up", [(0.0, 0.0, 1.0), (0.6, 0.0, -0.8), (0.0, 1.0, 0.0)])
def test_an_orbit_stands_as_the_file_says(
    up: tuple[float, float, float], generator: torch.Generator
) -> None:
    scene = gaussians(torch.randn(500, 3, generator=generator), torch.ones(500))
    orbit = circle_scene(replace(scene, up=up), 12)
    sky = torch.tensor(up)
    assert (orbit.c2w[:, :3, 0] @ sky).abs().max() < 1e-5  # the horizon is level
    assert (-orbit.c2w[:, :3, 1] @ sky).min() > 0.9  # pictures are upright
    height = (orbit.c2w[:, :3, 3] - scene.means[0].mean(dim=0)) @ sky
    assert height.min() > 0.5  # seen from above
    named = circle_scene(replace(scene, up=up), 12, up="-y")
    assert (-named.c2w[:, 1, 1]).max() < -0.9  # what the user says goes first


def test_an_orbit_like_given_cameras(generator: torch.Generator) -> None:
    """Up is what cameras that tilt but do not roll have in common, from one side too."""
    scene = gaussians(torch.randn(500, 3, generator=generator), torch.ones(500))
    up = torch.nn.functional.normalize(torch.tensor([0.1, -0.9, -0.3]), dim=0)
    middle = scene.means[0].median(dim=0).values
    angles = torch.linspace(0, 1.5, 7)
    e1 = torch.nn.functional.normalize(torch.linalg.cross(up, torch.tensor([1.0, 0, 0])), dim=0)
    e2 = torch.linalg.cross(up, e1)
    eyes = middle + 3 * (
        angles.cos()[:, None] * e1 + angles.sin()[:, None] * e2 + 0.8 * up
    )  # looking down by 39 degrees
    c2w = se3.look_at(eyes, middle, up)
    assert (upward(c2w) @ up).acos().rad2deg() < 1
    ahead = torch.eye(4).repeat(5, 1, 1)
    assert torch.allclose(upward(ahead), torch.tensor([0.0, -1, 0]))
    K = torch.rand(7, 3, 3, generator=generator)
    orbit = circle_from(scene, 8, c2w, K)
    torch.testing.assert_close(orbit.c2w[0], c2w[0], rtol=0, atol=0.05)
    assert torch.equal(orbit.K, K[0]) and orbit.start == 0

    below = se3.look_at(middle + torch.tensor([0.01, 0.0, -3.0]), middle, e1)
    later = circle_from(scene, 8, torch.stack([below, c2w[3]]), K[:2], up="-z")
    assert later.start == 1 and torch.equal(later.K, K[1])
    with pytest.raises(UserError, match="look down"):
        circle_from(scene, 8, below[None], K[:1], up="-z")


def test_what_is_no_orbit() -> None:
    one = gaussians(torch.zeros(1, 3), torch.ones(1))
    assert torch.equal(axis("-x"), torch.tensor([-1.0, 0, 0]))
    for frames, up in ((0, None), (3, "w")):
        with pytest.raises(UserError, match=r"at least one picture|an axis of the world"):
            circle_scene(one, frames, up=up)
