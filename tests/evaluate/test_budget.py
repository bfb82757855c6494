"""An answer with fewer Gaussians: how it is drawn, and what is measured of it."""

from dataclasses import replace

import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.evaluate import protocol
from pmsplat.evaluate.budget import BUDGETS, budget_rows, reduce_gaussians
from pmsplat.evaluate.series import STEPS
from pmsplat.render import rasterize
from pmsplat.types import Gaussians, Prediction, Views
from pmsplat.zoo.fusion import limit
from tests.evaluate.test_protocol import scene
from tests.scenes import are_equal, random_gaussians

SIZE = (16, 20)


def encoder_of(gaussians: Gaussians):
    def model(views: Views) -> Prediction:
        return Prediction((torch.ones(1, 2, *SIZE),), (gaussians,))

    return model


def test_it_is_what_fusion_makes_of_a_budget(generator: torch.Generator) -> None:
    gaussians = random_gaussians(50, generator)
    fewer = reduce_gaussians(gaussians, 20)
    assert fewer.means.shape[1] == 20 and are_equal(fewer, limit(gaussians, 20))
    assert reduce_gaussians(gaussians, 50) is gaussians


def test_more_than_there_are_is_refused(generator: torch.Generator) -> None:
    wanted = r"`gaussians=51` for a scene of 50 Gaussians.*leave out 51"
    with pytest.raises(UserError, match=wanted):
        reduce_gaussians(random_gaussians(50, generator), 51)
    run = protocol.pipeline(
        encoder_of(random_gaussians(50, generator)), "cpu", drawn=protocol.Drawn(budgets=(51,))
    )
    with pytest.raises(UserError, match=wanted):
        protocol.evaluate(run, [scene("a", 2, generator)])


def test_each_budget_is_drawn_and_measured_as_by_hand(generator: torch.Generator) -> None:
    gaussians, batch = random_gaussians(60, generator), scene("a", 2, generator)
    model = encoder_of(gaussians)
    run = protocol.pipeline(model, "reference", drawn=protocol.Drawn(budgets=(40, 7)))
    plain = protocol.evaluate(protocol.pipeline(model, "reference"), [batch]).rows[0].values
    values = protocol.evaluate(run, [batch]).rows[0].values
    assert values["gaussians"] == 60
    for count in (40, 7):
        fewer = reduce_gaussians(gaussians, count)
        drawn = rasterize(fewer, batch.target.cameras, SIZE, "reference").color
        error = (drawn.clip(0, 1) - batch.target.images).square().mean(dim=(2, 3, 4))
        wanted = (-10 * error.log10()).mean().item()
        assert values[f"psnr_gaussians{count}"] == pytest.approx(wanted, abs=1e-4)
    assert plain.items() <= values.items() and "ssim_gaussians7" in values
    rows = budget_rows(values)
    assert list(rows) == [7, 40, 60] and rows[60]["psnr"] == plain["psnr"]


def test_budgets_are_of_the_share_that_is_kept(generator: torch.Generator) -> None:
    gaussians, batch = random_gaussians(60, generator), scene("a", 2, generator)
    run = protocol.pipeline(
        encoder_of(gaussians), "reference", drawn=protocol.Drawn(0.5, budgets=(10,))
    )
    ranked = gaussians.opacities[0].argsort(descending=True)[:30].sort().values
    half = gaussians.map(lambda x: x[:, ranked])
    wanted = rasterize(reduce_gaussians(half, 10), batch.target.cameras, SIZE, "reference")
    (reduced,) = run(batch).reduced
    assert (reduced.budget, reduced.of) == (10, 30)
    torch.testing.assert_close(reduced.rendering.color, wanted.color)


def test_an_encoder_of_depth_alone_has_nothing_to_reduce(generator: torch.Generator) -> None:
    def model(views: Views) -> Prediction:
        return Prediction((torch.ones(1, 2, *SIZE),), ())

    batch = scene("a", 1, generator)
    assert (
        protocol.pipeline(model, "reference", drawn=protocol.Drawn(budgets=(10,)))(batch).reduced
        == ()
    )


def test_reduced_renderings_are_part_of_the_bundle(generator: torch.Generator) -> None:
    run = protocol.pipeline(
        encoder_of(random_gaussians(20, generator)), "reference", drawn=protocol.Drawn(budgets=(5,))
    )
    step = run(scene("a", 1, generator)).to(torch.float64)
    assert step.reduced[0].rendering.color.dtype == torch.float64
    assert replace(step.reduced[0], of=3).budget == 5


def test_budgets_come_before_all_gaussians_and_are_no_steps() -> None:
    means = {"psnr": 30.0, "rmse": 1.0, "gaussians": 99.6}
    assert budget_rows(means | {"psnr_step3": 1.0}) == {100: {"psnr": 30.0}}
    means |= BUDGETS.names({50: {"psnr": 28.0, "rmse": 2.0}, 7: {"psnr": 20.0, "lpips": 0.5}})
    rows = budget_rows(means)
    assert list(rows) == [7, 50, 100]
    assert rows[7] == {"psnr": 20.0, "lpips": 0.5} and rows[50] == {"psnr": 28.0}
    assert STEPS.rows(means) == {}
    table = BUDGETS.table(rows)
    assert table is not None and table.columns[0].header == "Gaussians"
    assert list(table.columns[2].cells) == ["0.500", "–", "–"]
    assert budget_rows({"psnr": 30.0}) == {}
