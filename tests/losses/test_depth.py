"""The depth losses against sums by hand and slow float64 twins, their gradients, missing depth."""

import math

import pytest
import torch

from pmsplat import registry
from pmsplat.errors import UserError
from pmsplat.losses import Term, total
from pmsplat.types import Batch, Prediction, StepOutput, Views
from tests.scenes import random_cameras
from tests.waits import no_waits


def depth_only(
    depths: torch.Tensor | tuple[torch.Tensor, ...], known: torch.Tensor | None
) -> StepOutput:
    """A step of a model that predicts depth alone, on blank photographs."""
    depths = (depths,) if isinstance(depths, torch.Tensor) else depths
    batch, views, height, width = depths[0].shape
    cameras = random_cameras(views, torch.Generator().manual_seed(1), batch)
    images = torch.zeros(batch, views, 3, height, width)
    context = Views(images, cameras, depth=known)
    return StepOutput(Batch(context, context, ["scene"]), Prediction(depths, ()), ())


def random_depths(
    generator: torch.Generator, size: int = 7, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted depth that wants a gradient, and known depth with holes."""
    depth, known = 0.5 + 3 * torch.rand(2, 1, 2, size, size, generator=generator, dtype=dtype)
    holes = torch.rand(known.shape, generator=generator) < 0.3
    return depth.requires_grad_(), known.masked_fill(holes, 0)


def by_hand(depth: torch.Tensor, known: torch.Tensor, value: float, gradient: float) -> float:
    """The published loss, pixel by pixel."""
    sums = {"value": [], "x": [], "y": []}
    _, views, height, width = known.shape
    for v in range(views):
        p, k = depth[0, v].tolist(), known[0, v].tolist()
        for y in range(height):
            for x in range(width):
                if not k[y][x]:
                    continue
                sums["value"].append(abs(1 / p[y][x] - 1 / k[y][x]))
                for axis, (j, i) in {"x": (y, x + 1), "y": (y + 1, x)}.items():
                    if j < height and i < width and k[j][i]:
                        ours, theirs = 1 / p[j][i] - 1 / p[y][x], 1 / k[j][i] - 1 / k[y][x]
                        sums[axis].append(abs(ours - theirs))
    means = {name: sum(errors) / len(errors) for name, errors in sums.items()}
    return value * means["value"] + gradient * (means["x"] + means["y"])


def test_depth_equals_the_published_sum(generator: torch.Generator) -> None:
    depth, known = random_depths(generator)
    step = depth_only(depth, known)
    assert registry.build("losses", "depth")(step).item() == pytest.approx(
        by_hand(depth, known, 20, 20)
    )
    other = registry.build("losses", "depth", {"value": 3.0, "gradient": 0.5})
    assert other(step).item() == pytest.approx(by_hand(depth, known, 3, 0.5))
    single = depth_only(depth.float(), known.float())
    assert other(single).item() == pytest.approx(by_hand(depth, known, 3, 0.5), rel=1e-5)


def test_a_constant_error_and_a_ramp_have_closed_forms(generator: torch.Generator) -> None:
    """1/2 off everywhere costs 20/2; 1/100 a column too steep costs 20/100 more and its mean."""
    inverse = 1 + torch.rand(1, 2, 9, 11, generator=generator, dtype=torch.float64)
    loss = registry.build("losses", "depth")
    shifted = depth_only(1 / (inverse + 0.5), 1 / inverse)
    assert loss(shifted).item() == pytest.approx(10)
    ramp = 0.01 * torch.arange(11, dtype=torch.float64)
    steeper = depth_only(1 / (inverse + ramp), 1 / inverse)
    assert loss(steeper).item() == pytest.approx(20 * 0.05 + 20 * 0.01)


def test_a_slope_the_wrong_way_costs() -> None:
    ramp = 0.01 * torch.arange(-5, 6, dtype=torch.float64).expand(1, 2, 9, 11)
    loss = registry.build("losses", "depth", {"value": 0.0})
    step = depth_only(1 / (1 - ramp), 1 / (1 + ramp))
    assert loss(step).item() == pytest.approx(20 * 0.02)


def test_gradients_are_right_and_reach_known_pixels_alone(generator: torch.Generator) -> None:
    depth, known = random_depths(generator, size=4)
    loss = registry.build("losses", "depth")
    assert torch.autograd.gradcheck(lambda x: loss(depth_only(x, known)), depth)
    loss(depth_only(depth, known)).backward()
    assert depth.grad is not None
    assert not depth.grad[known == 0].any()
    assert depth.grad[known > 0].all()


def test_whatever_an_unknown_pixel_predicts_is_ignored(generator: torch.Generator) -> None:
    depth, known = random_depths(generator)
    loss = registry.build("losses", "depth")
    wild = depth.detach().clone()
    wild[known == 0] = torch.tensor([0.0, math.nan, math.inf]).double()[
        torch.arange(int((known == 0).sum())) % 3
    ]
    wild.requires_grad_()
    value = loss(depth_only(wild, known))
    assert value.item() == loss(depth_only(depth, known)).item()
    value.backward()
    assert wild.grad is not None and wild.grad.isfinite().all()


def test_one_known_pixel_has_the_gradient_of_its_inverse() -> None:
    """d/dz 20 |1/z - 1/4| at z = 2: -20 / 4; it has no neighbour."""
    known = torch.zeros(1, 2, 8, 8)
    known[0, 1, 3, 4] = 4.0
    depth = torch.full((1, 2, 8, 8), 2.0, requires_grad=True)
    loss = registry.build("losses", "depth")(depth_only(depth, known))
    loss.backward()
    assert loss.item() == pytest.approx(5.0)
    assert depth.grad is not None and depth.grad.count_nonzero() == 1
    assert depth.grad[0, 1, 3, 4].item() == pytest.approx(-5.0)


def test_every_level_counts_its_share(generator: torch.Generator) -> None:
    coarse, known = random_depths(generator)
    fine, _ = random_depths(generator)
    terms = {"depth": Term(registry.build("losses", "depth"), weight=0.5)}
    found = total(depth_only((coarse, fine), known), terms, 0)
    loss, values = found.loss, found.terms
    one, other = by_hand(coarse, known, 20, 20), by_hand(fine, known, 20, 20)
    assert list(values) == ["depth/0", "depth"]
    assert loss.item() == pytest.approx(0.5 * (0.9 * one + other))


def test_log_depth_is_the_mean_relative_error_of_known_pixels() -> None:
    known = torch.zeros(1, 2, 40, 40)
    known[0, 0, 3, 4], known[0, 1, 5, 6] = 2.0, 4.0
    depth = torch.full((1, 2, 40, 40), 2.0)
    depth[0, 0, 3, 4] = 1.0
    depth.requires_grad_()
    loss = registry.build("losses", "log_depth")(depth_only(depth, known))
    assert loss.item() == pytest.approx(math.log(2.0))
    loss.backward()
    assert depth.grad is not None
    assert depth.grad[0, 0, 3, 4].item() == pytest.approx(-0.5)
    assert depth.grad[0, 1, 5, 6].item() == pytest.approx(-0.25)
    assert depth.grad.count_nonzero() == 2


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["depth", "log_depth"])
def test_cuda_agrees_and_makes_nobody_wait(name: str, generator: torch.Generator) -> None:
    loss, (depth, known) = registry.build("losses", name), random_depths(generator)
    known[..., ::3] = 0
    found = []
    for device in ("cpu", "cuda", "cuda"):
        leaf = depth.detach().to(device).requires_grad_()
        step = depth_only(leaf, known.to(device))
        with no_waits():
            value = loss(step)
            (gradient,) = torch.autograd.grad(value, leaf)
        found.append([value.detach().cpu(), gradient.cpu()])
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["depth", "log_depth"])
def test_no_known_pixel_costs_nothing(name: str) -> None:
    depth = torch.ones(1, 2, 40, 40, requires_grad=True)
    step = depth_only(depth, torch.zeros(1, 2, 40, 40))
    loss = registry.build("losses", name)(step)
    loss.backward()
    assert loss.item() == 0.0
    assert depth.grad is not None and not depth.grad.any()


@pytest.mark.parametrize("name", ["depth", "log_depth"])
def test_data_without_depth_is_told(name: str) -> None:
    with pytest.raises(UserError, match=rf"loss\.{name} on .* without depth.*~loss\.{name}"):
        registry.build("losses", name)(depth_only(torch.ones(1, 2, 4, 4), None))


def test_a_loss_on_colour_of_a_model_that_predicts_depth_alone_is_told(
    generator: torch.Generator,
) -> None:
    depth, known = random_depths(generator)
    with pytest.raises(UserError, match=r"depth alone.*loss=depth"):
        registry.build("losses", "mse")(depth_only(depth, known))
