"""Gradients to cameras, by carrying the scene: against moved cameras and finite differences."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pmsplat.errors import UserError
from pmsplat.geometry import se3
from pmsplat.render import rasterize, rasterize_moved
from pmsplat.types import CLASSIC, RESPLAT, Cameras, DrawingRules, Gaussians, Rendering
from tests.scenes import ODD_RULES, PARAMETERS, random_cameras, random_gaussians

F64, SIZE = torch.float64, (12, 16)


def scene(
    generator: torch.Generator, rules: DrawingRules = CLASSIC, dtype: torch.dtype = F64
) -> tuple[Gaussians, Cameras, Tensor]:
    cameras = random_cameras(3, generator, batch=2, dtype=F64)
    gaussians = random_gaussians(40, generator, batch=2, dtype=F64)
    twists = 0.1 * torch.randn(2, 3, 6, generator=generator, dtype=F64)
    gaussians = replace(gaussians, rules=rules)
    return gaussians.to(dtype), cameras.to(dtype), twists.to(dtype)


def everything(drawn: Rendering) -> Tensor:
    """Color, Σ z · weight and opacity, [batch, target, 5, h, w]."""
    depth = (drawn.depth * drawn.alpha)[:, :, None]
    return torch.cat([drawn.color, depth, drawn.alpha[:, :, None]], dim=2)


def error(drawn: Rendering, weights: Tensor) -> Tensor:
    """A number in which every value of every pixel counts, each differently."""
    return (everything(drawn) * weights.to(drawn.color)).sum()


@pytest.mark.parametrize("rules", [CLASSIC, RESPLAT, ODD_RULES])
def test_draws_what_moved_cameras_see(generator: torch.Generator, rules: DrawingRules) -> None:
    gaussians, cameras, twists = scene(generator, rules)
    behind = torch.rand(2, 3, generator=generator, dtype=F64)
    found = rasterize_moved(gaussians, cameras, twists, SIZE, "reference", behind)
    moved = replace(cameras, c2w=cameras.c2w @ se3.exp(twists))
    wanted = rasterize(gaussians, moved, SIZE, "reference", behind)
    for name in ("color", "depth", "alpha"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name))
    assert wanted.alpha.mean() > 0.05


def test_gradients_are_finite_differences(generator: torch.Generator) -> None:
    gaussians, cameras, twists = scene(generator)
    weights = torch.randn(2, 3, 5, *SIZE, generator=generator, dtype=F64)

    def errors(given: Tensor) -> Tensor:
        drawn = rasterize_moved(gaussians, cameras, given, SIZE, "reference")
        return everything(drawn).mul(weights).sum(dim=(2, 3, 4))

    twists.requires_grad_()
    (gradient,) = torch.autograd.grad(errors(twists).sum(), twists)
    with torch.no_grad():  # of all targets at once: none sees the twist of another
        for component, step in enumerate(1e-7 * torch.eye(6, dtype=F64)):
            slope = (errors(twists + step) - errors(twists - step)) / 2e-7
            torch.testing.assert_close(gradient[..., component], slope, rtol=1e-5, atol=1e-5)
    assert gradient.abs().min() > 1e-3


def test_the_fast_backend_agrees(generator: torch.Generator) -> None:
    results = []
    weights = torch.randn(2, 3, 5, *SIZE, generator=generator, dtype=F64)
    gaussians, cameras, twists = scene(generator)
    for backend, dtype in (("reference", F64), ("cpu", torch.float32)):
        leaf = twists.to(dtype).requires_grad_()
        parameters = {n: getattr(gaussians, n).to(dtype).requires_grad_() for n in PARAMETERS}
        trained = replace(gaussians.to(dtype), **parameters)
        drawn = rasterize_moved(trained, cameras.to(dtype), leaf, SIZE, backend)
        value = error(drawn, weights)
        results.append([value, *torch.autograd.grad(value, [leaf, *parameters.values()])])
    for wanted, found in zip(*results, strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() < 1e-4 * wanted.norm()


def test_at_rest_it_is_the_plain_picture_with_its_gradients(generator: torch.Generator) -> None:
    gaussians, cameras, twists = scene(generator)
    weights = torch.randn(2, 3, 5, *SIZE, generator=generator, dtype=F64)
    results = []
    for moved in (False, True):
        parameters = {
            name: getattr(gaussians, name).clone().requires_grad_() for name in PARAMETERS
        }
        trained = replace(gaussians, **parameters)
        if moved:
            drawn = rasterize_moved(trained, cameras, 0 * twists, SIZE, "reference", sh_degree=1)
        else:
            drawn = rasterize(trained, cameras, SIZE, "reference", sh_degree=1)
        results.append(torch.autograd.grad(error(drawn, weights), list(parameters.values())))
    for wanted, found in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_broken_gaussian_spoils_no_gradient(generator: torch.Generator) -> None:
    gaussians, cameras, twists = scene(generator, dtype=torch.float32)
    gaussians.means[0, 3, 1] = torch.nan
    gaussians.sh[1, 5, 2] = torch.inf
    twists.requires_grad_()
    drawn = rasterize_moved(gaussians, cameras, twists, SIZE, "cpu")
    (gradient,) = torch.autograd.grad(drawn.color.sum(), twists)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


def test_twists_of_another_shape_are_refused(generator: torch.Generator) -> None:
    gaussians, cameras, twists = scene(generator)
    with pytest.raises(UserError, match=r"twists has shape \[2, 2, 6\]; wanted \[2, 3, 6\]"):
        rasterize_moved(gaussians, cameras, twists[:, :2], SIZE)
