"""What every teacher's answer goes through, and how small answers come back up."""

from typing import Any

import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.foundation.teachers import _network, given, query_teacher
from pmsplat.geometry import camera
from pmsplat.types import Pointmap, Views
from tests.foundation.teachers.scene import known_views, world_points


class Answering:
    """A teacher with one answer for everything."""

    name, revision, posed = "parrot", "1", False

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, views: Views) -> Pointmap:
        return self.answer


def test_a_trainers_autocast_does_not_reach_the_teacher(generator: torch.Generator) -> None:
    views = known_views(20, 30, generator)
    teacher = given.build(given.Config(blur=1.0, downsample=2))
    expected = query_teacher(teacher, views)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(query_teacher(teacher, views).points, expected.points)


def test_gradients_end_at_the_teacher(generator: torch.Generator) -> None:
    views = known_views(14, 14, generator)
    points = world_points(views).requires_grad_()
    answer = query_teacher(Answering(Pointmap(points, points[..., 0].exp())), views)
    assert not answer.points.requires_grad and not answer.confidence.requires_grad


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (torch.zeros(2, 3, 14, 14, 3), "type Tensor from the teacher 'parrot'; wanted a pmsplat.P"),
        ((torch.zeros(2, 3, 7, 14, 3), torch.ones(2, 3, 7, 14)), r"points of shape \(2, 3, 7, 14,"),
        ((torch.zeros(2, 3, 14, 14, 3), None), "confidence of None from .*; wanted .2, 3, 14, 14."),
        ((torch.zeros(2, 3, 14, 14, 3), torch.ones(2, 3, 14, 14, 1)), r"confidence of shape \(2, "),
    ],
)
def test_an_answer_that_is_none_is_told(
    answer: Any, words: str, generator: torch.Generator
) -> None:
    views = known_views(14, 14, generator)
    if isinstance(answer, tuple):  # past the check of shapes that these tests run under
        parts, answer = answer, object.__new__(Pointmap)
        for name, part in zip(("points", "confidence"), parts, strict=True):
            object.__setattr__(answer, name, part)
    with pytest.raises(UserError, match=words):
        query_teacher(Answering(answer), views)


def test_a_plane_comes_back_up_without_a_shift(generator: torch.Generator) -> None:
    """Depth that rises along x, made at 252 columns for 256: no bias with pixel centres matched;
    the published way, kept for pointmaps alone, has half a pixel."""
    small, full = 252, 256
    slope = 1 + (torch.arange(small) + 0.5) / small
    maps = slope.expand(1, 1, 4, small)[..., None]
    expected = 1 + (torch.arange(full) + 0.5) / full
    errors = {
        floor: (_network.restore_size(maps, 4, full, floor)[0, 0, 0, :, 0] - expected).mean() * full
        for floor in (False, True)
    }
    assert abs(errors[False]) < 0.02 and errors[True] == pytest.approx(-0.5, abs=0.05)
    views = known_views(28, 42, generator)
    assert views.depth is not None
    points = _network.unproject_depth(views.depth, views.cameras.c2w, views.cameras, 28, 42)
    expected = camera.unproject_depth(views.depth, views.cameras.c2w, views.cameras.K)
    torch.testing.assert_close(points, expected)
