"""The mean opacity: closed forms, its gradient, and its share in the weighted sum."""

from dataclasses import replace

import pytest
import torch

from pmsplat import config, registry
from pmsplat.errors import UserError
from pmsplat.losses import Term, total
from pmsplat.types import StepOutput
from tests.losses.test_depth import depth_only
from tests.losses.test_photometric import a_step
from tests.scenes import random_gaussians

LOSS = registry.build("losses", "opacity")


def with_opacities(step: StepOutput, *levels: torch.Tensor) -> StepOutput:
    """The same step with Gaussians of these opacities, one tensor for each level."""
    generator = torch.Generator().manual_seed(1)
    gaussians = tuple(
        replace(random_gaussians(o.shape[1], generator, o.shape[0]), opacities=o) for o in levels
    )
    return replace(step, prediction=replace(step.prediction, gaussians=gaussians))


def test_it_is_the_mean_over_scenes_and_gaussians(generator: torch.Generator) -> None:
    opacities = torch.tensor([[0.0, 1.0, 0.5], [0.25, 0.25, 0.1]], requires_grad=True)
    value = LOSS(with_opacities(a_step(generator), torch.ones(2, 3), opacities))
    assert value.item() == pytest.approx(2.1 / 6)
    value.backward()
    assert opacities.grad is not None
    assert torch.equal(opacities.grad, torch.full((2, 3), 1 / 6))
    half = with_opacities(a_step(generator), opacities.detach().bfloat16())
    assert LOSS(half).dtype == torch.float32


def test_it_adds_its_weight_to_a_loss_on_color_at_every_level(generator: torch.Generator) -> None:
    coarse, fine = (torch.full((1, 4), value, requires_grad=True) for value in (0.5, 0.2))
    step = with_opacities(a_step(generator), coarse, fine)
    weight = config.compose(["+experiment=demo_tiny", "loss=[mse,opacity]"]).loss["opacity"].weight
    terms = {"mse": Term(registry.build("losses", "mse")), "opacity": Term(LOSS, weight)}
    found = total(step, terms, 0)
    assert found.terms["opacity"].item() == pytest.approx(0.1 * 0.2)
    assert found.terms["opacity/0"].item() == pytest.approx(0.9 * 0.1 * 0.5)
    found.loss.backward()
    torch.testing.assert_close(fine.grad, torch.full((1, 4), 0.1 / 4))
    torch.testing.assert_close(coarse.grad, torch.full((1, 4), 0.9 * 0.1 / 4))


def test_a_model_of_depth_alone_is_refused() -> None:
    with pytest.raises(UserError, match=r"loss\.opacity for a model that predicts depth alone"):
        LOSS(depth_only(torch.ones(1, 2, 7, 7), None))
