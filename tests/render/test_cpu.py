"""The numba backend against the reference: values, gradients, and the same bits every time."""

from dataclasses import dataclass, fields, replace

import numba
import pytest
import torch
from torch import Tensor

from pmsplat.render import _projection, cpu, rasterize
from pmsplat.types import CLASSIC, MIP, RESPLAT, Cameras, DrawingRules, Gaussians, Rendering
from tests.scenes import PARAMETERS, RULES, limits_of_resplat, random_cameras, random_gaussians

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


@dataclass(frozen=True)
class Scene:
    gaussians: Gaussians
    cameras: Cameras
    attributes: Tensor | None
    background: Tensor


def scene(
    dtype: torch.dtype, channels: int = 0, count: int = 400, batch: int = 2, views: int = 3
) -> Scene:
    generator = torch.Generator().manual_seed(3)
    cameras = random_cameras(views, generator, batch=batch, dtype=dtype)
    gaussians = random_gaussians(count, generator, batch=batch, degree=3, dtype=dtype)
    gaussians.means[:, :40, 2] -= 6  # behind the cameras
    gaussians.opacities[:, 40:80] = 1
    attributes = torch.randn(batch, count, channels, generator=generator, dtype=dtype)
    return Scene(
        gaussians, cameras, attributes if channels else None, torch.rand(batch, 3, dtype=dtype)
    )


@dataclass(frozen=True)
class Drawn:
    rendering: Rendering
    gradients: dict[str, Tensor]


def draw(of: Scene, backend: str, size: tuple[int, int], sh_degree: int | None = None) -> Drawn:
    """A rendering, and the gradients of a fixed random function of all of it."""
    leaves = {name: getattr(of.gaussians, name).clone() for name in PARAMETERS}
    if of.attributes is not None:
        leaves["attributes"] = of.attributes.clone()
    for leaf in leaves.values():
        leaf.requires_grad_()
    drawn = rasterize(
        replace(of.gaussians, **{name: leaves[name] for name in PARAMETERS}),
        of.cameras, size, backend, of.background, leaves.get("attributes"), sh_degree,
        extras=["depth_median", "screen"],
    )  # fmt: skip
    assert drawn.screen is not None
    drawn.screen.means.retain_grad()
    generator = torch.Generator().manual_seed(4)
    total = torch.zeros(())
    for image in (drawn.color, drawn.depth, drawn.alpha, drawn.attributes):
        if image is not None:
            total = total + (image * torch.randn(image.shape, generator=generator)).sum()
    total.backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    assert gradients.keys() == leaves.keys() and drawn.screen.means.grad is not None
    return Drawn(drawn.detach(), {**gradients, "screen": drawn.screen.means.grad})


def images(rendering: Rendering) -> list[Tensor]:
    found = (rendering.color, rendering.depth, rendering.alpha, rendering.attributes)
    return [image for image in (*found, rendering.depth_median) if image is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [0, 3])
@pytest.mark.parametrize("sh_degree", [None, 1])
def test_values_and_gradients_are_those_of_the_reference(
    dtype: torch.dtype, channels: int, sh_degree: int | None
) -> None:
    given, size = scene(dtype, channels), (37, 45)
    wanted, got = draw(given, "reference", size, sh_degree), draw(given, "cpu", size, sh_degree)
    for ours, theirs in zip(images(got.rendering), images(wanted.rendering), strict=True):
        assert ours.dtype == dtype
        assert (ours - theirs).norm() <= TOLERANCE[dtype] * theirs.norm()
    for name, theirs in wanted.gradients.items():
        assert theirs.norm() > 0
        error = (got.gradients[name] - theirs).norm() / theirs.norm()
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_rules_are_those_of_the_reference(dtype: torch.dtype, rules: DrawingRules) -> None:
    """Also for discs, needles and points, whose determinant is 0 without the blur."""
    given = scene(dtype, count=300)
    given.gaussians.scales[:, 80:120, 0] *= 1e-7
    given.gaussians.scales[:, 120:140, :2] = 0
    given.gaussians.scales[:, 140:150] = 0
    given.gaussians.scales[:, 150:200] *= 0.05
    given = replace(given, gaussians=replace(given.gaussians, rules=rules))
    wanted, got = draw(given, "reference", (37, 45)), draw(given, "cpu", (37, 45))
    for ours, theirs in zip(images(got.rendering), images(wanted.rendering), strict=True):
        assert (ours - theirs).norm() <= TOLERANCE[dtype] * theirs.norm()
    for name, theirs in wanted.gradients.items():
        assert theirs.isfinite().all() and theirs.norm() > 0
        error = (got.gradients[name] - theirs).norm() / theirs.norm()
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_limits_of_rules_are_those_of_the_reference(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    gaussians, cameras = limits_of_resplat(generator, dtype)
    given = Scene(gaussians, cameras, None, torch.rand(1, 3, dtype=dtype))
    wanted, got = draw(given, "reference", (37, 45)), draw(given, "cpu", (37, 45))
    for ours, theirs in zip(images(got.rendering), images(wanted.rendering), strict=True):
        assert (ours - theirs).norm() <= TOLERANCE[dtype] * theirs.norm()
    for name, theirs in wanted.gradients.items():
        error = (got.gradients[name] - theirs).norm() / theirs.norm()
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    given = scene(dtype, channels=2, count=3000, batch=1, views=2)
    threads = numba.get_num_threads()
    try:
        drawn = []
        for count in (1, threads, threads):
            numba.set_num_threads(count)
            drawn.append(draw(given, "cpu", (64, 80)))
    finally:
        numba.set_num_threads(threads)
    for other in drawn[1:]:
        for a, b in zip(images(drawn[0].rendering), images(other.rendering), strict=True):
            assert torch.equal(a, b)
        for name, gradient in drawn[0].gradients.items():
            assert torch.equal(gradient, other.gradients[name]), name


@pytest.mark.parametrize("rules", [CLASSIC, MIP, RESPLAT])
def test_projection_is_that_of_the_reference(rules: DrawingRules) -> None:
    """Also where nothing is drawn: behind, off the image, and beside clamped directions."""
    given = scene(torch.float64, count=2000)
    given.gaussians.means[:, 200:400, :2] *= 6
    given.gaussians.scales[:, 400:800] *= 0.05
    wanted = _projection.project(given.gaussians, given.cameras, (30, 50), rules=rules)
    got = cpu.project(given.gaussians, given.cameras, (30, 50), rules=rules)
    assert wanted.opacity.shape[1] == (3 if rules.antialiased else 1)
    assert 0.1 < (wanted.extent > 0).double().mean() < 0.9
    for f in fields(wanted):
        torch.testing.assert_close(
            getattr(got, f.name), getattr(wanted, f.name), rtol=1e-10, atol=1e-10
        )


def test_equal_depths_are_blended_in_order_of_index() -> None:
    z = torch.tensor([2.0, 1.0, 2.0, 1.0, 2.0])
    extent = torch.ones(5, 2)
    extent[3] = 0
    for dtype in (torch.float32, torch.float64):
        order = cpu.near_to_far(z.to(dtype).numpy(), extent.numpy())
        assert order.tolist() == [1, 0, 2, 4]
