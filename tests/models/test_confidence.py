"""How sure encoders are of their depth."""

import pytest
import torch

from pmsplat.nn.cost_volume import Match, Regressor
from tests.models.tiny import MODELS, shaken, tiny, views

SIZE = (64, 96)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("train", [False, True])
def test_confidence_is_that_of_the_finest_match(
    name: str, train: bool, generator: torch.Generator
) -> None:
    model, given = shaken(tiny(name)).train(train), views(generator, 3, SIZE, batch=2)
    matches: list[Match] = []
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
