import torch

from pmsplat.geometry import camera, se3, sweep
from tests.scenes import random_cameras


def test_a_true_depth_lands_where_the_point_projects(generator: torch.Generator) -> None:
    """Each view's own K on its own side, pixel centres at one half."""
    h, w = 5, 7
    cameras = random_cameras(2, generator, dtype=torch.float64)
    (c2w_ref, c2w_src), (K_ref, K_src) = cameras.c2w[0], cameras.K[0]
    depth = 2 + torch.rand(h, w, generator=generator, dtype=torch.float64)
    points = camera.unproject_depth(depth, c2w_ref, K_ref).flatten(0, 1)
    expected = camera.project_world(points, c2w_src, K_src)[:, :2].unflatten(0, (h, w))
    homographies = sweep.homography(
        se3.invert(c2w_src) @ c2w_ref, camera.K_px(K_ref, h, w), camera.K_px(K_src, h, w)
    )
    found = sweep.source_coordinates(homographies, 1 / depth[None], h, w)[0]
    size = torch.tensor([w, h], dtype=torch.float64)
    torch.testing.assert_close((found + 0.5) / size, expected)


def test_the_same_view_maps_every_pixel_to_itself_at_any_depth() -> None:
    K_px = torch.tensor([[5.0, 0, 3.5], [0, 5, 2.5], [0, 0, 1]], dtype=torch.float64)
    homographies = sweep.homography(torch.eye(4, dtype=torch.float64), K_px, K_px)
    planes = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)[:, None, None]
    for center in (0.0, 0.5):
        found = sweep.source_coordinates(homographies, planes, 3, 4, pixel_center=center)
        grid = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(3.0), indexing="xy"), -1)
        torch.testing.assert_close(found, grid.double().expand(3, 3, 4, 2))


def test_planes_are_even_in_inverse_depth_and_ascend() -> None:
    planes = sweep.inverse_depth_planes(torch.tensor([0.5]), torch.tensor([100.0]), 5)
    torch.testing.assert_close(planes[0, [0, -1]], torch.tensor([0.01, 2.0]))
    torch.testing.assert_close(planes[0].diff(), torch.full((4,), 1.99 / 4))
