"""Camera paths: rigid, through the given cameras, at constant speed, closed where promised."""

import math
from dataclasses import replace

import pytest
import torch

from pmsplat.geometry import gaussian, se3
from pmsplat.types import Cameras
from pmsplat.view import trajectory
from tests.scenes import random_cameras


def circle(count: int, radius: float = 2.0, turn: float = 2 * math.pi) -> Cameras:
    """Cameras on a circle around the origin, looking at it."""
    angle = torch.linspace(0, turn, count, dtype=torch.float64)
    eye = radius * torch.stack([angle.sin(), torch.zeros_like(angle), -angle.cos()], dim=-1)
    c2w = se3.look_at(eye, torch.zeros(3).double(), torch.tensor([0, -1, 0]).double())[None]
    K = torch.eye(3, dtype=torch.float64).expand(1, count, 3, 3)
    near = torch.ones(1, count, dtype=torch.float64)
    return Cameras(c2w, K, near, 10 * near)


@pytest.mark.parametrize("keys", [2, 3, 7])
def test_passes_through_its_cameras(generator: torch.Generator, keys: int) -> None:
    given = random_cameras(keys, generator, dtype=torch.float64)
    path = trajectory.through(given, 4001)
    assert se3.is_rigid(path.c2w, tolerance=1e-9).all()
    gap = (path.c2w[:, :, None] - given.c2w[:, None]).flatten(3).abs().amax(-1)  # 1 frame key
    nearest = gap.amin(dim=1)
    assert nearest.max() < 2e-3  # half a frame of way
    assert gap[0, 0, 0] < 1e-9 and gap[0, -1, -1] < 1e-9
    order = gap[0].argmin(dim=0)
    assert (order.diff() > 0).all()
    for name in ("K", "near", "far"):
        values, ends = getattr(path, name), getattr(given, name)
        torch.testing.assert_close(values[:, [0, -1]], ends[:, [0, -1]])


def test_constant_speed_on_a_straight_line_with_uneven_keys() -> None:
    given = circle(4)
    c2w = torch.eye(4, dtype=torch.float64).repeat(1, 4, 1, 1)
    c2w[0, :, 0, 3] = torch.tensor([0.0, 0.1, 2.0, 2.5])
    path = trajectory.through(replace(given, c2w=c2w), 26)
    expected = torch.linspace(0, 2.5, 26, dtype=torch.float64)
    torch.testing.assert_close(path.c2w[0, :, 0, 3], expected, rtol=0, atol=2e-3)
    assert torch.equal(path.c2w[..., :3, :3], c2w[:, :1, :3, :3].expand(1, 26, 3, 3))


def test_a_circle_stays_nearly_a_circle() -> None:
    path = trajectory.through(circle(13), 200)
    radius = path.c2w[0, :, :3, 3].norm(dim=-1)
    inner = radius[20:-20]
    assert (inner - 2).abs().max() < 0.01  # chords would be 0.07 inside
    step = (path.c2w[0, 1:, :3, 3] - path.c2w[0, :-1, :3, 3]).norm(dim=-1)
    assert step.max() / step.min() < 1.05


def test_still_and_turning_cameras() -> None:
    one = circle(5).at([2])
    assert torch.equal(trajectory.through(one, 3).c2w, one.c2w.expand(1, 3, 4, 4))
    same = circle(5).at([2, 2, 2])
    torch.testing.assert_close(trajectory.through(same, 5).c2w, one.c2w.expand(1, 5, 4, 4))
    turned = circle(3, turn=1.0)
    c2w = turned.c2w.clone()
    c2w[..., :3, 3] = 0
    path = trajectory.through(replace(turned, c2w=c2w), 11)
    quats = gaussian.rotation_to_quat(path.c2w[0, :, :3, :3])
    angles = 2 * (quats[1:] * quats[:-1]).sum(-1).clamp(max=1).acos()
    torch.testing.assert_close(angles, torch.full_like(angles, 0.1), rtol=1e-2, atol=0)


def test_around_a_point() -> None:
    eye, point, up = (torch.tensor(x).double() for x in ([3.0, 1, 2], [1.0, 1, 1], [0.0, 3, 4]))
    c2w = trajectory.around(eye, point, up, 24)
    assert se3.is_rigid(c2w, tolerance=1e-9).all()
    arms = c2w[:, :3, 3] - point
    torch.testing.assert_close(c2w[0, :3, 3], eye)
    torch.testing.assert_close(c2w[:, :3, 2], -arms / math.sqrt(5))  # they all look at it
    torch.testing.assert_close(arms @ up, (arms[0] @ up).expand(24))  # at one height
    assert (c2w[:, :3, 0] @ up).abs().max() < 1e-9 and (c2w[:, :3, 1] @ up < 0).all()
    steps = (c2w.roll(-1, 0) - c2w)[:, :3, 3].norm(dim=-1)
    torch.testing.assert_close(steps, steps[:1].expand(24))


def test_stabilising_removes_tremble_and_keeps_the_way(generator: torch.Generator) -> None:
    smooth = trajectory.through(circle(13, turn=3.0), 120)
    noise = torch.randn(1, 120, 4, generator=generator, dtype=torch.float64)
    tremble = gaussian.quat_to_rotation(torch.tensor([1.0, 0, 0, 0]) + 0.01 * noise)
    shaken_c2w = smooth.c2w @ se3.compose(tremble, 0.02 * noise[..., :3])
    path = trajectory.stabilize(replace(smooth, c2w=shaken_c2w), width=4.0)
    assert se3.is_rigid(path.c2w, tolerance=1e-9).all()

    def jerk(c2w: torch.Tensor) -> torch.Tensor:
        return c2w.diff(dim=1).diff(dim=1).norm()

    def distance(c2w: torch.Tensor) -> torch.Tensor:
        return (c2w - smooth.c2w).square().mean().sqrt()

    assert jerk(path.c2w) < 0.1 * jerk(shaken_c2w)
    assert distance(path.c2w) < 0.6 * distance(shaken_c2w)
    torch.testing.assert_close(path.c2w[:, [0, -1]], shaken_c2w[:, [0, -1]], rtol=0, atol=1e-3)


def test_stabilising_a_steady_path_changes_nothing() -> None:
    given = circle(4)
    c2w = torch.eye(4, dtype=torch.float64).repeat(1, 30, 1, 1)
    c2w[0, :, 0, 3] = torch.linspace(0, 3, 30).double()
    line = replace(given.at([0] * 30), c2w=c2w)
    torch.testing.assert_close(trajectory.stabilize(line, 5.0).c2w, c2w)
    assert trajectory.stabilize(line.at([0]), 5.0).c2w.shape == (1, 1, 4, 4)


def test_stabilising_does_not_mind_the_sign_of_quaternions() -> None:
    """A full turn passes the rotation where the quaternion's sign flips."""
    path = trajectory.through(circle(25), 200)
    steady = trajectory.stabilize(path, 2.0)
    assert (steady.c2w - path.c2w).abs().max() < 0.02
