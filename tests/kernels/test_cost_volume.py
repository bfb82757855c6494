from dataclasses import replace

import pytest
import torch

from pmsplat.kernels import cost_volume
from pmsplat.kernels.cost_volume import Sweep, correlation, warped
from pmsplat.nn import cost_volume as pieces
from tests.golden import components
from tests.scenes import random_cameras

PATHS = ["compiled", "all_pairs"]


def scene(
    generator: torch.Generator, views: int, per_pixel: bool, batch: int = 2
) -> tuple[torch.Tensor, Sweep]:
    """Features and a sweep of random cameras, some hypotheses falling outside the other views."""
    height, width, planes = 6, 8, 5
    cameras = random_cameras(views, generator, batch, dtype=torch.float64)
    features = torch.randn(
        batch, views, 20, height, width, generator=generator, dtype=torch.float64
    )
    others = pieces.nearest_others(cameras.c2w, min(2, views - 1))
    size = (height, width) if per_pixel else (1, 1)
    inv_depth = 0.02 + 1.5 * torch.rand(
        batch, views, planes, *size, generator=generator, dtype=torch.float64
    )
    matrices = pieces.homographies(cameras, others, height, width)
    return features, Sweep(others, matrices.double(), inv_depth, pixel_center=0.5)


def single(where: Sweep) -> Sweep:
    return replace(
        where, homographies=where.homographies.float(), inv_depth=where.inv_depth.float()
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("views", "per_pixel"), [(2, False), (2, True), (4, False), (3, True)])
def test_fast_paths_equal_warping_in_float64(
    path: str, views: int, per_pixel: bool, generator: torch.Generator
) -> None:
    features, where = scene(generator, views, per_pixel)
    exact = features.clone().requires_grad_()
    expected = warped(exact, where)
    weight = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    (expected * weight).sum().backward()
    fast = features.float().requires_grad_()
    found = correlation(fast, single(where), path)
    (found * weight.float()).sum().backward()
    assert exact.grad is not None and fast.grad is not None
    assert 0 < (expected == 0).float().mean() < 0.6  # some of it is out of view, most is not
    torch.testing.assert_close(found.double(), expected, atol=3e-5, rtol=1e-4)
    torch.testing.assert_close(fast.grad.double(), exact.grad, atol=3e-5, rtol=1e-4)


def test_warping_passes_gradcheck(generator: torch.Generator) -> None:
    features, where = scene(generator, 2, True, batch=1)
    leaf = features[:, :, :3].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: warped(x, where), [leaf])


@pytest.mark.parametrize("rows", [11, 48, 100])
def test_the_memory_budget_changes_nothing(
    rows: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, where = scene(generator, 3, False)
    results = []
    for budget in (2**30, rows * 4 * 48):
        monkeypatch.setattr(cost_volume, "BUDGET_CPU", budget)
        leaf = features.float().requires_grad_()
        found = correlation(leaf, single(where), "all_pairs")
        found.square().sum().backward()
        results.append((found.detach(), leaf.grad))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def test_one_and_the_same_view_correlates_with_itself_at_any_depth() -> None:
    features = torch.randn(1, 2, 16, 4, 6)
    features = features[:, :1].expand(-1, 2, -1, -1, -1)
    c2w, K = (
        torch.eye(4).expand(1, 2, 4, 4),
        torch.tensor([[0.9, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]]),
    )
    near = torch.full((1, 2), 0.5)
    cameras = random_cameras(2, torch.Generator())
    cameras = replace(cameras, c2w=c2w, K=K.expand(1, 2, 3, 3), near=near)
    others = pieces.all_others(c2w)
    planes = torch.tensor([0.1, 1.0, 3.0]).view(1, 1, 3, 1, 1).expand(1, 2, 3, 1, 1)
    where = Sweep(others, pieces.homographies(cameras, others, 4, 6), planes, 0.5)
    expected = features.square().sum(2, keepdim=True).expand(1, 2, 3, 4, 6) / 4
    torch.testing.assert_close(correlation(features, where), expected, atol=1e-3, rtol=1e-3)


def test_warping_is_that_of_the_official_code() -> None:
    """Integer pixel coordinates, one K, depth per plane and pixel (components.npz warp/*)."""
    golden = components("warp")
    feature, K, pose, depth = (golden[k] for k in ("feat", "K", "pose", "depth"))
    matrices = cost_volume.sweep.homography(pose.double(), K.double(), K.double()).float()
    coordinates = cost_volume.sweep.source_coordinates(matrices, 1 / depth, 8, 12, pixel_center=0.0)
    grid = cost_volume._normalize(coordinates, 8, 12).flatten(1, 2)
    found = torch.nn.functional.grid_sample(feature, grid, align_corners=True)
    torch.testing.assert_close(found.unflatten(2, (-1, 8)), golden["out"], atol=2e-5, rtol=1e-4)


@pytest.mark.cuda
def test_cuda_equals_warping(generator: torch.Generator) -> None:
    features, where = scene(generator, 4, False)
    found = correlation(features.float().cuda(), _cuda(single(where)))
    torch.testing.assert_close(found.cpu().double(), warped(features, where), atol=2e-3, rtol=1e-3)


def _cuda(where: Sweep) -> Sweep:
    return Sweep(
        where.others.cuda(), where.homographies.cuda(), where.inv_depth.cuda(), where.pixel_center
    )
