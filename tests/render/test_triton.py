"""The Triton backend against the reference in float64: interpreted on the CPU, compiled on CUDA."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pmsplat import render
from pmsplat.errors import UserError
from pmsplat.kernels import cuda
from pmsplat.render import fast_backend, gsplat, obstacle, rasterize
from pmsplat.render import triton as backend
from pmsplat.types import CLASSIC, MIP, RESPLAT, Cameras, DrawingRules, Gaussians, Rendering
from tests.kernels.interpreter import interpreted, kept_dense, last_program_first
from tests.scenes import (
    ODD_RULES,
    PARAMETERS,
    RULES,
    limits_of_resplat,
    random_cameras,
    random_gaussians,
)
from tests.waits import no_waits

pytest.importorskip("triton")
# What numpy says of infinities, and no device does
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DEVICE = CUDA if torch.cuda.is_available() else CPU
SLOW_ON_CPU = [pytest.mark.slow] if DEVICE == CPU else []
QUICK = replace(backend.TUNING, tile_h=16, tile_w=16, chunk=32, chunk_back=32)  # to interpret


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger blocks where each operation on a block takes as long as on any other."""
    if DEVICE == CPU:
        monkeypatch.setattr(backend, "TUNING", QUICK)


@pytest.fixture
def exact() -> Iterator[None]:
    """Deterministic algorithms are on."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Drawn:
    rendering: Rendering
    gradients: dict[str, Tensor]


def draw(
    name: str,
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    attributes: Tensor | None = None,
    sh_degree: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device = DEVICE,
) -> Drawn:
    """A rendering over gray, and the gradients of a fixed random function of all of it."""
    leaves = {part: getattr(gaussians, part) for part in PARAMETERS}
    if attributes is not None:
        leaves["attributes"] = attributes
    leaves = {part: x.to(device, dtype, copy=True).requires_grad_() for part, x in leaves.items()}
    drawn = rasterize(
        replace(gaussians, **{part: leaves[part] for part in PARAMETERS}),
        cameras.to(device).to(dtype), size, name, (0.3, 0.5, 0.7), leaves.get("attributes"),
        sh_degree, extras=["depth_median", "screen"],
    )  # fmt: skip
    assert drawn.screen is not None
    drawn.screen.means.retain_grad()
    generator = torch.Generator().manual_seed(4)
    total = torch.zeros((), device=device)
    for image in (drawn.color, drawn.depth, drawn.alpha, drawn.attributes):
        if image is not None:
            noise = torch.randn(image.shape, generator=generator)
            total = total + (image * noise.to(image)).sum()
    total.backward()
    gradients = {part: leaf.grad for part, leaf in leaves.items() if leaf.grad is not None}
    assert gradients.keys() == leaves.keys()
    if drawn.screen.means.grad is not None:
        gradients["screen"] = drawn.screen.means.grad
    rendering = drawn.detach().to("cpu")
    return Drawn(rendering, {part: grad.cpu() for part, grad in gradients.items()})


def is_close(got: Tensor, wanted: Tensor, slack: float = 0.0, rounding: float = 3e-5) -> bool:
    """Whether the error is within rounding, by norms; `slack` is what else may be wrong."""
    return bool((got - wanted).norm() <= rounding * wanted.norm() + slack)


def check(
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    attributes: Tensor | None = None,
    sh_degree: int | None = None,
    rounding: float = 3e-5,
) -> Drawn:
    """Draws, compares all with the reference in float64, and gives what that drew.

    Where rounding is larger for others in float32, as for opaque stacks, the same is allowed.
    """
    given = (gaussians, cameras, size, attributes, sh_degree)
    got = draw("triton", *given)
    wanted = draw("reference", *given, dtype=torch.float64, device=CPU)
    others = [draw(name, *given, device=CPU) for name in ("reference", "cpu")]
    for part in ("color", "depth", "alpha", "attributes", "depth_median"):
        ours, theirs = getattr(got.rendering, part), getattr(wanted.rendering, part)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == torch.float32 and ours.shape == theirs.shape
            assert is_close(ours, theirs), part
    ours, theirs = got.rendering.screen, wanted.rendering.screen
    assert ours is not None and theirs is not None
    seen = theirs.radii > 0
    assert is_close(ours.radii, theirs.radii) and is_close(ours.means[seen], theirs.means[seen])
    for part, theirs in wanted.gradients.items():
        error = (got.gradients[part] - theirs).norm() / theirs.norm()
        slack = max((other.gradients[part] - theirs).norm().item() for other in others)
        assert is_close(got.gradients[part], theirs, slack, rounding), f"{part}: {error:.1e}"
    return wanted


def odd_cameras(views: int, generator: torch.Generator, batch: int = 1) -> Cameras:
    """Cameras with skew and with principal points far off centre."""
    cameras = random_cameras(views, generator, batch=batch)
    cameras.K[..., 0, 1] = 0.1
    cameras.K[..., 0, 2] += 0.15
    return cameras


def front_camera(views: int = 1) -> Cameras:
    """Cameras at the origin that look along +z, 90 degrees wide."""
    K = torch.tensor([[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1.0]])
    near = torch.full((1, views), 0.5)
    return Cameras(torch.eye(4).expand(1, views, 4, 4), K.expand(1, views, 3, 3), near, 100 * near)


def cloud(means: Tensor, scale: float, opacity: float = 0.9) -> Gaussians:
    """Round gray Gaussians."""
    n = len(means)
    return Gaussians(
        means=means.reshape(1, n, 3),
        scales=torch.full((1, n, 3), scale),
        quats_wxyz=torch.tensor([1.0, 0, 0, 0]).repeat(1, n, 1),
        opacities=torch.full((1, n), opacity),
        sh=torch.zeros(1, n, 1, 3),
    )


@pytest.mark.parametrize(
    ("degree", "sh_degree", "channels", "rules"),
    [
        (3, None, 0, CLASSIC),
        (0, None, 1, MIP),
        (1, None, 20, ODD_RULES),  # more than one program takes
        (2, 1, 5, RULES["blurred"]),
        (4, None, 0, CLASSIC),
        (4, 2, 0, MIP),
        (3, None, 0, RESPLAT),
    ],
)
def test_values_and_gradients_are_those_of_the_reference(
    degree: int, sh_degree: int | None, channels: int, rules: DrawingRules,
    generator: torch.Generator,
) -> None:  # fmt: skip
    """Two scenes in two views; some behind, some opaque, some discs, needles and points."""
    gaussians = replace(random_gaussians(50, generator, batch=2, degree=degree), rules=rules)
    gaussians.means[:, :5, 2] -= 6
    gaussians.opacities[:, 5:10] = 1
    gaussians.scales[:, 10:14, 0] *= 1e-7
    gaussians.scales[:, 14:17, :2] = 0
    gaussians.scales[:, 17:19] = 0
    gaussians.scales[:, 19:26] *= 0.05
    attributes = torch.randn(2, 50, channels, generator=generator) if channels else None
    wanted = check(gaussians, odd_cameras(2, generator, batch=2), (19, 21), attributes, sh_degree)
    assert all(gradient.norm() > 0 for gradient in wanted.gradients.values())


def test_limits_of_rules_are_those_of_the_reference(generator: torch.Generator) -> None:
    """Planes, a clamp about the image, caps, needles; and no plane where there is no far."""
    gaussians, cameras = limits_of_resplat(generator)
    check(gaussians, cameras, (14, 18))
    endless = replace(gaussians, rules=replace(RESPLAT, far=math.inf))
    check(endless, replace(cameras, far=0 * cameras.far), (14, 18))


def test_tiles_as_small_as_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """Sizes that are no multiple of a tile; lists of several runs and of several segments."""
    tuning = replace(type(backend.TUNING)(), segment=32, parts=2, parts_back=4)
    monkeypatch.setattr(backend, "TUNING", tuning)
    gaussians = random_gaussians(100, generator, degree=1)
    check(gaussians, odd_cameras(1, generator), (11, 17))


def test_products_as_before_ampere(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """Devices without TF32 multiply float32 as it is, by a branch of their own."""
    monkeypatch.setattr(backend, "TUNING", replace(QUICK, precise="ieee"))
    gaussians = random_gaussians(30, generator, degree=1)
    attributes = torch.randn(1, 30, 3, generator=generator)
    check(gaussians, odd_cameras(1, generator), (9, 12), attributes)


def test_who_has_no_tf32(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    given = random_gaussians(1, generator), front_camera()
    plan = backend._Plan.of(*given, (8, 8), None, 0, False, CLASSIC)
    for capability, precision in (((7, 5), "ieee"), ((8, 0), "tf32x3"), ((12, 0), "tf32x3")):
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device, found=capability: found
        )
        assert plan.precision(CUDA) == precision


@pytest.mark.parametrize("views", [1, 24])
def test_any_number_of_views(views: int, generator: torch.Generator) -> None:
    cameras = random_cameras(views, generator)
    cameras.near[:, ::2] *= 13  # each culls by its own
    check(random_gaussians(20, generator, degree=1), cameras, (7, 5))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (16, 16)])
def test_odd_sizes(size: tuple[int, int], generator: torch.Generator) -> None:
    check(random_gaussians(20, generator, degree=0), random_cameras(1, generator), size)


def test_shapes_at_the_edge(generator: torch.Generator) -> None:
    """Covers all, needle through the image, point, too wide, too far off, at the very cull."""
    gaussians = random_gaussians(14, generator, degree=1)
    gaussians.opacities[0] *= 0.5
    gaussians.scales[0, 0] = 1e4
    gaussians.scales[0, 1] = torch.tensor([50.0, 1e-8, 1e-8])
    gaussians.scales[0, 2] = 0
    gaussians.scales[0, 3] = 1e30
    gaussians.means[0, 4] = torch.tensor([1e30, 0, 1.0])
    gaussians.means[0, 5] = torch.tensor([0, 0, 0.1 + 1e-6])
    gaussians.quats_wxyz[0, 6] = 0
    gaussians.opacities[0, 7] = 0
    gaussians.means[0, 8] = torch.tensor([0, 0, 0.0999])
    wanted = check(gaussians, front_camera(), (9, 12))
    for undrawn in (3, 4, 7, 8):
        assert (wanted.gradients["means"][0, undrawn] == 0).all()


def test_one_gaussian_over_everything(generator: torch.Generator) -> None:
    check(cloud(torch.tensor([[0.1, 0, 2.0]]), 50.0), front_camera(2), (33, 40))


def test_nothing_in_sight_and_nothing_at_all() -> None:
    behind = cloud(torch.tensor([[0, 0, -2.0], [0, 0, 0], [0, 0, 0.09]]), 0.3)
    for gaussians in (behind, cloud(torch.zeros(0, 3), 1.0)):
        drawn = draw("triton", gaussians, front_camera(), (5, 7), gaussians.means[..., :2] + 1)
        assert (drawn.rendering.alpha == 0).all() and (drawn.rendering.depth == 0).all()
        assert drawn.rendering.attributes is not None
        assert drawn.rendering.attributes.shape == (1, 1, 2, 5, 7)
        assert drawn.rendering.color[0, 0, :, 2, 3].tolist() == pytest.approx([0.3, 0.5, 0.7])
        assert all((gradient == 0).all() for gradient in drawn.gradients.values())


@pytest.mark.parametrize("field", [*PARAMETERS, "attributes"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_gaussian_is_left_out(
    field: str, value: float, generator: torch.Generator
) -> None:
    """Also where the number that is not finite is in a band of the SH that is not looked at."""
    gaussians = random_gaussians(8, generator, degree=1)
    attributes = torch.randn(1, 8, 2, generator=generator)
    wanted = draw(
        "reference", gaussians.map(lambda x: x[:, 1:]), front_camera(), (6, 8),
        attributes[:, 1:], 0, torch.float64, device=CPU,
    )  # fmt: skip
    broken = attributes if field == "attributes" else getattr(gaussians, field)
    broken.view(8, -1)[0, -1] = value
    got = draw("triton", gaussians, front_camera(), (6, 8), attributes, 0)
    assert is_close(got.rendering.color, wanted.rendering.color)
    for part, theirs in wanted.gradients.items():
        axis = 2 if part == "screen" else 1
        first, others = got.gradients[part].split([1, 7], dim=axis)
        assert (first == 0).all() and is_close(others, theirs), part


def test_equal_depths_are_blended_in_order_of_index(generator: torch.Generator) -> None:
    gaussians = random_gaussians(60, generator, degree=0)
    gaussians.means[..., 2] = gaussians.means[..., 2].round()
    gaussians.opacities[:] = 0.7
    check(gaussians, front_camera(), (16, 16))


@pytest.mark.parametrize(
    ("count", "rounding"),
    # Gray before gray: opacities hardly matter, so that their gradient is mostly rounding
    [(1100, 3e-5), pytest.param(10_000, 3e-3, marks=SLOW_ON_CPU)],
)
def test_many_on_one_pixel(count: int, rounding: float, generator: torch.Generator) -> None:
    """Faint ones, of which many count, then opaque ones, of which few do."""
    means = 0.01 * torch.randn(count, 3, generator=generator) + torch.tensor([0, 0, 2.0])
    gaussians = cloud(means, 0.02, opacity=0.012)
    gaussians.scales[..., 0] *= 1.5  # of round ones the gradient to rotations is rounding alone
    gaussians.opacities[:, ::97] = 0.3
    wanted = check(gaussians, front_camera(), (8, 8), rounding=rounding)
    assert 0.5 < wanted.rendering.alpha.max() < 0.9999
    gaussians.opacities[:] = 1.0
    wanted = check(gaussians, front_camera(), (8, 8), rounding=rounding)
    assert wanted.rendering.alpha.max() > 0.99


def test_lists_are_complete_and_in_order(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """Of Gaussians that are in one tile or in all, in more than one segment."""
    monkeypatch.setattr(backend, "TUNING", replace(type(backend.TUNING)(), segment=50))
    made: list[tuple[Any, ...]] = []
    make = backend._make_lists

    def spy(plan: Any, tables: Any) -> Any:
        made.append((plan, tables, make(plan, tables)))
        return made[0][2]

    monkeypatch.setattr(backend, "_make_lists", spy)
    gaussians = random_gaussians(200, generator, degree=0)
    gaussians.scales[:] *= 0.3
    gaussians.scales[:, ::19] *= 30
    gaussians.scales[:, 1::19, 0] *= 30
    gaussians.means[:, ::7, 2] = gaussians.means[:, ::7, 2].round()
    draw("triton", gaussians, front_camera(), (30, 45))
    plan, tables, lists = made[0]
    assert plan.segments == 4 and plan.grid == (4, 6)
    x, y, width, _height = tables.place.flatten(0, 2).double().cpu().unbind(-1)
    a, b, c, opacity = tables.look.flatten(0, 2).double().cpu()[:, :4].unbind(-1)
    keys, entries, starts = tables.keys[0].cpu(), lists.entries.cpu(), lists.starts.tolist()
    in_tile = 0
    for tile, (start, end) in enumerate(itertools.pairwise(starts)):
        row, column = divmod(tile, 6)
        v, u = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(8) + 0.5, indexing="ij")
        dx, dy = 8 * column + u.flatten() - x[:, None], 8 * row + v.flatten() - y[:, None]
        power = 0.5 * (a[:, None] * dx**2 + c[:, None] * dy**2) + b[:, None] * dx * dy
        inside = (8 * column + u.flatten() < 45) & (8 * row + v.flatten() < 30)
        alpha = opacity[:, None] * torch.exp(-power) * inside
        seen = (alpha.amax(dim=1) > 1.001 / 255) & (width > 0)
        listed = entries[start:end].long()
        assert set(seen.nonzero().flatten().tolist()) <= set(listed.tolist())
        order = [(keys[n].item(), n) for n in listed.tolist()]
        assert order == sorted(set(order))
        in_tile += int(seen.sum())
    assert 400 < in_tile <= starts[-1] < 1.1 * in_tile


def test_lists_that_are_too_long(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """Tiles are joined until the lists fit: to larger ones in one image, to one in the other."""
    tuning = replace(backend.TUNING, tile_h=4, tile_w=8, per_gaussian=2, per_tile=0)
    monkeypatch.setattr(backend, "TUNING", tuning)
    plans: list[tuple[int, Tensor]] = []
    make = backend._make_lists

    def spy(plan: Any, tables: Any) -> Any:
        plans.append((plan.budget, tables.totals.cpu()))
        return make(plan, tables)

    monkeypatch.setattr(backend, "_make_lists", spy)
    gaussians = random_gaussians(40, generator, batch=2, degree=0)
    gaussians.scales[0] *= 0.7
    gaussians.scales[1] *= 8
    check(gaussians, random_cameras(1, generator, batch=2), (15, 30))
    budget, totals = plans[0]
    assert budget == 80 and (totals > budget).sum(dim=1).tolist() == [1, 2], totals


def test_sums_that_do_not_depend_on_the_order(exact: None, generator: torch.Generator) -> None:
    gaussians = random_gaussians(40, generator, degree=1)
    check(gaussians, random_cameras(2, generator), (10, 17), torch.randn(1, 40, 2))


@interpreted
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_order_of_programs(deterministic: bool, generator: torch.Generator) -> None:
    """It changes the last bits of every gradient, unless sums are not to depend on it."""
    gaussians = random_gaussians(8, generator, degree=1)
    gaussians.scales[:] *= 4  # over several tiles each
    given = gaussians, front_camera(), (16, 40), torch.randn(1, 8, 2, generator=generator)
    torch.use_deterministic_algorithms(deterministic)
    try:
        first = draw("triton", *given)
        with last_program_first():
            second = draw("triton", *given)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first.rendering.color, second.rendering.color)
    assert len(first.gradients) == 7
    for part, gradient in first.gradients.items():
        assert torch.equal(gradient, second.gradients[part]) == deterministic, part


def test_a_gradient_of_the_means_in_pixels_alone(generator: torch.Generator) -> None:
    """It reaches Gaussians that no pixel shows, too, but none that is culled."""
    gaussians = random_gaussians(9, generator, degree=0)
    gaussians.means[0, 0, 0] = 50
    gaussians.means[0, 1, 2] = -1
    found = []
    for name, dtype, device in (
        ("triton", torch.float32, DEVICE), ("reference", torch.float64, CPU)
    ):  # fmt: skip
        means = gaussians.means.to(device, dtype, copy=True).requires_grad_()
        given = replace(gaussians.to(device).to(dtype), means=means)
        screen = rasterize(given, front_camera().to(device), (9, 9), name, extras=["screen"]).screen
        assert screen is not None
        (screen.means * torch.arange(9, device=device)[:, None]).sum().backward()
        assert means.grad is not None
        found.append(means.grad.cpu())
    assert is_close(*found)
    assert (found[0][0, 0] != 0).any() or (found[1][0, 0] == 0).all()
    assert (found[0][0, 1] == 0).all() and (found[0][0, 2:] != 0).any()


def test_saved_tensors_may_be_laid_out_anew(generator: torch.Generator) -> None:
    given = random_gaussians(20, generator, degree=1), random_cameras(2, generator), (7, 9)
    wanted = draw("triton", *given)
    with kept_dense():
        found = draw("triton", *given)
    assert wanted.gradients.keys() == found.gradients.keys()
    for part, gradient in wanted.gradients.items():
        assert is_close(found.gradients[part], gradient, rounding=1e-6), part


def test_float64_is_drawn_in_float32(generator: torch.Generator) -> None:
    gaussians, cameras = random_gaussians(9, generator), random_cameras(1, generator)
    plain = rasterize(gaussians.to(DEVICE), cameras.to(DEVICE), (6, 6), "triton")
    double = gaussians.to(DEVICE).to(torch.float64)
    drawn = rasterize(double, cameras.to(DEVICE).to(torch.float64), (6, 6), "triton")
    assert drawn.color.dtype == torch.float32 and torch.equal(drawn.color, plain.color)


def test_what_cannot_be_numbered_is_refused(generator: torch.Generator) -> None:
    gaussians, cameras = random_gaussians(5, generator), random_cameras(1, generator)
    with pytest.raises(UserError, match=r"1 pictures of 60000x40000 .* in 32 bits; wanted fewer"):
        rasterize(gaussians.to(DEVICE), cameras.to(DEVICE), (60000, 40000), "triton")


def test_why_it_cannot_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "interprets", lambda: False)
    assert "were given tensors on cpu; wanted tensors on a CUDA device" in str(
        obstacle("triton", CPU)
    )
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    assert "pip install triton" in str(obstacle("triton", CUDA))


def test_auto_prefers_it_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then gsplat, where that can do what is asked; else training is refused, with why."""
    no = UserError("triton is not installed", "triton", "install triton")
    found: dict[str, UserError | None] = {"triton": None, "gsplat": None}
    monkeypatch.setattr(backend, "obstacle", lambda device: found["triton"])
    monkeypatch.setattr(gsplat, "obstacle", lambda device: found["gsplat"])
    assert fast_backend(CUDA) == fast_backend(CUDA, True, ODD_RULES) == "triton"
    assert fast_backend(CPU) == "cpu" and render.draws_median("auto", CUDA)
    found["triton"] = no
    assert fast_backend(CUDA) == "gsplat" and not render.draws_median("auto", CUDA)
    found["gsplat"] = UserError("gsplat is not installed", "gsplat", "install it")
    with pytest.raises(UserError, match="no fast renderer can draw on cuda: triton is not"):
        fast_backend(CUDA)


def full_scene(batch: int = 2, views: int = 2, count: int = 131_072) -> tuple[Gaussians, Cameras]:
    """Gaussians of one to two pixels, as many as two pictures of 256x256 have pixels."""
    generator = torch.Generator().manual_seed(5)
    gaussians = random_gaussians(count, generator, batch=batch, degree=2)
    gaussians = replace(gaussians, scales=0.15 * gaussians.scales)
    return gaussians, random_cameras(views, generator, batch=batch, spread=0.1)


@pytest.mark.cuda
@pytest.mark.parametrize("rules", [CLASSIC, MIP])
@pytest.mark.parametrize("channels", [0, 20])
def test_full_size_is_what_the_cpu_draws(rules: DrawingRules, channels: int) -> None:
    gaussians, cameras = full_scene()
    gaussians = replace(gaussians, rules=rules)
    attributes = torch.randn(2, 131_072, channels) if channels else None
    got = draw("triton", gaussians, cameras, (256, 256), attributes)
    wanted = draw("cpu", gaussians, cameras, (256, 256), attributes, device=CPU)
    for part in ("color", "depth", "alpha", "attributes"):
        ours, theirs = getattr(got.rendering, part), getattr(wanted.rendering, part)
        if ours is not None:
            assert (ours - theirs).norm() <= 1e-4 * theirs.norm(), part
    assert wanted.rendering.alpha.mean() > 0.5
    for part, theirs in wanted.gradients.items():
        error = (got.gradients[part] - theirs).norm() / theirs.norm()
        assert error <= 1e-3, f"{part}: {error:.1e}"


@pytest.mark.cuda
def test_the_same_bits_in_every_run(exact: None) -> None:
    gaussians, cameras = full_scene()
    attributes = torch.randn(2, 131_072, 3)
    first, second = (draw("triton", gaussians, cameras, (256, 256), attributes) for _ in range(2))
    assert torch.equal(first.rendering.color, second.rendering.color)
    for part, gradient in first.gradients.items():
        assert torch.equal(gradient, second.gradients[part]), part


def forward_and_backward(
    leaves: Gaussians, cameras: Cameras, attributes: Tensor
) -> tuple[Tensor, ...]:
    """A picture with everything, and gradients, all on the device."""
    drawn = rasterize(
        leaves, cameras, (128, 120), "triton", (0.1, 0.2, 0.3), attributes,
        extras=["depth_median", "screen"],
    )  # fmt: skip
    assert drawn.attributes is not None
    total = drawn.color.square().sum() + drawn.depth.sum() + drawn.attributes.sum()
    inputs = [getattr(leaves, name) for name in PARAMETERS]
    return drawn.color.detach(), *torch.autograd.grad(total, [*inputs, attributes])


@pytest.mark.cuda
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_host_never_waits(deterministic: bool) -> None:
    gaussians, cameras = full_scene(count=20_000)
    leaves, cameras = gaussians.map(lambda x: x.cuda().requires_grad_()), cameras.to("cuda")
    attributes = torch.randn(2, 20_000, 3, device="cuda", requires_grad=True)
    torch.use_deterministic_algorithms(deterministic)
    try:
        forward_and_backward(leaves, cameras, attributes)  # compiles
        with no_waits():
            forward_and_backward(leaves, cameras, attributes)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.cuda
def test_drawing_is_captured_in_a_graph() -> None:
    """Forward and backward; other numbers in the same memory give another picture."""
    gaussians, cameras = full_scene(count=20_000)
    leaves, cameras = gaussians.map(lambda x: x.cuda().requires_grad_()), cameras.to("cuda")
    attributes = torch.randn(2, 20_000, 3, device="cuda", requires_grad=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        forward_and_backward(leaves, cameras, attributes)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_and_backward(leaves, cameras, attributes)
    with torch.no_grad():
        leaves.means.add_(0.05)
        leaves.scales.mul_(3.0)
    graph.replay()
    for got, wanted in zip(
        captured, forward_and_backward(leaves, cameras, attributes), strict=True
    ):
        assert (got - wanted).norm() <= 1e-4 * wanted.norm()
