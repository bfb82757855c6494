import pytest
import torch

from pmsplat.geometry import camera
from pmsplat.models import depthsplat2024
from tests.models.tiny import shaken, tiny, views


def line(*places: float) -> torch.Tensor:
    """Poses along x."""
    c2w = torch.eye(4).repeat(1, len(places), 1, 1)
    c2w[0, :, 0, 3] = torch.tensor(places)
    return c2w


def test_near_views_are_matched_in_the_order_of_their_distance() -> None:
    nearest, everyone = tiny("depthsplat2024", neighbors=2), tiny("depthsplat2024")
    three = line(0.0, 3.0, 1.0)
    assert nearest.others(three).tolist() == [[[2, 1], [2, 0], [0, 1]]]
    assert everyone.others(three).tolist() == [[[1, 2], [0, 2], [0, 1]]]
    assert nearest.others(line(0.0, 3.0)).tolist() == [[[1], [0]]]
    five = line(0.0, 3.0, 1.0, 7.0, 20.0)
    assert nearest.others(five).shape == (1, 5, 2) and everyone.others(five).shape == (1, 5, 4)


@pytest.mark.parametrize("published", [True, False])
def test_the_order_of_neighbours_matters_only_as_published(
    published: bool, generator: torch.Generator
) -> None:
    """The faulty mask makes it matter, so that order by index would be another network."""
    given = views(generator, 3)
    with torch.no_grad():
        nearest = shaken(tiny("depthsplat2024", neighbors=2, published=published))(given)
        everyone = shaken(tiny("depthsplat2024", published=published))(given)
    difference = (1 / nearest.depths[-1] - 1 / everyone.depths[-1]).abs().max()
    assert difference > 2e-3 if published else difference < 1e-4


@pytest.mark.parametrize("scales", [1, 2])
def test_training_looks_at_every_scale_and_then_at_the_answer(
    scales: int, generator: torch.Generator
) -> None:
    model, given = shaken(tiny("depthsplat2024", scales=scales)), views(generator)
    with torch.no_grad():
        answer = model(given).depths[-1]
        found = model.train()(given).depths
        estimate = model.depth(given.images, given.cameras, model.others(given.cameras.c2w))
    assert len(found) == scales + 1 and torch.equal(found[-1], answer)
    for depth, match in zip(found, estimate.matches, strict=False):  # enlarged: corners stay
        for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
            torch.testing.assert_close((1 / depth[..., y, x]).flatten(), match.value[..., y, x])


def test_offsets_bounded_or_free(generator: torch.Generator) -> None:
    """Where a mean is seen, in pixels from its own: never beyond the pixel, or anywhere."""
    given = views(generator)
    height, width = given.size
    reach = []
    for offsets in ("bounded", "free"):
        model = shaken(tiny("depthsplat2024", offsets=offsets))
        with torch.no_grad():
            model.head.out[-1].bias[1] = 3.0
            means = model(given).gaussians[-1].means.unflatten(1, (2, -1))
        seen = camera.project_world(means, given.cameras.c2w, given.cameras.K)[..., :2]
        offset = seen - camera.pixel_grid(height, width, like=seen).flatten(0, 1)
        reach.append((offset * torch.tensor([width, height])).abs().amax((0, 1, 2)))
    assert (reach[0] < 0.501).all()
    assert reach[1][0] > 1.0


@pytest.mark.parametrize("published", [True, False])
def test_depth_is_a_distance_only_as_published(published: bool, generator: torch.Generator) -> None:
    given = views(generator)
    with torch.no_grad():
        found = shaken(tiny("depthsplat2024", published=published))(given)
    means = found.gaussians[-1].means.unflatten(1, (2, -1))
    cameras, depth = given.cameras, found.depths[-1].flatten(2)
    z = camera.project_world(means, cameras.c2w, cameras.K)[..., 2]
    distance = (means - cameras.c2w[:, :, None, :3, 3]).norm(dim=-1)
    torch.testing.assert_close(distance if published else z, depth, atol=1e-4, rtol=1e-4)
    assert ((z if published else distance) - depth).abs().max() > 0.05
    assert found.gaussians[-1].sh.shape[2] == (16 if published else 25)


@pytest.mark.parametrize("doublings", [1, 2, 3])
def test_features_are_enlarged_to_full_size(doublings: int) -> None:
    enlarge = depthsplat2024.Enlarge(10, doublings, 6)
    found = enlarge(torch.randn(2, 10, 3, 4))
    assert found.shape == (2, 6, 3 * 2**doublings, 4 * 2**doublings)
    widths = [c.out_channels for c in (enlarge.project, *enlarge.steps)]  # pyright: ignore
    assert widths == {1: [12, 6], 2: [12, 6, 6], 3: [24, 12, 6, 6]}[doublings]
