"""The smoothness of depth against closed forms and a sum pixel by pixel in float64."""

import math
from dataclasses import replace

import pytest
import torch

from pmsplat import registry
from pmsplat.types import StepOutput
from tests.losses.test_depth import depth_only
from tests.waits import no_waits

LOSS = registry.build("losses", "smoothness")


def a_step(depth: torch.Tensor, images: torch.Tensor) -> StepOutput:
    """A step of a depth on these photographs."""
    step = depth_only(depth, None)
    context = replace(step.batch.context, images=images)
    return replace(step, batch=replace(step.batch, context=context))


def by_hand(depth: torch.Tensor, images: torch.Tensor) -> float:
    batch, views, height, width = depth.shape
    found = {"x": [], "y": []}
    for b in range(batch):
        for v in range(views):
            inverse, photo = (1 / depth[b, v]).tolist(), images[b, v].tolist()
            mean = sum(map(sum, inverse)) / (height * width) + 1e-7
            for y in range(height):
                for x in range(width):
                    for axis, (j, i) in {"x": (y, x + 1), "y": (y + 1, x)}.items():
                        if j < height and i < width:
                            edge = sum(abs(c[j][i] - c[y][x]) for c in photo) / 3
                            step = abs(inverse[j][i] - inverse[y][x]) / mean
                            found[axis].append(step * math.exp(-edge))
    return sum(sum(values) / len(values) for values in found.values())


def test_it_equals_the_sum_pixel_by_pixel(generator: torch.Generator) -> None:
    depth = 0.5 + torch.rand(2, 2, 6, 9, generator=generator, dtype=torch.float64)
    images = torch.rand(2, 2, 3, 6, 9, generator=generator, dtype=torch.float64)
    wanted = by_hand(depth, images)
    assert LOSS(a_step(depth, images)).item() == pytest.approx(wanted, rel=1e-12)
    assert LOSS(a_step(depth.float(), images.float())).item() == pytest.approx(wanted, rel=1e-5)
    assert LOSS(a_step(7 * depth, images)).item() == pytest.approx(wanted, rel=1e-6)


def test_a_ramp_has_a_closed_form_that_edges_make_less() -> None:
    """Inverse depth 1 … 3 in eight columns: 2/7 a column, divided by the mean 2."""
    ramp = torch.linspace(1, 3, 8, dtype=torch.float64).expand(1, 1, 5, 8)
    plain = torch.zeros(1, 1, 3, 5, 8, dtype=torch.float64)
    assert LOSS(a_step(1 / ramp, plain)).item() == pytest.approx(1 / 7, rel=1e-6)
    stripes = plain.clone()
    stripes[..., ::2] = torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1)  # a mean edge of 1/2
    assert LOSS(a_step(1 / ramp, stripes)).item() == pytest.approx(math.exp(-0.5) / 7, rel=1e-6)
    beside = LOSS(a_step((1 / ramp).mT, plain.mT)).item()
    assert beside == pytest.approx(1 / 7, rel=1e-6)


def test_an_even_depth_costs_nothing_and_gradients_are_right(generator: torch.Generator) -> None:
    images = torch.rand(1, 1, 3, 4, 5, generator=generator, dtype=torch.float64)
    assert LOSS(a_step(torch.full((1, 1, 4, 5), 3.0).double(), images)).item() == 0
    depth = 0.5 + torch.rand(1, 1, 4, 5, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: LOSS(a_step(x, images)), depth.requires_grad_(), eps=1e-7, atol=1e-6
    )


@pytest.mark.cuda
def test_cuda_agrees_and_makes_nobody_wait(generator: torch.Generator) -> None:
    depth = 0.5 + torch.rand(1, 2, 30, 40, generator=generator)
    images = torch.rand(1, 2, 3, 30, 40, generator=generator)
    found = []
    for device in ("cpu", "cuda", "cuda"):
        leaf = depth.to(device).requires_grad_()
        step = a_step(leaf, images.to(device))
        with no_waits():
            value = LOSS(step)
            (gradient,) = torch.autograd.grad(value, leaf)
        found.append([value.detach().cpu(), gradient.cpu()])
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)
