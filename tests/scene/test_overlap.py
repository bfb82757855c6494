"""Which views are chosen: they overlap, they are spread, and what is compared was seen."""

import math

import torch

from pmsplat.geometry import se3
from pmsplat.scene.overlap import ENOUGH, group_views, held_out, overlaps
from pmsplat.types import Cameras


def cameras_at(eyes: torch.Tensor, targets: torch.Tensor) -> Cameras:
    c2w = se3.look_at(eyes, targets, torch.tensor([0.0, -1.0, 0.0]))[None]
    K = torch.tensor([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]).expand(1, len(eyes), 3, 3)
    near = torch.ones(1, len(eyes))
    return Cameras(c2w, K, near, 4 * near)  # surfaces are taken to be at 2


def walk(count: int, step: float) -> Cameras:
    """Cameras side by side that look ahead."""
    eyes = torch.zeros(count, 3)
    eyes[:, 0] = step * torch.arange(count)
    return cameras_at(eyes, eyes + torch.tensor([0.0, 0.0, 1.0]))


def test_overlap_of_shifted_cameras_has_a_closed_form() -> None:
    """At depth 2 a camera sees 2 across; 0.5 aside loses a quarter (two of eight columns)."""
    overlap = overlaps(walk(4, 0.5))
    assert torch.equal(overlap[0, :3], torch.tensor([1.0, 0.75, 0.5]))
    assert overlap[0, 3] == 0  # a quarter is in the picture, but seen from 41 degrees aside
    assert torch.equal(overlap, overlap.T)


def test_opposite_and_averted_cameras_do_not_overlap() -> None:
    eyes = torch.tensor([[0.0, 0, -2], [0, 0, 2], [0, 0, -2]])
    targets = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0, -4]])
    overlap = overlaps(cameras_at(eyes, targets))
    assert overlap[0, 1] == 0  # the same point from behind
    assert overlap[0, 2] == 0  # the other way


def test_held_out_views_saw_what_the_context_saw() -> None:
    cameras = walk(40, 0.1)
    overlap = overlaps(cameras)
    held = held_out(overlap, [10, 14], 100)
    assert held == [i for i in range(40) if i not in (10, 14) and overlap[i, [10, 14]].max() >= 0.5]
    few = held_out(overlap, [10, 14], 5)
    assert len(few) == 5 and few[0] == held[0] and few[-1] == held[-1]


def test_turning_on_the_spot_loses_overlap() -> None:
    angle = torch.tensor([0.0, 0.2, 0.4, 1.5])
    ahead = torch.stack([angle.sin(), torch.zeros(4), angle.cos()], dim=-1)
    overlap = overlaps(cameras_at(torch.zeros(4, 3), ahead))[0]
    assert (overlap.diff() < 0).all() and overlap[3] == 0
    assert math.isclose(overlap[0].item(), 1)


def test_groups_give_every_view_depth_once() -> None:
    overlap = overlaps(walk(30, 0.1))
    groups = group_views(overlap, 4)
    assert sorted(i for group in groups for i in group.fresh) == list(range(30))
    for group in groups:
        assert group.views == sorted(set(group.views)) and len(group.views) == 4
        assert set(group.fresh) <= set(group.views)
        first = group.fresh[0]  # what the others are added to
        assert overlap[first, group.views].min() >= ENOUGH
        assert group.views[-1] - group.views[0] >= 7  # parallax, not the very next photos
    assert len(groups) == 8 and groups[0].fresh == groups[0].views


def test_groups_without_overlap_take_what_shares_most() -> None:
    overlap = torch.eye(5)
    overlap[0, 3] = overlap[3, 0] = 0.3
    groups = group_views(overlap, 2)
    assert groups[0].views == [0, 3] and groups[3].views == [0, 3]
    assert [group.fresh for group in groups] == [[0], [1], [2], [3], [4]]
    assert all(len(group.views) == 2 for group in group_views(overlap, 4))


def test_copies_of_a_photo_are_no_group_of_their_own() -> None:
    """Photos 0, 1 and 2 are one photo; 3 shares half with it, 4 all of it from another place."""
    overlap = torch.eye(5)
    overlap[:3, :3] = 1
    overlap[:3, 3] = overlap[3, :3] = 0.5
    assert [group.views for group in group_views(overlap[:4, :4], 4)] == [[0, 1, 2, 3], [0, 3]]
    pairs = group_views(overlap[:4, :4], 2)
    assert [group.views for group in pairs] == [[0, 3], [1, 3], [2, 3], [0, 3]]
    assert [group.fresh for group in pairs] == [[0], [1], [2], [3]]
    overlap[:3, 4] = overlap[4, :3] = 0.9
    assert [group.views for group in group_views(overlap, 3)] == [[0, 1, 4], [0, 2, 4], [0, 3]]


def test_groups_grow_only_by_views_that_see_the_same() -> None:
    """Two rooms: three photos of one, two of the other."""
    overlap = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2))
    groups = group_views(overlap, 4)
    assert [group.views for group in groups] == [[0, 1, 2], [3, 4]]
    assert all(group.fresh == group.views for group in groups)


def test_the_last_group_borrows_views_that_have_depth() -> None:
    groups = group_views(torch.ones(5, 5), 3)
    assert [len(group.fresh) for group in groups] == [3, 2]
    assert len(groups[1].views) == 3
