import pytest
import torch

from pmsplat.geometry import camera, se3
from tests.scenes import random_cameras


def test_project_inverts_unproject(generator: torch.Generator) -> None:
    K = random_cameras(3, generator, dtype=torch.float64).K[0]
    K[:, 0, 1] = 0.05  # skew is honoured too
    xy = torch.rand(3, 2, generator=generator, dtype=torch.float64)
    depth = torch.rand(3, generator=generator, dtype=torch.float64) + 0.5
    points = camera.unproject(xy, depth, K)
    torch.testing.assert_close(camera.project(points, K), xy)
    torch.testing.assert_close(points[..., 2], depth)


def test_unprojected_depth_projects_onto_its_own_pixels(generator: torch.Generator) -> None:
    cameras = random_cameras(2, generator, dtype=torch.float64)
    depth = torch.rand(1, 2, 4, 5, generator=generator, dtype=torch.float64) + 1
    points = camera.unproject_depth(depth, cameras.c2w, cameras.K)
    seen = camera.project_world(points.flatten(2, 3), cameras.c2w, cameras.K)
    grid = camera.pixel_grid(4, 5, like=depth).flatten(0, 1)
    torch.testing.assert_close(seen[..., :2], grid.expand_as(seen[..., :2]))
    torch.testing.assert_close(seen[..., 2], depth.flatten(2))


def test_pixel_centres_of_a_two_by_four_image() -> None:
    grid = camera.pixel_grid(2, 4, like=torch.zeros(()))
    assert grid[0, :, 0].tolist() == [0.125, 0.375, 0.625, 0.875]
    assert grid[:, 0, 1].tolist() == [0.25, 0.75]


def test_cropping_keeps_every_ray(generator: torch.Generator) -> None:
    K = random_cameras(1, generator, dtype=torch.float64).K[0, 0]
    whole = camera.directions(camera.pixel_grid(9, 13, like=K), K)
    cut = camera.crop_K(K, (9, 13), (2, 3), (4, 7))
    window = camera.directions(camera.pixel_grid(4, 7, like=K), cut)
    torch.testing.assert_close(window, whole[2:6, 3:10])


def test_field_of_view_of_a_centred_camera() -> None:
    K = torch.eye(3, dtype=torch.float64)
    K[0, 0], K[1, 1], K[:2, 2] = 0.5, 1.0, 0.5
    expected = 2 * torch.atan(torch.tensor([1.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(camera.field_of_view(K), expected)


def test_look_at_puts_the_target_on_the_axis_and_up_upwards(generator: torch.Generator) -> None:
    eye, target = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    c2w = se3.look_at(eye, target, up)
    assert se3.is_rigid(c2w).all()
    cam = se3.transform(se3.invert(c2w), torch.stack([target, eye + up], dim=1))
    torch.testing.assert_close(cam[:, 0, :2], torch.zeros(5, 2, dtype=torch.float64))
    assert (cam[:, 0, 2] > 0).all()
    assert (cam[:, 1, 1] < 0).all()  # y points down in the image


def test_interpolation_meets_both_ends_and_halves_the_angle(generator: torch.Generator) -> None:
    poses = random_cameras(2, generator, dtype=torch.float64).c2w[0]
    at = lambda f: se3.interpolate(poses[0], poses[1], torch.tensor(f, dtype=torch.float64))  # noqa: E731
    torch.testing.assert_close(at(0.0), poses[0])
    torch.testing.assert_close(at(1.0), poses[1])
    middle = at(0.5)
    first, second = (se3.invert(a) @ b for a, b in [(poses[0], middle), (middle, poses[1])])
    torch.testing.assert_close(first[:3, :3], second[:3, :3])


def test_is_rigid_finds_every_fault() -> None:
    good = torch.eye(4)
    scaled, mirrored, hollow, projective = (good.clone() for _ in range(4))
    scaled[:3, :3] *= 2
    mirrored[0, 0] = -1
    hollow[0, 3] = float("nan")
    projective[3, 0] = 1
    verdict = se3.is_rigid(torch.stack([good, scaled, mirrored, hollow, projective]))
    assert verdict.tolist() == [True, False, False, False, False]


def test_normals_of_a_plane_are_exact(generator: torch.Generator) -> None:
    K = random_cameras(3, generator, dtype=torch.float64).K[0]
    wanted = torch.nn.functional.normalize(
        torch.tensor([[0.0, 0, -1], [0.5, -0.3, -1], [-0.2, 0.8, -1]]).double(), dim=-1
    )
    for unit in (1.0, 1e-6, 1e6):
        rays = camera.rays(torch.eye(4).double(), K, 12, 16)
        depth = -unit / torch.einsum("vhwi,vi->vhw", rays, wanted)  # of the plane n · x = -unit
        assert (depth > 0).all()
        normals = camera.normals(depth, K)
        torch.testing.assert_close(normals, wanted[:, None, None].expand(3, 12, 16, 3))


def test_normals_end_where_depth_does(generator: torch.Generator) -> None:
    K = random_cameras(1, generator, dtype=torch.float64).K[0, 0]
    depth = 1 + torch.rand(5, 6, generator=generator, dtype=torch.float64)
    depth[2, 3] = 0
    normals = camera.normals(depth, K)
    unknown = torch.zeros(5, 6, dtype=torch.bool)
    unknown[2, 2:5] = unknown[1:4, 3] = True
    assert (normals[unknown] == 0).all()
    torch.testing.assert_close(normals[~unknown].norm(dim=-1), torch.ones(25).double())
    towards = (normals * camera.directions(camera.pixel_grid(5, 6, K), K)).sum(dim=-1)
    assert (towards[~unknown] < 0).all()
    depth[2, 3] = 1.5
    depth.requires_grad_()
    assert torch.autograd.gradcheck(lambda d: camera.normals(d, K), (depth,))
    hole = torch.where(unknown, 0, depth)
    (gradient,) = torch.autograd.grad(camera.normals(hole, K).sum(), depth)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_upright_from_an_axis_is_exact(axis: int, sign: float) -> None:
    up = sign * torch.eye(3)[axis]
    motion = se3.upright(up)
    assert torch.equal(motion[:3, :3] @ up, torch.tensor([0.0, -1, 0]))
    assert bool(se3.is_rigid(motion, 1e-9)) and set(motion.flatten().tolist()) <= {-1.0, 0.0, 1.0}


def test_upright_is_the_smallest_turn(generator: torch.Generator) -> None:
    """Its angle is that between `up` and -y."""
    for up in torch.randn(20, 3, generator=generator, dtype=torch.float64):
        motion = se3.upright(up)
        down = torch.tensor([0.0, -1, 0]).double()
        torch.testing.assert_close(motion[:3, :3] @ up / up.norm(), down, rtol=0, atol=1e-12)
        angle = ((motion[:3, :3].trace() - 1) / 2).acos()
        torch.testing.assert_close(angle, (down @ up / up.norm()).acos(), rtol=0, atol=1e-6)
