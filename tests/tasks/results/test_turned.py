"""Cameras that only turn, whatever places and depths the input and the model claim."""

import math

import pytest
import torch

from pmsplat.data import synthetic
from pmsplat.scene import chunk_scene
from pmsplat.scene.bounds import RangeSource
from pmsplat.tasks.results.report import Given, Report, examine, make_report
from pmsplat.types import Cameras, Views

GIVEN = Given(3, (96, 128), 1.0, RangeSource.CAMERAS)
FOCAL = 1.2  # of the width


def pattern(rays: torch.Tensor) -> torch.Tensor:
    """What a sky of stripes and checks shows along rays: a function of their directions alone."""
    right, down = (rays[..., i] / rays[..., 2] for i in (0, 1))
    waves = [(30, 7), (-11, 24), (17, -29), (5, 41), (44, 3)]
    value = torch.stack([torch.sin(a * right + b * down + a * b) for a, b in waves]).sum(dim=0)
    return (0.5 + value / 10).expand(3, *right.shape)


def tripod(step: float, angles: tuple[float, ...] = (-5.0, 0.0, 5.0)) -> Views:
    """Three photos of that sky; the cameras claim to be `step` apart."""
    height, width = 96, 128
    K = torch.tensor([[FOCAL, 0, 0.5], [0, FOCAL * width / height, 0.5], [0, 0, 1]])
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    rays = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ K.inverse().T
    poses, photos = [], []
    for i, angle in enumerate(map(math.radians, angles)):
        pose = torch.eye(4)
        pose[0, 0] = pose[2, 2] = math.cos(angle)
        pose[0, 2], pose[2, 0] = math.sin(angle), -math.sin(angle)
        pose[0, 3] = i * step
        poses.append(pose)
        photos.append(pattern(rays @ pose[:3, :3].T))
    count = len(angles)
    cameras = Cameras(
        torch.stack(poses)[None],
        K.expand(1, count, 3, 3),
        torch.full((1, count), 0.5),
        torch.full((1, count), 50.0),
    )
    names = (tuple(f"{i}.jpg" for i in range(count)),)
    return Views(torch.stack(photos)[None], cameras, names=names)


def report(views: Views, depth: torch.Tensor) -> Report:
    return make_report([examine(views, depth)], GIVEN)


def test_photos_of_one_place_are_told_apart_from_wrong_cameras() -> None:
    """The places are noise: by them the depth has parallax, and the photos have none."""
    found = report(tripod(step=0.2), torch.full((1, 3, 96, 128), 1.0))
    assert found.parallax is not None and found.parallax > 10
    assert found.turned is not None and found.turned > 0.9
    (finding,) = found.findings
    assert "only turned on the spot" in finding.problem and "farther apart" in finding.remedy


def test_it_is_said_once() -> None:
    (finding,) = report(tripod(step=0.0), torch.full((1, 3, 96, 128), 1.0)).findings
    assert "almost from one place" in finding.problem


@pytest.mark.parametrize("wrong", [False, True])
def test_photos_with_depth_do_not_match_by_turning(wrong: bool) -> None:
    views = chunk_scene(synthetic.scene("room-turned", 8, (96, 128))).views([0, 4, 7])
    assert views.depth is not None
    found = report(views, views.depth.flip(1).contiguous() if wrong else views.depth)
    assert found.turned is not None and found.turned < 0.4
    assert not any("turned" in finding.problem for finding in found.findings)
