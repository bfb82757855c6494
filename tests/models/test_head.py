"""Gaussians from numbers: against the official blocks' outputs, and against what must hold."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import normalize

from pmsplat.geometry import camera, gaussian, products, sh
from pmsplat.models import Deviations, _head
from pmsplat.types import Cameras, Gaussians
from tests.golden import components
from tests.models.official import renderer_basis, world_harmonics
from tests.scenes import PARAMETERS, random_cameras
from tests.waits import no_waits

SIZE = (4, 6)
RELEASED = Deviations.released(along_ray=False)


def rules(**changes: object) -> _head.Rules:
    settings = {"sh_degree": 2, "scale": "softplus", "scale_max": 3.0, "deviations": Deviations()}
    return _head.Rules(**{**settings, **changes})  # pyright: ignore[reportArgumentType]


def numbers(generator: torch.Generator, degree: int = 2) -> torch.Tensor:
    return torch.randn(1, 2, _head.channels(degree), *SIZE, generator=generator)


def place(
    raw: torch.Tensor,
    cameras: Cameras,
    how: _head.Rules,
    depth: torch.Tensor | None = None,
    images: torch.Tensor | None = None,
) -> Gaussians:
    images = torch.full((1, 2, 3, *SIZE), 0.25) if images is None else images
    depth = torch.full((1, 2, *SIZE), 2.0) if depth is None else depth
    (found,) = _head.gaussians_at(raw, (depth,), images, cameras, how)
    return found


def test_rotated_harmonics_are_e3nns_in_the_renderers_basis() -> None:
    """Camera frame -> Wigner rotation -> standard basis, in one matrix."""
    golden, convert = components("rotate_sh"), components("sh_convert")
    R = golden["R"].double()
    matrix = _head.sh_matrix(R[None], 2, RELEASED)[0]
    expected = golden["deg2/out"].double() @ convert["A"].T
    found = torch.einsum("nij,ncj->nci", matrix, golden["deg2/in"].double())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    identity = torch.eye(3, dtype=torch.float64)[None, None]
    torch.testing.assert_close(
        _head.sh_matrix(identity, 2, RELEASED)[0, 0], convert["A"], atol=1e-12, rtol=0
    )


def test_degree_three_is_what_the_published_renderer_draws_fault_included() -> None:
    golden, convert = components("rotate_sh"), components("sh_convert_deg3")
    expected = golden["deg4/out"].double()[..., :16] @ convert["A"].T
    matrix = _head.sh_matrix(golden["R"].double()[None], 3, RELEASED)[0]
    found = torch.einsum("nij,ncj->nci", matrix, golden["deg4/in"].double()[..., :16])
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    identity = torch.eye(3, dtype=torch.float64)[None, None]
    standard = _head.sh_matrix(identity, 3, RELEASED)[0, 0]
    torch.testing.assert_close(standard, convert["A"], atol=1e-12, rtol=0)
    drawn = sh.basis(convert["dirs"], 3) @ standard
    torch.testing.assert_close(drawn, convert["official_basis"], atol=1e-12, rtol=0)
    assert (drawn[:, 14] - sh.basis(convert["dirs"][:, [2, 0, 1]], 3)[:, 14]).abs().max() > 0.1


@pytest.mark.parametrize(("degree", "image_color"), [(2, True), (4, True), (4, False)])
def test_published_networks_show_the_colours_that_their_renderer_draws(
    degree: int, image_color: bool, generator: torch.Generator
) -> None:
    """From the head's numbers to colours, by the official formulas and by ours."""
    cameras, raw = random_cameras(2, generator), 4 * numbers(generator, degree)
    raw[:, :, _head.SH] *= 20  # so that all degrees show
    images = torch.rand(1, 2, 3, *SIZE, generator=generator)
    how = rules(sh_degree=degree, deviations=RELEASED, image_color=image_color)
    found = place(raw, cameras, how, images=images)
    directions = normalize(torch.randn(48, 3, generator=generator), dim=-1)

    rotation = cameras.c2w[..., :3, :3]
    stored = world_harmonics(raw[:, :, _head.SH], images if image_color else None, rotation)
    assert stored.shape[-1] == (degree + 1) ** 2
    drawn = min(degree, 3)  # their renderer does not look at degree four
    basis = renderer_basis(directions)[:, : (drawn + 1) ** 2]
    expected = torch.einsum("bgck,nk->bgnc", stored[..., : (drawn + 1) ** 2], basis)
    expected = (expected + 0.5).clamp_min(0)
    colors = sh.color(found.sh[:, :, None], directions)
    assert expected.std() > 0.3 and (expected == 0).any()
    torch.testing.assert_close(colors, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("deviations", "kept"), [(RELEASED, 16), (Deviations(), 25)])
def test_published_degree_four_is_kept_as_far_as_it_is_drawn(
    deviations: Deviations, kept: int, generator: torch.Generator
) -> None:
    how = rules(sh_degree=4, deviations=deviations)
    found = place(numbers(generator, 4), random_cameras(2, generator), how)
    assert found.sh.shape == (1, 2 * SIZE[0] * SIZE[1], kept, 3)
    assert (found.sh.abs().amax((0, 1, 3)) > 0).all()


def test_covariances_are_the_official_ones() -> None:
    golden = components("cov")
    identity = torch.eye(3).expand(1, 1, 3, 3)
    quats = _head.world_quats(golden["quat_xyzw"][None, None], identity)[0, 0]
    found = gaussian.covariance(golden["scale"], quats)
    torch.testing.assert_close(found, golden["out"], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("degree", [2, 4])
def test_everything_moves_with_the_cameras(degree: int, generator: torch.Generator) -> None:
    """Turning and shifting the world moves means, shapes and colours along, exactly."""
    cameras, raw = random_cameras(2, generator), numbers(generator, degree)
    raw[:, :, _head.SH] *= 20
    motion = random_cameras(1, generator, spread=2.0).c2w[0, 0]
    moved = Cameras(motion @ cameras.c2w, cameras.K, cameras.near, cameras.far)
    how = rules(sh_degree=degree)
    before, after = place(raw, cameras, how), place(raw, moved, how)
    means = before.means @ motion[:3, :3].T + motion[:3, 3]
    torch.testing.assert_close(after.means, means, atol=1e-5, rtol=1e-5)
    turned = motion[:3, :3] @ before.covariances @ motion[:3, :3].T
    torch.testing.assert_close(after.covariances, turned, atol=1e-5, rtol=1e-4)
    directions = normalize(torch.randn(48, 3, generator=generator), dim=-1)
    torch.testing.assert_close(
        sh.color(after.sh[0], directions @ motion[:3, :3].T),
        sh.color(before.sh[0], directions),
        atol=1e-4,
        rtol=1e-4,
    )


def offsets_seen(found: Gaussians, cameras: Cameras) -> tuple[torch.Tensor, torch.Tensor]:
    """How far from its pixel's centre every mean is seen, in pixels, and its depth."""
    seen = camera.project_world(found.means.unflatten(1, (2, -1)), cameras.c2w, cameras.K)
    centres = camera.pixel_grid(*SIZE, like=seen).flatten(0, 1)
    return (seen[..., :2] - centres) * torch.tensor([SIZE[1], SIZE[0]]), seen[..., 2]


def test_means_project_into_their_own_pixels_at_their_depth(generator: torch.Generator) -> None:
    cameras, raw = random_cameras(2, generator), numbers(generator)
    depth = 1 + torch.rand(1, 2, *SIZE, generator=generator)
    offset, z = offsets_seen(place(raw, cameras, rules(), depth), cameras)
    torch.testing.assert_close(z, depth.flatten(2), atol=1e-5, rtol=1e-5)
    expected = raw[:, :, _head.OFFSET].sigmoid().flatten(3).transpose(2, 3) - 0.5
    torch.testing.assert_close(offset, expected, atol=1e-4, rtol=1e-4)
    assert offset.abs().max() < 0.5


def test_free_means_leave_their_pixels(generator: torch.Generator) -> None:
    cameras, raw = random_cameras(2, generator), 2 * numbers(generator)
    offset, _ = offsets_seen(place(raw, cameras, rules(free_offset=True)), cameras)
    expected = 0.5 * raw[:, :, _head.OFFSET].flatten(3).transpose(2, 3)
    torch.testing.assert_close(offset, expected, atol=1e-4, rtol=1e-4)
    assert offset.abs().max() > 1.5


def test_along_the_ray_depth_is_a_distance(generator: torch.Generator) -> None:
    cameras, raw = random_cameras(2, generator), numbers(generator)
    depth = 1 + torch.rand(1, 2, *SIZE, generator=generator)
    exact = place(raw, cameras, rules(), depth).means.unflatten(1, (2, -1))
    found = place(
        raw, cameras, rules(deviations=Deviations(along_ray=True)), depth
    ).means.unflatten(1, (2, -1))
    centres = cameras.c2w[:, :, None, :3, 3]
    distance = (found - centres).norm(dim=-1)
    torch.testing.assert_close(distance, depth.flatten(2), atol=1e-5, rtol=1e-5)
    cosine = torch.cosine_similarity(found - centres, exact - centres, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    assert ((exact - centres).norm(dim=-1) > 1.1 * distance).any()


def test_silent_numbers_show_the_image(generator: torch.Generator) -> None:
    cameras = random_cameras(2, generator)
    for degree in (0, 2, 4):
        raw = torch.zeros_like(numbers(generator, degree))
        found = place(raw, cameras, rules(sh_degree=degree))
        color = sh.color(found.sh, normalize(found.means, dim=-1))
        torch.testing.assert_close(color, torch.full_like(color, 0.25))
    grey = place(raw, cameras, rules(sh_degree=4, image_color=False))
    assert (grey.sh == 0).all()


@pytest.mark.parametrize(
    ("scale", "formula"),
    [
        ("softplus", lambda s: (1 + (s - 4).exp()).log()),
        ("exp", lambda s: (s - 4).exp()),
    ],
)
def test_sizes_in_scene_units_end_at_a_maximum_that_lets_no_gradient_through(
    scale: str,
    formula: Callable[[torch.Tensor], torch.Tensor],
    generator: torch.Generator,
) -> None:
    cameras, raw = random_cameras(2, generator), 3 * numbers(generator)
    raw.requires_grad_()
    found = place(raw, cameras, rules(scale=scale, scale_max=0.3)).scales
    said = raw[:, :, _head.SCALE].flatten(3).transpose(2, 3).flatten(1, 2)
    free = formula(said.double()).float()
    torch.testing.assert_close(found, free.clamp(max=0.3), atol=1e-7, rtol=1e-4)
    found.sum().backward()
    assert raw.grad is not None
    gradient = raw.grad[:, :, _head.SCALE].flatten(3).transpose(2, 3).flatten(1, 2)
    assert 5 < (free > 0.3).sum() < free.numel()
    assert ((gradient == 0) == (free > 0.3)).all()
    farther = place(raw, cameras, rules(scale=scale, scale_max=0.3), torch.full((1, 2, *SIZE), 9.0))
    assert torch.equal(farther.scales, found)


def test_sizes_in_pixels_grow_with_depth(generator: torch.Generator) -> None:
    cameras, raw = random_cameras(2, generator), numbers(generator)
    depth = 1 + torch.rand(1, 2, *SIZE, generator=generator)
    found = place(raw, cameras, rules(scale="pixel", scale_max=torch.inf), depth).scales
    focal = cameras.K[..., 0, 0] * SIZE[1], cameras.K[..., 1, 1] * SIZE[0]
    footprint = 0.1 * (1 / focal[0] + 1 / focal[1])
    said = raw[:, :, _head.SCALE].flatten(3).transpose(2, 3)
    expected = (0.5 + 14.5 * said.sigmoid()) * (footprint[..., None] * depth.flatten(2))[..., None]
    torch.testing.assert_close(found, expected.flatten(1, 2), atol=1e-7, rtol=1e-4)


VARIANTS = [
    rules(),
    rules(sh_degree=4, scale="pixel", scale_max=torch.inf, deviations=Deviations.released(True)),
    rules(sh_degree=3, scale="exp", deviations=RELEASED, free_offset=True, image_color=False),
]


def values_and_gradients(how: _head.Rules, device: str) -> list[torch.Tensor]:
    """Gaussians from random numbers, and gradients of the sum of squares of their parameters."""
    generator = torch.Generator().manual_seed(0)
    cameras = random_cameras(2, generator, spread=5.0).to(device)
    images = torch.rand(1, 2, 3, *SIZE, generator=generator).to(device)
    raw = numbers(generator, how.sh_degree).to(device).requires_grad_()
    depth = (1 + torch.rand(1, 2, *SIZE, generator=generator)).to(device).requires_grad_()
    found = place(raw, cameras, how, depth, images)
    parts = [getattr(found, name) for name in PARAMETERS]
    total = sum(part.square().sum() for part in parts)
    assert isinstance(total, torch.Tensor)
    return [part.detach() for part in parts] + list(torch.autograd.grad(total, (raw, depth)))


@pytest.mark.parametrize("how", VARIANTS)
def test_without_products_of_matrices_it_is_the_same(
    how: _head.Rules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA, where such products may be in TF32."""
    wanted = values_and_gradients(how, "cpu")
    monkeypatch.setattr(products, "rounds_products", lambda tensor: tensor.dtype == torch.float32)
    found = values_and_gradients(how, "cpu")
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("how", VARIANTS)
def test_cuda_is_exact_where_products_are_in_tf32_and_makes_nobody_wait(how: _head.Rules) -> None:
    values_and_gradients(how, "cuda")  # compiles, and sends constants
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = values_and_gradients(how, "cuda")
    finally:
        torch.set_float32_matmul_precision(before)
    wanted = values_and_gradients(how, "cpu")
    torch.testing.assert_close([x.cpu() for x in found], wanted, atol=1e-5, rtol=1e-4)

    generator = torch.Generator().manual_seed(0)
    cameras = random_cameras(2, generator).to("cuda")
    raw, images = numbers(generator, how.sh_degree).cuda(), torch.rand(1, 2, 3, *SIZE).cuda()
    depth = torch.ones(1, 2, *SIZE, device="cuda").requires_grad_()
    with no_waits():
        place(raw.requires_grad_(), cameras, how, depth, images).sh.sum().backward()
