"""Errors of poses known by hand, and the search for cameras in scenes where they are known."""

import math
from dataclasses import replace

import pytest
import torch

from pmsplat.evaluate import metrics, poses
from pmsplat.evaluate.baselines import pixel_splats
from pmsplat.geometry import gaussian, se3
from pmsplat.render import rasterize
from pmsplat.scene import open_scene
from pmsplat.types import Cameras, Gaussians, Views

SIZE = (40, 56)


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


@pytest.fixture(scope="module")
def furnished(room: str) -> tuple[Gaussians, Views]:
    """Splats of two exact depth maps of a room, and their pictures from three places between."""
    scene = open_scene(room)
    context = scene.views([0, 4], SIZE)
    assert context.depth is not None
    gaussians = pixel_splats(context, context.depth)
    cameras = scene.views([1, 2, 3], SIZE).cameras
    return gaussians, Views(rasterize(gaussians, cameras, SIZE, "cpu").color, cameras)


def disturb(cameras: Cameras, degrees: float, shift: float, seed: int = 0) -> Cameras:
    """Each camera turned by so much and moved by so much, in random directions."""
    drawn = torch.randn(2, *cameras.near.shape, 3, generator=torch.Generator().manual_seed(seed))
    moves, turns = torch.nn.functional.normalize(drawn, dim=-1)
    twists = torch.cat([shift * moves, math.radians(degrees) * turns], dim=-1)
    return replace(cameras, c2w=cameras.c2w @ se3.exp(twists))


def offsets(cameras: Cameras, others: Cameras) -> tuple[torch.Tensor, torch.Tensor]:
    """Degrees and distances between cameras, [view]."""
    apart = (se3.invert(others.c2w.double()) @ cameras.c2w.double())[0]
    quat = gaussian.rotation_to_quat(apart[:, :3, :3])
    angle = 2 * torch.atan2(quat[:, 1:].norm(dim=-1), quat[:, 0])
    return angle.rad2deg(), apart[:, :3, 3].norm(dim=-1)


def test_the_search_finds_cameras_again(furnished: tuple[Gaussians, Views]) -> None:
    gaussians, views = furnished
    depth = rasterize(gaussians, views.cameras, SIZE, "cpu").depth.median().item()
    start = disturb(views.cameras, 0.5, 0.01 * depth)
    found = poses.search_cameras(gaussians, replace(views, cameras=start), 100, "cpu")
    for before, after in zip(
        offsets(start, views.cameras), offsets(found, views.cameras), strict=True
    ):
        assert (after < 0.1 * before).all()
    drawn = [rasterize(gaussians, c, SIZE, "cpu").color for c in (start, found)]
    before, after = (metrics.psnr(color, views.images).min() for color in drawn)
    assert after > before + 10
