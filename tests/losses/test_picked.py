"""Losses on the context views, of a prediction that speaks of some of them, in its own order."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from pmsplat import registry
from pmsplat.contracts import Partial
from pmsplat.types import Batch, Pointmap, StepOutput, Views
from tests.lab.encoder import Config, Encoder
from tests.models.picking import Picking
from tests.scenes import random_cameras
from tests.waits import no_waits

LOSSES = ["depth", "log_depth", "smoothness", "pointmap"]


def everything(generator: torch.Generator, count: int = 5, batch: int = 2) -> Views:
    """Views of which all is known, each other than the next."""

    def noise(*shape: int) -> torch.Tensor:
        return torch.rand(batch, count, *shape, generator=generator)

    return Views(
        noise(3, 12, 10),
        random_cameras(count, generator, batch),
        depth=0.5 + 3 * noise(12, 10),
        pointmap=Pointmap(3 * noise(12, 10, 3), noise(12, 10)),
        names=tuple(tuple(f"{b}{v}" for v in range(count)) for b in range(batch)),
    )


def predicted(context: Views) -> StepOutput:
    torch.manual_seed(0)
    prediction = Picking(Encoder(Config(levels=1)))(context)
    return StepOutput(Batch(context, context, ["a", "b"]), prediction, ())


def value(name: str, step: StepOutput) -> torch.Tensor:
    found: Any = registry.build("losses", name)(step)
    return found.value if isinstance(found, Partial) else found


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_compares_with_what_is_known_of_the_views_spoken_of(
    name: str, generator: torch.Generator
) -> None:
    """As if there were no others, and not with as many of the first ones."""
    context = everything(generator)
    step = predicted(context)

    def among(order: list[list[int]]) -> StepOutput:
        def pick(x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x[b, own] for b, own in enumerate(order)])

        only = replace(context, names=None).map(pick)
        whole = replace(step.prediction, views=None)
        return StepOutput(Batch(only, only, ["a", "b"]), whole, ())

    found = value(name, step).item()
    assert found == pytest.approx(value(name, among([[4, 3, 2], [3, 2, 1]])).item(), rel=1e-6)
    assert found != pytest.approx(value(name, among([[0, 1, 2]] * 2)).item(), rel=1e-3)


def test_names_ride_along_where_the_host_may_wait(generator: torch.Generator) -> None:
    context = everything(generator)
    step = predicted(context)
    assert step.prediction.select(context).names == (("04", "03", "02"), ("13", "12", "11"))
    assert step.prediction.indices(context) == [4, 3, 2]
    assert step.context.names is None
    whole = replace(step, prediction=replace(step.prediction, views=None))
    assert whole.context is context and whole.prediction.indices(context) == [0, 1, 2, 3, 4]


@pytest.mark.cuda
@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_waits_to_learn_which_views_they_are(name: str, generator: torch.Generator) -> None:
    step = predicted(everything(generator)).to("cuda")
    value(name, step)
    with no_waits():
        value(name, step)
