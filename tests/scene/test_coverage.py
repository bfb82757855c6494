"""Context views by coverage and baseline, on trajectories whose right answer is known."""

import math

import pytest
import torch
from torch import Tensor

from pmsplat.geometry import se3
from pmsplat.scene.coverage import NARROWEST, choose_context, coverage, look_around
from pmsplat.scene.overlap import WIDEST, overlaps
from pmsplat.types import Cameras

AHEAD = torch.tensor([0.0, 0.0, 1.0])


def cameras_at(eyes: Tensor, targets: Tensor) -> Cameras:
    """Fields of view of 53 degrees; surfaces are taken to be at 2."""
    c2w = se3.look_at(eyes, targets, torch.tensor([0.0, -1.0, 0.0]))[None]
    K = torch.tensor([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]).expand(1, len(eyes), 3, 3)
    near = torch.ones(1, len(eyes))
    return Cameras(c2w, K, near, 4 * near)


def walk(count: int, step: float) -> Cameras:
    """Side by side, looking ahead."""
    eyes = torch.zeros(count, 3)
    eyes[:, 0] = step * torch.arange(count)
    return cameras_at(eyes, eyes + AHEAD)


def choose(cameras: Cameras, count: int) -> list[int]:
    return choose_context(look_around(cameras), overlaps(cameras), count)


def widest_angle(cameras: Cameras, views: list[int]) -> float:
    """Between the axes' points at depth 2 of the two outermost views, by plain trigonometry."""
    gap = (cameras.c2w[0, views[0], :3, 3] - cameras.c2w[0, views[-1], :3, 3]).norm().item()
    return math.atan2(gap, 2.0)


def test_coverage_of_two_shifted_cameras_has_a_closed_form() -> None:
    """0.5 aside at depth 2: of the 8 columns of each, 6 lie in both pictures, seen 9 to 14 degrees
    apart."""
    cameras = walk(2, 0.5)
    assert coverage(look_around(cameras), [0, 1]) == 0.75
    assert coverage(look_around(walk(2, 1e-3)), [0, 1]) == 0  # in both pictures, but no parallax


def test_a_sideways_walk_is_covered_with_parallax() -> None:
    cameras = walk(30, 0.05)
    two, four = choose(cameras, 2), choose(cameras, 4)
    assert NARROWEST < widest_angle(cameras, two) < WIDEST
    sight = look_around(cameras)
    assert coverage(sight, four) > coverage(sight, two) > coverage(sight, [two[0], two[0] + 1])
    assert len(set(four)) == 4 and four == sorted(four)


def test_forward_motion_takes_views_that_are_apart() -> None:
    """What is ahead is seen by all, from almost one direction: neighbours give no depth."""
    eyes = torch.zeros(20, 3)
    eyes[:, 2] = 0.05 * torch.arange(20)
    cameras = cameras_at(eyes, eyes + AHEAD)
    first, last = choose(cameras, 2)
    sight = look_around(cameras)
    assert last - first >= 5
    assert coverage(sight, [first, last]) > 3 * coverage(sight, [9, 10])


def test_an_orbit_is_covered_by_partners() -> None:
    """36 views around a thing, 10 degrees apart: four views are two pairs, or a chain."""
    angle = torch.arange(36) * math.radians(10)
    eyes = 2 * torch.stack([angle.sin(), 0 * angle, angle.cos()], dim=1)
    cameras = cameras_at(eyes, torch.zeros(3))
    chosen = choose(cameras, 4)
    for view in chosen:
        gaps = [min((view - other) % 36, (other - view) % 36) for other in chosen if other != view]
        assert min(gaps) * 10 < math.degrees(WIDEST)
    spread = [0, 9, 18, 27]  # evenly, and nothing is seen twice
    sight = look_around(cameras)
    assert coverage(sight, spread) == 0 < 0.15 < coverage(sight, chosen)


def test_a_tripod_covers_nothing_and_is_no_error() -> None:
    angle = torch.linspace(0, 0.5, 6)
    ahead = torch.stack([angle.sin(), torch.zeros(6), angle.cos()], dim=-1)
    cameras = cameras_at(torch.zeros(6, 3), ahead)
    chosen = choose(cameras, 3)
    assert len(set(chosen)) == 3 and coverage(look_around(cameras), chosen) == 0


def test_a_start_on_a_tripod_is_passed_over() -> None:
    eyes = torch.zeros(20, 3)
    eyes[12:, 0] = 0.1 * torch.arange(1, 9)
    chosen = choose(cameras_at(eyes, eyes + AHEAD), 3)
    assert sum(view < 12 for view in chosen) <= 1


@pytest.mark.parametrize(("count", "rooms"), [(2, [2, 0]), (3, [3, 0]), (4, [2, 2])])
def test_two_rooms_get_two_views_each_or_none(count: int, rooms: list[int]) -> None:
    """The larger room first; one view alone in the other would have no depth."""
    one, other = walk(12, 0.08), walk(8, 0.08)
    away = other.c2w.clone()
    away[..., 0, 3] += 100
    both = Cameras.joined([one, Cameras(away, other.K, other.near, other.far)])
    chosen = choose(both, count)
    assert [sum(v < 12 for v in chosen), sum(v >= 12 for v in chosen)] == rooms


def test_the_order_of_photos_does_not_matter(generator: torch.Generator) -> None:
    eyes = torch.randn(15, 3, generator=generator) * torch.tensor([0.8, 0.1, 0.2])
    cameras = cameras_at(eyes, eyes + AHEAD)
    order = torch.randperm(15, generator=generator)
    chosen = choose(cameras, 4)
    assert sorted(order[choose(cameras.at(order), 4)].tolist()) == chosen
