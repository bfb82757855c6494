"""Errors of poses known by hand."""

import math

import pytest
import torch

from pmsplat.evaluate import poses
from pmsplat.geometry import se3


def turn(degrees: float, axis: int = 1) -> torch.Tensor:
    twist = torch.zeros(6, dtype=torch.float64)
    twist[3 + axis] = math.radians(degrees)
    return se3.exp(twist)


def row(*places: list[float]) -> torch.Tensor:
    """Cameras that look along +z."""
    c2w = torch.eye(4, dtype=torch.float64).repeat(len(places), 1, 1)
    c2w[:, :3, 3] = torch.tensor(places, dtype=torch.float64)
    return c2w


def test_errors_of_two_cameras() -> None:
    given = row([0, 0, 0], [1, 0, 0])
    found = row([5, 5, 5], [5 + 3 * math.cos(0.1), 5 + 3 * math.sin(0.1), 5])
    found[1] = found[1] @ turn(4)
    errors = poses.pose_errors(found, given)
    assert errors["rotation_deg"] == pytest.approx(4)
    assert errors["translation_deg"] == pytest.approx(math.degrees(0.1))
    worse = math.degrees(0.1)
    for limit in (5, 10, 20):
        assert errors[f"auc_{limit}"] == pytest.approx(max(0, 1 - worse / limit))


def test_errors_are_those_of_all_pairs_and_of_no_frame() -> None:
    given = row([0, 0, 0], [1, 0, 0], [2, 0, 0])
    found = given.clone()
    found[0] = found[0] @ turn(9)  # in its pairs the others lie elsewhere, too
    errors = poses.pose_errors(turn(70, 0) @ found, given)
    assert errors["rotation_deg"] == pytest.approx(6)
    assert errors["auc_10"] == pytest.approx((0.1 + 0.1 + 1) / 3)


def test_a_direction_that_was_not_found_is_wrong_and_one_that_is_not_there_not_measured() -> None:
    given = row([0, 0, 0], [1, 0, 0])
    still = row([1, 0, 0], [1, 0, 0])
    assert poses.pose_errors(still, given)["translation_deg"] == 180
    assert poses.pose_errors(given, still) == {}
