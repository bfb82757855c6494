"""Images of any size, through every encoder."""

import warnings
from dataclasses import replace

import pytest
import torch

from pmsplat.geometry import camera
from pmsplat.models import predict_padded
from pmsplat.types import Prediction, Views
from tests.models.tiny import MODELS, SCALES, shaken, tiny, views

every_model = pytest.mark.parametrize("name", MODELS)
ODD, PADDED = (50, 70), (64, 80)
WARNING = "images of 50x70 pixels are padded to 64x80, multiples of 16"


def padded(given: Views) -> Views:
    """By hand: every new pixel is the nearest old one; the window grows to the right and down."""
    rows = torch.arange(PADDED[0]).clamp(max=ODD[0] - 1)
    columns = torch.arange(PADDED[1]).clamp(max=ODD[1] - 1)
    K = camera.crop_K(given.cameras.K, ODD, (0, 0), PADDED)
    images = given.images[..., rows, :][..., columns]
    return Views(images, replace(given.cameras, K=K))


@every_model
@pytest.mark.parametrize("train", [False, True])
def test_padding_is_what_one_would_do_by_hand(
    name: str, train: bool, generator: torch.Generator
) -> None:
    scales = SCALES.get(name, {})
    model, given = shaken(tiny(name, **scales)).train(train), views(generator, 3, ODD, batch=2)
    with torch.no_grad():
        with pytest.warns(UserWarning, match=WARNING):
            found = model(given)
        expected = model(padded(given))
    assert len(found.depths) == len(found.gaussians) == len(expected.depths)
    height, width = ODD
    for depth, wanted in zip(found.depths, expected.depths, strict=True):
        assert torch.equal(depth, wanted[..., :height, :width])
    for level, wanted in zip(found.gaussians, expected.gaussians, strict=True):
        assert level.means.shape == (2, 3 * height * width, 3)
        for part in ("means", "scales", "quats_wxyz", "opacities", "sh"):
            grid = getattr(wanted, part).unflatten(1, (3, *PADDED))[:, :, :height, :width]
            assert torch.equal(getattr(level, part), grid.flatten(1, 3))


@every_model
def test_means_are_seen_in_their_own_pixels(name: str, generator: torch.Generator) -> None:
    model, given = shaken(tiny(name)), views(generator, 3, ODD, batch=2)
    with torch.no_grad(), pytest.warns(UserWarning, match=WARNING):
        found = model(given)
    means = found.gaussians[-1].means.unflatten(1, (3, -1))
    seen = camera.project_world(means, given.cameras.c2w, given.cameras.K)
    depth = found.depths[-1].clone()
    if name == "compact":  # whose backdrop has the middle of each block
        far = given.cameras.far[..., None, None]
        depth[..., 4::8, 4::8] = far.expand_as(depth[..., 4::8, 4::8])
    torch.testing.assert_close(seen[..., 2], depth.flatten(2), atol=1e-4, rtol=1e-4)
    offset = seen[..., :2] - camera.pixel_grid(*ODD, like=seen).flatten(0, 1)
    assert (offset.abs() * torch.tensor([ODD[1], ODD[0]])).max() < 0.501


@every_model
def test_a_multiple_is_taken_as_it_is(name: str, generator: torch.Generator) -> None:
    model, given = shaken(tiny(name)), views(generator, 2, (32, 48))
    assert model.multiple == 16
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        found = model(given)
    assert found.depths[-1].shape[-2:] == given.size


def test_the_multiple_follows_the_coarsest_map() -> None:
    coarse = {"lowest": 8}
    assert [tiny("depthsplat", **c).multiple for c in ({}, coarse)] == [16, 32]
    assert [tiny("depthsplat2024", **c).multiple for c in ({}, coarse)] == [16, 32]


@every_model
def test_images_smaller_than_a_multiple(name: str, generator: torch.Generator) -> None:
    model, given = shaken(tiny(name)), views(generator, 2, (9, 33))
    with torch.no_grad(), pytest.warns(UserWarning, match="9x33 pixels are padded to 16x48"):
        found = model(given)
    assert found.depths[-1].shape == (1, 2, 9, 33) and torch.isfinite(found.depths[-1]).all()


def test_gradients_pass_through_the_cut(generator: torch.Generator) -> None:
    """To the pixels of the image, and not again to those that were repeated and cut off."""
    given = views(generator, 2, (3, 5))
    images = given.images.clone().requires_grad_()

    def network(larger: Views) -> Prediction:
        assert larger.size == (4, 8)
        return Prediction((1 + larger.images.sum(dim=2),), ())

    with pytest.warns(UserWarning, match="3x5 pixels are padded to 4x8"):
        found = predict_padded(network, replace(given, images=images), 4).depths[0]
    torch.testing.assert_close(found, 1 + given.images.sum(dim=2))
    found.sum().backward()
    assert images.grad is not None and (images.grad == 1).all()
