"""The door: what every backend draws, what is refused, and what odd input gives."""

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pmsplat
from pmsplat.errors import UserError
from pmsplat.geometry import gaussian, se3, sh
from pmsplat.render import backends, gsplat, obstacle, rasterize
from pmsplat.types import CLASSIC, MIP, RESPLAT, Cameras, DrawingRules, Gaussians
from tests.scenes import ODD_RULES, PARAMETERS, random_cameras, random_gaussians

both = pytest.mark.parametrize("backend", ["reference", "cpu"])


def front_camera(K: Tensor | None = None, near: float = 0.5) -> Cameras:
    """One camera at the origin that looks along +z, 90 degrees wide."""
    if K is None:
        K = torch.tensor([[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1.0]])
    edge = torch.full((1, 1), near)
    return Cameras(torch.eye(4)[None, None], K[None, None], edge, 100 * edge)


def cloud(means: list[list[float]], scale: float, opacity: float = 0.9) -> Gaussians:
    """Round grey Gaussians."""
    n = len(means)
    return Gaussians(
        means=torch.tensor(means).reshape(1, n, 3),
        scales=torch.full((1, n, 3), scale),
        quats_wxyz=torch.tensor([1.0, 0, 0, 0]).repeat(1, n, 1),
        opacities=torch.full((1, n), opacity),
        sh=torch.zeros(1, n, 1, 3),
    )


def finite_with_gradients(
    gaussians: Gaussians, cameras: Cameras, backend: str, size: tuple[int, int] = (9, 12)
) -> Gaussians:
    """Draws, checks that values and gradients are finite, and gives the gradients."""
    leaves = gaussians.map(lambda tensor: tensor.clone().requires_grad_())
    drawn = rasterize(leaves, cameras, size, backend)
    (drawn.color.sum() + drawn.depth.sum() + drawn.alpha.sum()).backward()
    for image in (drawn.color, drawn.depth, drawn.alpha):
        assert image.isfinite().all()
    gradients = leaves.map(lambda tensor: tensor.grad if tensor.grad is not None else tensor * 0)
    for name in PARAMETERS:
        assert getattr(gradients, name).isfinite().all(), name
    return gradients


@both
def test_nothing_in_sight_is_background(backend: str) -> None:
    behind = cloud([[0, 0, -2], [0, 0, 0], [0, 0, 0.09]], 0.3)  # z = 0, z < 0.2 · near
    drawn = rasterize(behind, front_camera(), (5, 7), backend, torch.tensor([0.2, 0.4, 0.6]))
    assert (drawn.alpha == 0).all() and (drawn.depth == 0).all()
    torch.testing.assert_close(drawn.color[0, 0, :, 3, 2], torch.tensor([0.2, 0.4, 0.6]))
    gradients = finite_with_gradients(behind, front_camera(), backend)
    assert all((getattr(gradients, name) == 0).all() for name in PARAMETERS)


@both
def test_no_gaussians_at_all(backend: str) -> None:
    drawn = rasterize(cloud([], 1.0), front_camera(), (4, 6), backend)
    assert drawn.color.shape == (1, 1, 3, 4, 6) and (drawn.color == 0).all()


@both
def test_each_camera_culls_by_its_own_near(backend: str) -> None:
    cameras = front_camera()
    cameras = Cameras(
        cameras.c2w.repeat(1, 2, 1, 1), cameras.K.repeat(1, 2, 1, 1),
        torch.tensor([[4.9, 5.1]]), torch.tensor([[100.0, 100.0]]),
    )  # fmt: skip
    alpha = rasterize(cloud([[0, 0, 1.0]], 0.2), cameras, (6, 6), backend).alpha
    assert alpha[0, 0].max() > 0.5 and (alpha[0, 1] == 0).all()


@both
@pytest.mark.parametrize("rules", [CLASSIC, MIP])
def test_odd_shapes_give_finite_pictures_and_gradients(backend: str, rules: DrawingRules) -> None:
    gaussians = replace(random_gaussians(12, torch.Generator().manual_seed(1)), rules=rules)
    gaussians.scales[0, 0] = 1e4  # covers everything
    gaussians.scales[0, 1] = torch.tensor([50.0, 1e-8, 1e-8])  # a needle through the image
    gaussians.scales[0, 2] = 0  # a point
    gaussians.scales[0, 3] = 1e30  # too wide to be drawn
    gaussians.means[0, 4] = torch.tensor([1e30, 0, 1.0])  # too far off
    gaussians.means[0, 5] = torch.tensor([0, 0, 0.1 + 1e-6])  # at the very cull
    gaussians.quats_wxyz[0, 6] = 0
    gaussians.opacities[0, 7] = 0
    gradients = finite_with_gradients(gaussians, front_camera(), backend)
    for undrawn in (3, 4, 7):
        assert (gradients.means[0, undrawn] == 0).all()
    alone = gaussians.map(lambda tensor: tensor[:, :1])
    alpha = rasterize(alone, front_camera(), (9, 12), backend).alpha
    torch.testing.assert_close(alpha, gaussians.opacities[0, 0].clamp(max=0.99).expand(1, 1, 9, 12))


@both
def test_a_needle_is_drawn_as_a_line(backend: str) -> None:
    """Along x through the centre of row 4: its profile across is the 0.3 px² of the blur."""
    needle = cloud([[0, 0, 1.0]], 0.0, opacity=0.5)
    needle.scales[0, 0, 0] = 1e3
    alpha = rasterize(needle, front_camera(), (9, 9), backend).alpha[0, 0]
    profile = 0.5 * torch.exp(-0.5 * (torch.arange(9) - 4.0) ** 2 / 0.3)
    profile = torch.where(profile < 1 / 255, 0, profile)
    torch.testing.assert_close(alpha, profile[:, None].expand(9, 9), rtol=1e-4, atol=1e-6)


def wide_camera(size: int) -> Cameras:
    """Looks along +z, a pixel wide at z = 1 for every unit, so that scales are in pixels there."""
    return front_camera(torch.tensor([[1 / size, 0, 0.5], [0, 1 / size, 0.5], [0, 0, 1.0]]))


@both
@pytest.mark.parametrize("sigma", [0.05, 0.13, 0.35, 0.58, 0.94, 2.5])
def test_the_rules_of_the_gaussians_are_followed(backend: str, sigma: float) -> None:
    """At its centre a splat of sigma s px has alpha o, antialiased o · s² / (s² + 0.3)."""
    splat = replace(cloud([[0, 0, 1.0]], sigma, opacity=0.8), rules=MIP)

    def centre(rules: DrawingRules | None) -> float:
        drawn = rasterize(splat, wide_camera(31), (31, 31), backend, rules=rules)
        return drawn.alpha[0, 0, 15, 15].item()

    mip = 0.8 * sigma**2 / (sigma**2 + 0.3)
    assert centre(None) == pytest.approx(mip, rel=1e-5) and centre(MIP) == centre(None)
    assert centre(CLASSIC) == pytest.approx(0.8, rel=1e-6)
    capped = DrawingRules(blur=0.1, antialiased=True, alpha_cap=0.6)
    wanted = min(0.6, 0.8 * sigma**2 / (sigma**2 + 0.1))
    assert centre(capped) == pytest.approx(wanted if wanted >= 1 / 255 else 0, rel=1e-5)


@both
def test_near_is_counted_in_nears_of_the_camera(backend: str) -> None:
    splat = cloud([[0, 0, 1.0]], 0.2)
    for near, seen in ((0.2, True), (1.99, True), (2.01, False)):
        drawn = rasterize(splat, front_camera(), (9, 9), backend, rules=DrawingRules(near=near))
        assert bool(drawn.alpha.any()) == seen


@both
def test_the_box_of_a_splat_follows_its_antialiased_opacity(backend: str) -> None:
    """Radius r: the opacity times exp(-r² / (2 (s² + 0.3))) is 1/255; none where it is fainter."""
    sigma, opacity = torch.tensor([0.02, 0.06, 0.3, 3.0]), 0.8
    splats = cloud([[0, 0, 1.0]] * 4, 1.0, opacity)
    splats = replace(splats, scales=sigma[None, :, None].expand(1, 4, 3), rules=MIP)
    screen = rasterize(splats, wide_camera(41), (41, 41), backend, extras=["screen"]).screen
    assert screen is not None
    faded = 255 * opacity * sigma**2 / (sigma**2 + 0.3)
    radii = (2 * (sigma**2 + 0.3) * faded.clamp_min(1).log()).sqrt()
    assert radii[0] == 0 < radii[1]
    torch.testing.assert_close(screen.radii[0, 0], radii, rtol=1e-3, atol=0)


def squares(image: Tensor, factor: int) -> Tensor:
    """Means over squares of `factor` pixels."""
    return torch.nn.functional.avg_pool2d(image[0], factor)


def test_antialiased_pictures_are_right_at_an_eighth_of_the_size() -> None:
    """Error against the large picture, averaged over squares: a third of the classic one or less.

    Gaussians of half a pixel to two pixels in the large picture: 0.06 to 0.25 in the small one.
    """
    generator = torch.Generator().manual_seed(6)
    gaussians = random_gaussians(6000, generator, degree=1)
    sigma = 0.5 + 1.5 * torch.rand(1, 6000, 3, generator=generator)
    gaussians = replace(gaussians, scales=sigma * gaussians.means[..., 2:].abs() / 256)
    cameras = front_camera(torch.tensor([[1.0, 0, 0.5], [0, 1.0, 0.5], [0, 0, 1.0]]))
    errors = {}
    for rules in (CLASSIC, MIP):
        large, small = (
            rasterize(gaussians, cameras, (side, side), "cpu", rules=rules).color[0]
            for side in (256, 32)
        )
        errors[rules] = (squares(large[None], 8) - small).abs().mean().item()
        assert large.mean() > 0.05
    assert errors[MIP] < errors[CLASSIC] / 3


@pytest.mark.parametrize(
    "changes",
    [
        {"blur": 0.0}, {"blur": math.inf}, {"alpha_cap": 1.0}, {"near": -0.1}, {"blur": math.nan},
        {"far": 0.0}, {"far": math.nan}, {"clamp": "center"},
    ],
)  # fmt: skip
def test_rules_that_no_backend_can_follow_are_explained(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="`alpha_cap` between 0 and 1"):
        replace(CLASSIC, **changes)


def test_a_backend_that_cannot_follow_refuses() -> None:
    device = torch.device("cpu")
    for rules in (CLASSIC, MIP, RESPLAT, ODD_RULES):
        for name in ("cpu", "reference"):
            assert obstacle(name, device, rules=rules) is None
    for rules in (CLASSIC, MIP, RESPLAT):
        assert gsplat.rules_obstacle(rules, device) is None
    assert "fixed cap of 0.999" in str(gsplat.rules_obstacle(ODD_RULES, device))


@both
@pytest.mark.parametrize("field", ["means", "scales", "quats_wxyz", "opacities", "sh"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_gaussian_is_left_out(backend: str, field: str, value: float) -> None:
    gaussians = random_gaussians(8, torch.Generator().manual_seed(2))
    kept = gaussians.map(lambda tensor: tensor[:, 1:])
    getattr(gaussians, field)[0, 0] = value
    wanted = rasterize(kept, front_camera(), (9, 12), backend)
    torch.testing.assert_close(
        rasterize(gaussians, front_camera(), (9, 12), backend).color, wanted.color
    )
    gradients = finite_with_gradients(gaussians, front_camera(), backend)
    assert all((getattr(gradients, name)[0, 0] == 0).all() for name in PARAMETERS)


@both
def test_an_opaque_wall_has_its_depth(backend: str) -> None:
    """A grid of flat Gaussians at z = 3: expected and median depth are 3 wherever it is hit."""
    x = torch.linspace(-4, 4, 33)
    grid = torch.stack([*torch.meshgrid(x, x, indexing="xy"), torch.full((33, 33), 3.0)], dim=-1)
    wall = cloud(grid.reshape(-1, 3).tolist(), 0.2, opacity=0.95)
    wall.scales[..., 2] = 1e-4
    drawn = rasterize(wall, front_camera(), (24, 24), backend, extras=["depth_median"])
    assert drawn.depth_median is not None and drawn.alpha.min() > 0.9
    torch.testing.assert_close(drawn.depth, torch.full_like(drawn.depth, 3.0), rtol=1e-5, atol=0)
    torch.testing.assert_close(drawn.depth_median, drawn.depth, rtol=1e-5, atol=0)


@both
def test_principal_point_and_skew_move_the_picture(backend: str) -> None:
    """A single Gaussian peaks at the pixel that K says."""
    K = torch.tensor([[0.8, 0.2, 0.3], [0, 0.7, 0.6], [0, 0, 1.0]])
    point = cloud([[0.22, -0.3, 2.0]], 0.01)
    alpha = rasterize(point, front_camera(K), (40, 60), backend).alpha[0, 0]
    row, column = divmod(int(alpha.argmax()), 60)
    u, v = ((K @ torch.tensor([0.11, -0.15, 1.0]))[:2] * torch.tensor([60, 40])).tolist()
    assert (column, row) == (math.floor(u), math.floor(v))


@both
def test_moving_scene_and_cameras_together_changes_nothing(
    backend: str, generator: torch.Generator
) -> None:
    dtype = torch.float64
    cameras = random_cameras(2, generator, dtype=dtype)
    gaussians = random_gaussians(150, generator, degree=3, dtype=dtype)
    turn = torch.nn.functional.normalize(torch.randn(4, generator=generator, dtype=dtype), dim=0)
    rotation = gaussian.quat_to_rotation(turn)
    motion = se3.compose(rotation, torch.tensor([3.0, -2.0, 5.0], dtype=dtype))
    moved = replace(
        gaussians,
        means=se3.transform(motion, gaussians.means),
        quats_wxyz=gaussian.quat_multiply(turn, gaussians.quats_wxyz),
        sh=sh.rotation_matrix(rotation, 3) @ gaussians.sh,
    )
    before = rasterize(gaussians, cameras, (24, 30), backend)
    after = rasterize(moved, replace(cameras, c2w=motion @ cameras.c2w), (24, 30), backend)
    for name in ("color", "depth", "alpha"):
        torch.testing.assert_close(
            getattr(after, name), getattr(before, name), rtol=1e-8, atol=1e-9
        )


@both
def test_scenes_and_views_do_not_mix(backend: str, generator: torch.Generator) -> None:
    cameras = random_cameras(2, generator, batch=2)
    gaussians = random_gaussians(80, generator, batch=2)
    attributes = torch.rand(2, 80, 2, generator=generator)
    behind = torch.rand(2, 3, generator=generator)
    together = rasterize(gaussians, cameras, (12, 15), backend, behind, attributes)
    for b in range(2):
        for t in range(2):
            alone = rasterize(
                gaussians.map(lambda x, b=b: x[b : b + 1]),
                cameras.map(lambda x, b=b, t=t: x[b : b + 1, t : t + 1]),
                (12, 15), backend, behind[b], attributes[b : b + 1],
            )  # fmt: skip
            torch.testing.assert_close(alone.color[0, 0], together.color[b, t])
            assert alone.attributes is not None and together.attributes is not None
            torch.testing.assert_close(alone.attributes[0, 0], together.attributes[b, t])


@both
def test_attributes_blend_as_colours_do(backend: str, generator: torch.Generator) -> None:
    """Degree-0 colours given as attributes too come out as the colour over black."""
    cameras, gaussians = random_cameras(1, generator), random_gaussians(60, generator, degree=0)
    rgb = (0.5 + sh.C0 * gaussians.sh[:, :, 0]).clamp_min(0)
    drawn = rasterize(gaussians, cameras, (10, 10), backend, torch.ones(3), rgb)
    assert drawn.attributes is not None
    over_white = drawn.attributes + (1 - drawn.alpha)[:, :, None]
    torch.testing.assert_close(drawn.color, over_white)


@both
def test_fewer_bands(backend: str, generator: torch.Generator) -> None:
    cameras, gaussians = random_cameras(1, generator), random_gaussians(60, generator, degree=3)
    cut = replace(gaussians, sh=gaussians.sh[:, :, :4])
    color = rasterize(gaussians, cameras, (10, 10), backend, sh_degree=1).color
    torch.testing.assert_close(color, rasterize(cut, cameras, (10, 10), backend).color)
    assert not torch.allclose(color, rasterize(gaussians, cameras, (10, 10), backend).color)


@both
def test_screen_tells_where_gaussians_fell(backend: str) -> None:
    drawn = rasterize(
        cloud([[0.5, 0, 2.0], [0, 0, -1.0]], 0.05), front_camera(), (20, 40), backend,
        extras=["screen"],
    )  # fmt: skip
    assert drawn.screen is not None
    torch.testing.assert_close(drawn.screen.means[0, 0, 0], torch.tensor([25.0, 10.0]))
    assert drawn.screen.radii[0, 0, 0] > 1 and drawn.screen.radii[0, 0, 1] == 0


@both
def test_autocast_changes_nothing(backend: str, generator: torch.Generator) -> None:
    cameras, gaussians = random_cameras(1, generator), random_gaussians(60, generator)
    plain = rasterize(gaussians, cameras, (10, 10), backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = rasterize(gaussians, cameras, (10, 10), backend)
        half = rasterize(gaussians.to(torch.bfloat16), cameras, (10, 10), backend)
    assert torch.equal(plain.color, cast.color) and half.color.dtype == torch.float32


def test_auto_draws_on_the_cpu_with_numba(generator: torch.Generator) -> None:
    cameras, gaussians = random_cameras(1, generator), random_gaussians(60, generator)
    auto = pmsplat.rasterize(gaussians, cameras, (10, 10)).color
    assert torch.equal(auto, rasterize(gaussians, cameras, (10, 10), "cpu").color)
    assert backends() == ["cpu", "diff_gaussian", "gsplat", "reference", "triton"]


@pytest.mark.parametrize("white", [(1, 1, 1), [1.0, 1, 1], np.ones(3)])
def test_a_background_of_three_numbers(white: Any, generator: torch.Generator) -> None:
    cameras, gaussians = random_cameras(1, generator), random_gaussians(9, generator)
    wanted = rasterize(gaussians, cameras, (10, 12), background=torch.ones(3)).color
    assert torch.equal(rasterize(gaussians, cameras, (10, 12), background=white).color, wanted)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backend": "gslpat"}, ["gslpat", "did you mean 'gsplat'"]),
        ({"backend": "gsplat"}, ["'gsplat'", "on cpu", "cuda"]),
        ({"size": (0, 4)}, ["(0, 4)"]),
        ({"sh_degree": 3}, ["sh_degree is 3", "0 to 2"]),
        ({"background": torch.ones(2, 3)}, ["background", "[2, 3]", "[1, 3]"]),
        ({"background": "white"}, ["'white'", "three numbers"]),
        ({"background": "111"}, ["'111'", "three numbers"]),
        ({"background": 1.0}, ["1.0", "three numbers"]),
        ({"background": [1, 1]}, ["[1, 1]", "three numbers"]),
        ({"size": 48}, ["48", "(height, width)"]),
        ({"size": (4.5, 3)}, ["4.5", "(height, width)"]),
        ({"size": (4, 3, 2)}, ["(4, 3, 2)", "(height, width)"]),
        ({"attributes": torch.ones(1, 7, 2)}, ["attributes", "[1, 7, 2]", "[1, 8, 2]"]),
        ({"extras": ["median"]}, ["'median'", "did you mean 'depth_median'"]),
    ],
)
def test_wrong_arguments_are_explained(changes: dict[str, Any], words: list[str]) -> None:
    arguments = {
        "gaussians": random_gaussians(8, torch.Generator().manual_seed(0)),
        "cameras": front_camera(),
        "size": (4, 4),
    }
    with pytest.raises(UserError) as caught:
        rasterize(**{**arguments, **changes})
    for word in words:
        assert word in str(caught.value)


def test_wrong_scenes_are_explained(generator: torch.Generator) -> None:
    gaussians, cameras = random_gaussians(8, generator), random_cameras(1, generator, batch=2)
    with pytest.raises(UserError, match=r"cameras.c2w has shape \[2, 1, 4, 4\]"):
        rasterize(gaussians, cameras, (4, 4))
    odd = object.__new__(Gaussians)  # past the shape hook of the tests
    for f in fields(gaussians):
        value = getattr(gaussians, f.name)
        object.__setattr__(odd, f.name, value[:, :, :5] if f.name == "sh" else value)
    with pytest.raises(UserError, match="5 SH coefficients"):
        rasterize(odd, cameras.map(lambda x: x[:1]), (4, 4))
