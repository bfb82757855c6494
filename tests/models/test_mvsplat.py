from dataclasses import replace

import pytest
import torch

from pmsplat.geometry import camera
from tests.models.tiny import shaken, tiny, views


@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_view_hears_of_every_other(count: int, generator: torch.Generator) -> None:
    model, given = shaken(tiny("mvsplat")), views(generator, count)
    changed = given.images.clone()
    changed[:, -1] = torch.rand(3, *given.size, generator=generator)
    with torch.no_grad():
        before, after = model(given), model(replace(given, images=changed))
    moved = (1 / after.depths[-1] - 1 / before.depths[-1]).abs().amax((0, 2, 3))
    assert moved.shape == (count,) and (moved > 1e-5).all()


def test_the_order_of_the_other_views_changes_nothing(generator: torch.Generator) -> None:
    model, given = shaken(tiny("mvsplat")), views(generator, 4)
    with torch.no_grad():
        found, moved = model(given), model(given.at([0, 3, 1, 2]))
    torch.testing.assert_close(
        1 / moved.depths[-1][:, 0], 1 / found.depths[-1][:, 0], atol=1e-4, rtol=1e-3
    )
    pixels = given.size[0] * given.size[1]
    for part in ("scales", "opacities", "sh"):
        a, b = (getattr(p.gaussians[-1], part)[:, :pixels] for p in (found, moved))
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("published", [True, False])
def test_depth_is_a_distance_only_as_published(published: bool, generator: torch.Generator) -> None:
    given = views(generator, 3)
    with torch.no_grad():
        found = shaken(tiny("mvsplat", published=published))(given)
    means = found.gaussians[-1].means.unflatten(1, (3, -1))
    cameras, depth = given.cameras, found.depths[-1].flatten(2)
    z = camera.project_world(means, cameras.c2w, cameras.K)[..., 2]
    distance = (means - cameras.c2w[:, :, None, :3, 3]).norm(dim=-1)
    torch.testing.assert_close(distance if published else z, depth, atol=1e-4, rtol=1e-4)
    assert ((z if published else distance) - depth).abs().max() > 0.05
    assert found.gaussians[-1].sh.shape[2] == (16 if published else 25)


def test_colours_do_not_come_from_the_image_by_themselves(generator: torch.Generator) -> None:
    model, given = shaken(tiny("mvsplat")), views(generator)
    with torch.no_grad():
        model.out[-1].weight.zero_()
        sh = model(given).gaussians[-1].sh
    assert sh[..., 0, :].std(dim=1).max() < 1e-6


def test_sizes_are_footprints_of_pixels(generator: torch.Generator) -> None:
    """Between 0.5 and 15 tenths of a pixel's width and height at the Gaussian's depth."""
    given = views(generator)
    with torch.no_grad():
        found = shaken(tiny("mvsplat"))(given)
    height, width = given.size
    K = given.cameras.K
    pixel = 0.1 * (1 / (K[..., 0, 0] * width) + 1 / (K[..., 1, 1] * height))
    unit = (pixel[..., None, None] * found.depths[-1]).flatten(1)
    share = found.gaussians[-1].scales / unit[..., None]
    assert share.min() > 0.5 and share.max() < 15


def test_train_mode_says_the_same(generator: torch.Generator) -> None:
    model, given = shaken(tiny("mvsplat")), views(generator)
    with torch.no_grad():
        answer, trained = model(given), model.train()(given)
    assert len(trained.depths) == len(trained.gaussians) == 1
    torch.testing.assert_close(1 / trained.depths[0], 1 / answer.depths[0], atol=1e-5, rtol=1e-4)
