from dataclasses import replace
from typing import Any

import pytest
import torch

from pmsplat import registry
from pmsplat.errors import UserError
from pmsplat.models import depthsplat
from pmsplat.models.depthsplat import Config
from tests.models.tiny import shaken, tiny, views


def test_levels_share_sizes_in_scene_units(generator: torch.Generator) -> None:
    coarse, fine = tiny(scales=2).train()(views(generator)).gaussians
    assert torch.equal(coarse.scales, fine.scales)
    coarse, fine = tiny(scales=2, scale_unit="pixel").train()(views(generator)).gaussians
    assert not torch.equal(coarse.scales, fine.scales)


def test_a_scene_of_another_scale_is_the_same_scene(generator: torch.Generator) -> None:
    """Depth, near, far and baselines times a factor: the same picture of a larger world."""
    model, given = shaken(tiny(scales=2, scale_unit="pixel")), views(generator, 3)
    with torch.no_grad():  # silence the two parts that read metric depth as a number
        for parameter in model.depth.residual[-1].parameters():
            parameter.zero_()
        model.head.out[-1].weight.zero_()
        small = model(given)
        large = model(replace(given, cameras=given.cameras.scaled(4.0)))
    torch.testing.assert_close(large.depths[-1], 4 * small.depths[-1], atol=1e-3, rtol=1e-3)
    expected, found = small.gaussians[-1].scaled(4.0), large.gaussians[-1]
    torch.testing.assert_close(found.means, expected.means, atol=4e-3, rtol=1e-3)
    torch.testing.assert_close(found.scales, expected.scales, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.sh, expected.sh, atol=1e-4, rtol=1e-4)


def test_up_to_three_views_all_are_matched_then_the_two_nearest() -> None:
    c2w = torch.eye(4).repeat(1, 4, 1, 1)
    c2w[0, :, 0, 3] = torch.tensor([0.0, 3.0, 1.0, 7.0])
    assert tiny().others(c2w[:, :3]).tolist() == [[[1, 2], [0, 2], [0, 1]]]
    assert tiny().others(c2w).tolist() == [[[2, 1], [2, 0], [0, 1], [1, 2]]]


def test_training_lowers_the_loss(generator: torch.Generator) -> None:
    """Depth of a fronto-parallel wall, from two photographs of it."""
    model, given = tiny().train(), views(generator, size=(32, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    losses = []
    for _ in range(12):
        loss = (1 / model(given).depths[-1] - 1 / 2.5).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vit": "vith"}, "vit = 'vith'; wanted one of none, vits"),
        ({"scales": 3}, "scales = 3; wanted one of 1, 2"),
        ({"width": 20}, "model.width=20; wanted a multiple of 32, or 16;"),
        ({"scale_unit": "metre"}, "scale_unit = 'metre'; wanted one of world, pixel"),
    ],
)
def test_bad_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.build("models", "depthsplat", settings)


def test_backbone_parameters_are_the_vits() -> None:
    with torch.device("meta"):
        model = depthsplat.build(Config())
    inside = {n for n, _ in model.named_parameters() if n.startswith("depth.vit.")}
    assert len(list(model.backbone_parameters())) == len(inside) > 100
    assert list(tiny().backbone_parameters()) == []
