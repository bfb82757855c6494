from dataclasses import replace

import pytest
import torch

from pmsplat import registry
from pmsplat.errors import UserError
from pmsplat.foundation.teachers.given import Config, build
from pmsplat.types import Views
from tests.foundation.teachers.scene import known_views, world_points

WORSE = Config(blur=1.5, downsample=3, noise=0.05, holes=0.2)


def test_exact_depth_is_unprojected_to_the_world(generator: torch.Generator) -> None:
    views = known_views(20, 30, generator)
    answer = build(Config())(views)
    torch.testing.assert_close(answer.points, world_points(views), atol=0, rtol=0)
    assert (answer.confidence == 1).all()


def test_nothing_is_known_where_the_data_knows_nothing(generator: torch.Generator) -> None:
    views = known_views(20, 30, generator)
    assert views.depth is not None
    views.depth[:, 1, 3:9, 4:11] = 0
    views.depth[0, 2, 0, 0] = torch.nan
    for config in (Config(), WORSE):
        answer = build(config)(views)
        assert not answer.mask[:, 1, 3:9, 4:11].any() and not answer.mask[0, 2, 0, 0]
        assert answer.points.isfinite().all()


def test_holes_are_as_large_as_asked_and_in_blobs(generator: torch.Generator) -> None:
    views = known_views(64, 96, generator)
    mask = build(Config(holes=0.3))(views).mask
    share = 1 - mask.float().mean(dim=(2, 3))
    torch.testing.assert_close(share, torch.full_like(share, 0.3), atol=1e-3, rtol=0)
    edges = (mask[..., 1:] != mask[..., :-1]).float().mean()
    assert edges < 0.1, "pixels drawn one by one would change in 0.42 of the places"


def test_noise_is_relative_smooth_and_of_the_size_asked(generator: torch.Generator) -> None:
    views = known_views(64, 96, generator)
    found = _depth(Config(noise=0.04), views)
    assert views.depth is not None
    error = (found / views.depth).log()
    assert error.std() == pytest.approx(0.04, rel=0.05)
    assert error.diff(dim=-1).std() < 0.02, "white noise would have 0.057"


@pytest.mark.parametrize("config", [Config(blur=2.0), Config(downsample=4)])
def test_what_smooths_makes_points_between_foreground_and_background(
    config: Config, generator: torch.Generator
) -> None:
    """On a step from 1 to 2 there is depth in between, near it and nowhere else."""
    views = known_views(32, 48, generator)
    step = torch.ones(2, 3, 32, 48)
    step[..., 24:] = 2
    found = _depth(config, replace(views, depth=step))
    between = (found > 1.01) & (found < 1.99)
    assert between[..., 22:26].any()
    assert not between[..., :16].any() and not between[..., 32:].any()
    torch.testing.assert_close(found.mean(), step.mean(), atol=0.02, rtol=0)


def test_a_constant_depth_stays_constant_beside_holes_and_edges(generator: torch.Generator) -> None:
    """What is not known does not leak into what is."""
    views = known_views(21, 33, generator)
    flat = torch.full((2, 3, 21, 33), 4.0)
    flat[..., 5:12, 8:20] = 0
    found = _depth(Config(blur=2.0, downsample=4), replace(views, depth=flat))
    torch.testing.assert_close(found, flat, atol=1e-5, rtol=0)


def test_a_scene_is_made_worse_alike_whatever_shares_its_batch(generator: torch.Generator) -> None:
    views = known_views(24, 36, generator)
    teacher = build(WORSE)
    whole, alone = teacher(views), teacher(views.map(lambda tensor: tensor[1:]))
    assert torch.equal(whole.points[1:], alone.points)
    other = build(replace(WORSE, seed=1))(views)
    assert not torch.equal(whole.points, other.points)
    assert teacher.revision != build(replace(WORSE, seed=1)).revision


def test_what_it_cannot_do_is_told(generator: torch.Generator) -> None:
    views = known_views(20, 30, generator)
    with pytest.raises(UserError, match="views without depth; wanted data with depth"):
        build(Config())(replace(views, depth=None))
    with pytest.raises(UserError, match=r"holes=1,"):
        registry.build("foundation.teachers", "given", {"holes": 1.0})


def _depth(config: Config, views: Views) -> torch.Tensor:
    """The depth that a teacher's points have in their own cameras."""
    answer = build(config)(views)
    c2w = views.cameras.c2w[..., None, None, :, :]
    offset = answer.points - c2w[..., :3, 3]
    return (offset * c2w[..., :3, 2]).sum(-1)
