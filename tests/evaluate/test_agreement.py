"""Whether depths and photos fit each other: right ones do, wrong poses, scales, photos do not."""

import math
from dataclasses import replace

import pytest
import torch

from pmsplat.data import synthetic
from pmsplat.evaluate import agreement
from pmsplat.evaluate.agreement import join_agreements, measure_agreement
from pmsplat.geometry.gaussian import quat_to_rotation
from pmsplat.scene import chunk_scene
from pmsplat.tasks.results.report import CONSISTENT, MATCH
from pmsplat.types import Cameras, Views


@pytest.fixture(scope="module")
def room() -> Views:
    """Two views of a procedural room, 35 cm apart, with exact depth."""
    return chunk_scene(synthetic.scene("room-agreement", 8, (96, 128))).views([0, 7])


def wall(shift: float, generator: torch.Generator, views: int = 2) -> Views:
    """A wall at z = 4 before cameras side by side, of 20x40 pixels; the texture is that of the
    wall, so photos match exactly where `shift` is whole pixels."""
    width, moved = 40, round(shift * 10)  # pixels: 4 are seen across 40 of them
    texture = 0.8 * torch.rand(1, 3, 20, width + (views - 1) * moved, generator=generator)
    photos = [texture[..., i * moved : i * moved + width] for i in range(views)]
    c2w = torch.eye(4).repeat(1, views, 1, 1)
    c2w[0, :, 0, 3] = shift * torch.arange(views)
    K = torch.tensor([[1.0, 0, 0.5], [0, 2, 0.5], [0, 0, 1]]).expand(1, views, 3, 3)
    ends = torch.ones(1, views)
    return Views(torch.stack(photos, dim=1), Cameras(c2w, K, ends, 9 * ends))


def test_a_wall_has_closed_forms(generator: torch.Generator) -> None:
    """A camera sees 4 across at z = 4; 1 aside loses a quarter; rays meet near atan(1/4)."""
    views = wall(1.0, generator)
    found = measure_agreement(views, torch.full((1, 2, 20, 40), 4.0))
    assert found.shares == (0.75, 0.75) and found.points == 2 * 20 * 30
    assert found.geometric == 1 and found.photometric > 0.95  # windows are cut at borders
    assert abs(found.unmoved) < 0.2
    assert math.degrees(math.atan(0.25)) * 0.9 < found.angle < math.degrees(math.atan(0.25))


def test_what_is_hidden_does_not_count(generator: torch.Generator) -> None:
    """The second view shows a near board on its left half: it hides the wall there."""
    depth = torch.full((1, 2, 20, 40), 4.0)
    depth[0, 1, :, :20] = 2.0
    found = measure_agreement(wall(1.0, generator), depth)
    # Columns 30 to 40 of the first; the board, which the first sees before its wall; 20 to 30.
    assert found.points == 20 * (10 + 20 + 10)
    assert found.geometric == 0.5


def test_no_depth_and_no_overlap(generator: torch.Generator) -> None:
    views = wall(1.0, generator)
    nothing = measure_agreement(views, torch.zeros(1, 2, 20, 40))
    assert nothing.points == 0 and nothing.shares == (0, 0) and math.isnan(nothing.photometric)
    far = replace(views, cameras=views.cameras.scaled(100.0))
    assert measure_agreement(far, torch.full((1, 2, 20, 40), 4.0)).points == 0


def test_all_pairs_at_once_or_view_by_view(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = wall(0.4, generator, views=4)
    depth = 4 + 0.3 * torch.rand(1, 4, 20, 40, generator=generator)
    together = measure_agreement(views, depth)
    monkeypatch.setattr(agreement, "AT_ONCE", 1)
    one_by_one = measure_agreement(views, depth)
    assert one_by_one.shares == pytest.approx(together.shares)
    assert one_by_one.photometric == pytest.approx(together.photometric)
    assert one_by_one.geometric == together.geometric and one_by_one.angle == together.angle


def test_exposure_does_not_matter(generator: torch.Generator) -> None:
    views = wall(1.0, generator)
    gain = torch.tensor([1.0, 0.4])[:, None, None, None]
    darker = replace(views, images=views.images * gain)
    depth = torch.full((1, 2, 20, 40), 4.0)
    assert measure_agreement(darker, depth).photometric == pytest.approx(
        measure_agreement(views, depth).photometric, abs=1e-4
    )


def test_right_depth_of_a_room_passes_the_limits(room: Views) -> None:
    assert room.depth is not None
    found = measure_agreement(room, room.depth)
    assert found.geometric > 0.9 > CONSISTENT
    assert found.photometric > 0.7 > MATCH and found.photometric > found.unmoved + 0.3
    assert min(found.shares) > 0.5


@pytest.mark.parametrize("fault", ["pose", "far", "near", "photos"])
def test_deliberate_faults_of_a_room_do_not(room: Views, fault: str) -> None:
    assert room.depth is not None
    views, depth = room, room.depth
    if fault == "pose":  # turned by 3 degrees
        c2w = room.cameras.c2w.clone()
        half = math.radians(1.5)
        turn = quat_to_rotation(torch.tensor([math.cos(half), 0, math.sin(half), 0]))
        c2w[0, 1, :3, :3] = c2w[0, 1, :3, :3] @ turn
        views = replace(room, cameras=replace(room.cameras, c2w=c2w))
    elif fault == "photos":  # in another order than their cameras
        views = replace(room, images=room.images.flip(1))
    else:
        depth = depth * {"far": 2.0, "near": 0.6}[fault]
    assert measure_agreement(views, depth).photometric < MATCH


def test_noise_contradicts_itself(room: Views, generator: torch.Generator) -> None:
    assert room.depth is not None
    noise = 1 + 0.1 * torch.randn(room.depth.shape, generator=generator)
    assert measure_agreement(room, room.depth * noise).geometric < CONSISTENT


def test_groups_count_by_their_points(generator: torch.Generator) -> None:
    views, depth = wall(1.0, generator), torch.full((1, 2, 20, 40), 4.0)
    right, wrong = measure_agreement(views, depth), measure_agreement(views, 0 * depth)
    joined = join_agreements([right, wrong, right])
    assert joined.shares == right.shares + wrong.shares + right.shares
    assert joined.points == 2 * right.points
    assert joined.photometric == pytest.approx(right.photometric)
    assert math.isnan(join_agreements([wrong]).angle)
