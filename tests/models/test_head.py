"""Gaussians from numbers: against the official blocks' outputs, and against what must hold."""

import torch

from pmsplat.geometry import camera, gaussian, sh
from pmsplat.models import _head
from pmsplat.types import Cameras, Gaussians
from tests.golden import components
from tests.scenes import random_cameras

SIZE = (4, 6)


def rules(**changes: object) -> _head.Rules:
    settings = {"sh_degree": 2, "scale_unit": "world", "scale_max": 3.0, "published": False}
    return _head.Rules(**{**settings, **changes})  # pyright: ignore[reportArgumentType]


def numbers(generator: torch.Generator, degree: int = 2) -> torch.Tensor:
    return torch.randn(1, 2, _head.channels(degree), *SIZE, generator=generator)


def place(
    raw: torch.Tensor, cameras: Cameras, how: _head.Rules, depth: torch.Tensor | None = None
) -> Gaussians:
    images = torch.full((1, 2, 3, *SIZE), 0.25)
    depth = torch.full((1, 2, *SIZE), 2.0) if depth is None else depth
    (found,) = _head.gaussians_at(raw, (depth,), images, cameras, how)
    return found


def test_rotated_harmonics_are_e3nns_in_the_renderers_basis() -> None:
    """Camera frame -> Wigner rotation -> standard basis, in one matrix."""
    golden, convert = components("rotate_sh"), components("sh_convert")
    R = golden["R"].double()
    matrix = _head.sh_matrix(R[None], 2, published=True)[0]
    expected = golden["deg2/out"].double() @ convert["A"].T
    found = torch.einsum("nij,ncj->nci", matrix, golden["deg2/in"].double())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    identity = torch.eye(3, dtype=torch.float64)[None, None]
    torch.testing.assert_close(
        _head.sh_matrix(identity, 2, published=True)[0, 0], convert["A"], atol=1e-12, rtol=0
    )


def test_degree_four_is_rotated_as_by_e3nn() -> None:
    golden = components("rotate_sh")
    R = golden["R"].double()[None]
    cycle = torch.eye(3, dtype=torch.float64).roll(1, dims=1)
    standard = sh.rotation_matrix(cycle, 4)
    found = standard.T @ _head.sh_matrix(R, 4, published=True)[0]
    for degree in (1, 2, 3, 4):
        cut = slice(degree**2, (degree + 1) ** 2)
        wigner = golden[f"D{degree}"].double()
        torch.testing.assert_close(found[:, cut, cut], wigner, atol=1e-5, rtol=1e-4)


def test_covariances_are_the_official_ones() -> None:
    golden = components("cov")
    identity = torch.eye(3).expand(1, 1, 3, 3)
    quats = _head.world_quats(golden["quat_xyzw"][None, None], identity)[0, 0]
    found = gaussian.covariance(golden["scale"], quats)
    torch.testing.assert_close(found, golden["out"], atol=1e-6, rtol=1e-4)


def test_everything_moves_with_the_cameras(generator: torch.Generator) -> None:
    """Turning and shifting the world moves means, shapes and colours along, exactly."""
    cameras, raw = random_cameras(2, generator), numbers(generator)
    motion = random_cameras(1, generator, spread=2.0).c2w[0, 0]
    moved = Cameras(motion @ cameras.c2w, cameras.K, cameras.near, cameras.far)
    before, after = place(raw, cameras, rules()), place(raw, moved, rules())
    means = before.means @ motion[:3, :3].T + motion[:3, 3]
    torch.testing.assert_close(after.means, means, atol=1e-5, rtol=1e-5)
    turned = motion[:3, :3] @ before.covariances @ motion[:3, :3].T
    torch.testing.assert_close(after.covariances, turned, atol=1e-5, rtol=1e-4)
    directions = torch.nn.functional.normalize(torch.randn(48, 3, generator=generator), dim=-1)
    torch.testing.assert_close(
        sh.color(after.sh[0], directions @ motion[:3, :3].T),
        sh.color(before.sh[0], directions),
        atol=1e-5,
        rtol=1e-4,
    )


def test_means_project_into_their_own_pixels_at_their_depth(generator: torch.Generator) -> None:
    cameras, raw = random_cameras(2, generator), numbers(generator)
    depth = 1 + torch.rand(1, 2, *SIZE, generator=generator)
    found = place(raw, cameras, rules(), depth).means.unflatten(1, (2, -1))
    seen = camera.project_world(found, cameras.c2w, cameras.K)
    torch.testing.assert_close(seen[..., 2], depth.flatten(2), atol=1e-5, rtol=1e-5)
    offset = (seen[..., :2] - camera.pixel_grid(*SIZE, like=seen).flatten(0, 1)) * torch.tensor(
        [SIZE[1], SIZE[0]]
    )
    expected = raw[:, :, _head.OFFSET].sigmoid().flatten(3).transpose(2, 3) - 0.5
    torch.testing.assert_close(offset, expected, atol=1e-4, rtol=1e-4)
    assert offset.abs().max() < 0.5


def test_silent_numbers_show_the_image(generator: torch.Generator) -> None:
    cameras = random_cameras(2, generator)
    for degree in (0, 2):
        raw = torch.zeros_like(numbers(generator, degree))
        found = place(raw, cameras, rules(sh_degree=degree))
        color = sh.color(found.sh, torch.nn.functional.normalize(found.means, dim=-1))
        torch.testing.assert_close(color, torch.full_like(color, 0.25))


def test_sizes_follow_their_unit(generator: torch.Generator) -> None:
    cameras, raw = random_cameras(2, generator), numbers(generator)
    near, far = torch.full((1, 2, *SIZE), 1.0), torch.full((1, 2, *SIZE), 3.0)
    world = [place(raw, cameras, rules(scale_max=0.02), depth).scales for depth in (near, far)]
    assert torch.equal(*world) and world[0].max() <= 0.02
    pixel = [place(raw, cameras, rules(scale_unit="pixel"), depth).scales for depth in (near, far)]
    torch.testing.assert_close(3 * pixel[0], pixel[1])
    width = 1 / (cameras.K[0, :, 0, 0] * SIZE[1]) + 1 / (cameras.K[0, :, 1, 1] * SIZE[0])
    share = pixel[0].unflatten(1, (2, -1)) / width[:, None, None]
    assert share.min() > 0.05 and share.max() < 1.5
