"""How sure encoders are of their depth."""

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from pmsplat.geometry import camera
from pmsplat.models import predict_padded
from pmsplat.nn.cost_volume import Regressor
from pmsplat.types import Prediction, Views
from tests.models.tiny import MODELS, shaken, tiny, views
from tests.scenes import random_gaussians

SIZE = (64, 96)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "compact"])  # no Regressor
@pytest.mark.parametrize("train", [False, True])
def test_confidence_is_that_of_the_finest_match(
    name: str, train: bool, generator: torch.Generator
) -> None:
    model, given = shaken(tiny(name)).train(train), views(generator, 3, SIZE, batch=2)
    matches: list[Any] = []
    for part in model.modules():
        if isinstance(part, Regressor):
            part.register_forward_hook(lambda _part, _given, found: matches.append(found))
    with torch.no_grad():
        found = model(given).confidence
    assert found is not None and found.shape == (2, 3, *SIZE)
    best = matches[-1].probability.max(dim=-1).values.unflatten(0, (2, 3))
    rows = torch.arange(SIZE[0]) * best.shape[-2] // SIZE[0]
    columns = torch.arange(SIZE[1]) * best.shape[-1] // SIZE[1]
    assert torch.equal(found, best[..., rows, :][..., columns])
    assert ((found > 0) & (found <= 1)).all() and found.std() > 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [SIZE, (50, 70)])  # the second is padded, and cut back
def test_each_gaussian_has_the_confidence_of_its_pixel(
    name: str, size: tuple[int, int], generator: torch.Generator
) -> None:
    model, given = shaken(tiny(name)), views(generator, 3, size)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of padding
        found = model(given)
    assert found.gaussians[-1].confidence is None
    sure = found.gaussian_confidence()
    assert sure is not None and sure.shape == found.gaussians[-1].opacities.shape
    # Where a camera sees the Gaussian, that is its pixel
    means = found.gaussians[-1].means.unflatten(1, (3, -1))
    places = camera.project_world(means, given.cameras.c2w, given.cameras.K)[0]
    for v in range(3):
        row = (places[v, :, 1] * size[0]).floor().long().clamp(0, size[0] - 1)
        column = (places[v, :, 0] * size[1]).floor().long().clamp(0, size[1] - 1)
        seen = found.confidence[0, v, row, column]
        # means may leave the middle of their pixel by half of it, to the next
        assert (seen == sure.unflatten(1, (3, -1))[0, v]).float().mean() > 0.7


def test_a_gaussian_of_a_block_has_the_mean_over_it(generator: torch.Generator) -> None:
    model = shaken(tiny("resplat", latent=4, gaussians_per_point=1))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model(views(generator, 2, (50, 70)))
    sure = found.gaussian_confidence()
    assert sure is not None and sure.shape == (1, 2 * 13 * 18)
    whole = sure.unflatten(1, (2, 13, 18))[0, 1, 12, 17]
    torch.testing.assert_close(whole, found.confidence[0, 1, 48:, 68:].mean())
    assert ((sure > 0) & (sure <= 1)).all()


def test_cutting_takes_confidence_along(generator: torch.Generator) -> None:
    """Also that of Gaussians, of an encoder that gives it itself."""

    def network(given: Views) -> Prediction:
        count, (height, width) = given.images.shape[1], given.size
        gaussians = random_gaussians(count * height * width, generator)
        sure = torch.rand(1, count, height, width, generator=generator)
        rated = replace(gaussians, confidence=sure.flatten(1))
        return Prediction((torch.ones_like(sure),), (rated,), sure)

    with pytest.warns(UserWarning, match="padded to 16x32"):
        found = predict_padded(network, views(generator, 2, (10, 20)), 16)
    rated, sure = found.gaussians[-1].confidence, found.gaussian_confidence()
    assert rated is not None and sure is not None and rated.shape == (1, 2 * 10 * 20)
    assert torch.equal(rated, sure)
