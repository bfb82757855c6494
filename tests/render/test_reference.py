"""The specification against a per-pixel loop that shares no code with it, and its gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pmsplat.render import rasterize, reference
from pmsplat.types import CLASSIC, MIP, RESPLAT, DrawingRules, Gaussians
from tests.render import oracle
from tests.scenes import ODD_RULES, RULES, limits_of_resplat, random_cameras, random_gaussians

F64 = torch.float64
SIZE, OTHERS = (11, 14), RULES.values()


@pytest.mark.parametrize(
    ("size", "rules"),
    [((11, 14), CLASSIC), ((1, 1), CLASSIC), ((17, 33), CLASSIC), *((SIZE, r) for r in OTHERS)],
)
def test_draws_what_a_loop_over_pixels_draws(
    generator: torch.Generator, size: tuple[int, int], rules: DrawingRules
) -> None:
    cameras = random_cameras(2, generator, batch=2, dtype=F64)
    cameras.near[0, 1] = 12.0  # culls half of the cloud at 0.2 · 12
    gaussians = random_gaussians(60, generator, batch=2, degree=1, dtype=F64)
    gaussians.opacities[:, :20] = 1.0  # the cap, and pixels that end
    if rules != CLASSIC:  # opacities that are nearly kept, and nearly lost
        gaussians.scales[:, :30] *= 5
        gaussians.scales[:, 40:] *= 0.2
    gaussians = replace(gaussians, rules=rules)
    drawn = rasterize(gaussians, cameras, size, "reference", extras=["depth_median"])
    assert drawn.depth_median is not None
    for scene, view in np.ndindex(2, 2):
        wanted = oracle.draw(gaussians, cameras, scene, view, *size)
        for got, want in [
            (drawn.color, wanted.color),
            (drawn.depth, wanted.depth),
            (drawn.alpha, wanted.alpha),
            (drawn.depth_median, wanted.median),
        ]:
            np.testing.assert_allclose(got[scene, view].numpy(), want, rtol=1e-10, atol=1e-12)
    assert (drawn.alpha > 0.9).any() or size == (1, 1)


@pytest.mark.parametrize("changes", [{}, {"clamp": "axis"}])
def test_planes_clamp_and_cap_are_where_the_rules_say(
    generator: torch.Generator, changes: dict[str, str]
) -> None:
    gaussians, cameras = limits_of_resplat(generator, F64)
    gaussians = replace(gaussians, rules=replace(RESPLAT, **changes))
    drawn = rasterize(gaussians, cameras, (12, 16), "reference")
    for view in range(2):
        wanted = oracle.draw(gaussians, cameras, 0, view, 12, 16)
        for got, want in [(drawn.color, wanted.color), (drawn.depth, wanted.depth)]:
            np.testing.assert_allclose(got[0, view].numpy(), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"near": 0.2}, {"far": torch.inf}, {"clamp": "axis"}, {"alpha_cap": 0.99}, {"blur": 0.3},
        {"antialiased": False},
    ],
)  # fmt: skip
def test_every_rule_of_resplat_is_seen(
    generator: torch.Generator, changes: dict[str, float]
) -> None:
    """So that the comparisons of that scene would not pass without one of them."""
    gaussians, cameras = limits_of_resplat(generator, F64)
    changed = replace(gaussians, rules=replace(RESPLAT, **changes))
    wanted, other = (
        rasterize(given, cameras, (24, 32), "reference").color for given in (gaussians, changed)
    )
    assert (other - wanted).norm() > 5e-5 * wanted.norm()


def test_pixels_split_for_memory_draw_the_same(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    cameras, gaussians = random_cameras(1, generator), random_gaussians(300, generator)
    whole = rasterize(gaussians, cameras, (20, 36), "reference").color
    monkeypatch.setattr(reference, "PAIRS", 700)
    torch.testing.assert_close(rasterize(gaussians, cameras, (20, 36), "reference").color, whole)


@pytest.mark.parametrize("rules", [CLASSIC, MIP, ODD_RULES, RESPLAT])
def test_gradients(generator: torch.Generator, rules: DrawingRules) -> None:
    """Also of a Gaussian beside the image, where the Jacobian is clamped."""
    cameras = random_cameras(2, generator, dtype=F64)
    cameras.K[..., 0, 2] -= 0.2
    gaussians = random_gaussians(5, generator, degree=2, dtype=F64)
    gaussians = replace(
        gaussians,
        means=gaussians.means * 0.3 + torch.tensor([0.0, 0.0, 2.5], dtype=F64),
        # as wide as the image, so that no finite difference crosses alpha = 1/255
        scales=gaussians.scales + 1.5,
        opacities=0.3 + 0.4 * torch.rand(1, 5, generator=generator, dtype=F64),
        sh=gaussians.sh * 0.3,
    )
    gaussians.means[0, 0, 0] = 3.0
    attributes = torch.randn(1, 5, 2, generator=generator, dtype=F64)
    background = torch.rand(1, 3, generator=generator, dtype=F64)

    def draw(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        means, scales, quats, opacities, sh, features, behind = tensors
        drawn = rasterize(
            Gaussians(means, scales, quats, opacities, sh, rules),
            cameras,
            (3, 4),
            "reference",
            behind,
            features,
            extras=["screen"],
        )
        assert drawn.attributes is not None and drawn.screen is not None
        return drawn.color, drawn.depth, drawn.alpha, drawn.attributes, drawn.screen.means

    parts = (gaussians.means, gaussians.scales, gaussians.quats_wxyz, gaussians.opacities)
    inputs = (*parts, gaussians.sh, attributes, background)
    assert torch.autograd.gradcheck(draw, tuple(x.clone().requires_grad_() for x in inputs))
