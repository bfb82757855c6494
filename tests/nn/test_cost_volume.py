from dataclasses import replace

import torch

from pmsplat.geometry import camera
from pmsplat.nn import cost_volume
from pmsplat.types import Cameras
from tests.scenes import random_cameras


def test_all_others_are_every_view_but_oneself() -> None:
    found = cost_volume.all_others(torch.eye(4).expand(2, 4, 4, 4))
    expected = [[j for j in range(4) if j != i] for i in range(4)]
    assert found.tolist() == [expected, expected]


def test_nearest_others_are_near_and_never_oneself() -> None:
    c2w = torch.eye(4).repeat(1, 5, 1, 1)
    c2w[0, :, 0, 3] = torch.tensor([0.0, 1.0, 3.0, 3.0, 10.0])  # views 2 and 3 coincide
    found = cost_volume.nearest_others(c2w, 2)[0].tolist()
    assert found == [[1, 2], [0, 2], [3, 1], [2, 1], [2, 3]]


def test_fewer_views_than_asked_for_are_all_the_others() -> None:
    c2w = torch.eye(4).repeat(1, 3, 1, 1)
    c2w[0, :, 0, 3] = torch.tensor([0.0, 5.0, 1.0])
    assert cost_volume.nearest_others(c2w, 9)[0].tolist() == [[2, 1], [2, 0], [0, 1]]
    assert cost_volume.nearest_others(c2w[:, :2], 2)[0].tolist() == [[1], [0]]


def carried(cameras: Cameras, reference_K: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Where homographies take the pixels of view 0 into view 1, and where those points are seen."""
    height, width = 6, 8
    size = torch.tensor([width, height])
    depth = 1 + torch.rand(1, height, width, generator=torch.Generator().manual_seed(0))
    c2w, K = cameras.c2w, cameras.K
    points = camera.unproject_depth(depth, c2w[:, 0], K[:, 0]).flatten(1, 2)
    expected = camera.project_world(points, c2w[:, 1], K[:, 1])[..., :2] * size
    others = cost_volume.all_others(c2w)
    H = cost_volume.homographies(cameras, others, height, width, reference_K=reference_K)[0, 0, 0]
    pixels = camera.pixel_grid(height, width, like=depth) * size
    rays = torch.cat([pixels, torch.ones(height, width, 1)], dim=-1)
    moved = ((rays @ H[:, :3].T) * depth[0, ..., None] + H[:, 3]).flatten(0, 1)
    return moved[:, :2] / moved[:, 2:], expected[0]


def test_homographies_carry_points_under_each_views_own_K(generator: torch.Generator) -> None:
    cameras = random_cameras(2, generator)
    found, expected = carried(cameras, reference_K=False)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    faulty, _ = carried(cameras, reference_K=True)
    assert (faulty - expected).abs().max() > 0.2
    alike = replace(cameras, K=cameras.K[:, :1].expand(-1, 2, -1, -1))
    found, expected = carried(alike, reference_K=True)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_sweep_finds_a_wall_though_intrinsics_differ(generator: torch.Generator) -> None:
    """A textured wall seen by two cameras, the second zoomed in: its depth agrees best."""
    cameras, size, right = random_cameras(2, generator, spread=0.0), (24, 32), 4
    c2w, K = torch.eye(4).repeat(1, 2, 1, 1), cameras.K.clone()
    c2w[0, 1, 0, 3] = 0.3
    K[:, 1, :2, :2] *= 1.5
    cameras = replace(cameras, c2w=c2w, K=K)
    candidates = cost_volume.full_range(torch.full((2,), 0.5), torch.full((2,), 8.0), 12)
    wall = (1 / candidates.inv_depth[0, right, 0, 0]).expand(1, 2, *size)
    points = camera.unproject_depth(wall, c2w, K)
    angles = points[..., :2] @ (6 * torch.randn(2, 16, generator=generator))
    features = torch.cat([angles.sin(), angles.cos()], dim=-1).permute(0, 1, 4, 2, 3)
    others = cost_volume.all_others(c2w)
    seen = camera.project_world(points[:, 0].flatten(1, 2), c2w[:, 1], K[:, 1])[0, :, :2]
    visible = ((seen > 0) & (seen < 1)).all(dim=-1).unflatten(0, size)
    found = []
    for faulty in (False, True):
        volume = cost_volume.cost_volume(
            features, cameras, others, candidates, reference_K=faulty, pixel_corners=faulty
        )
        best = volume[0].argmax(dim=0)[visible]
        found.append((best == right).float().mean().item())
    assert visible.sum() > 200 and found[0] == 1 and found[1] < 0.3


def test_fine_candidates_lie_half_a_step_apart_around_the_coarse_answer() -> None:
    whole = cost_volume.full_range(torch.tensor([0.5]), torch.tensor([100.0]), 128)
    step = (2.0 - 0.01) / 127 / 2
    coarse = torch.tensor([[[1.0, 0.02], [1.99, 2.0]]])
    fine = cost_volume.around(coarse, whole, 32).inv_depth[0]
    torch.testing.assert_close(fine[16, 0, 0], coarse[0, 0, 0])  # the middle one is the answer
    torch.testing.assert_close(fine[:, 0, 0].diff(), torch.full((31,), step), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(fine[0, 0, 1], torch.tensor(0.01))  # squeezed at the far end
    torch.testing.assert_close(fine[-1, 1], torch.tensor([2.0, 2.0]))  # and at the near end
    torch.testing.assert_close(fine[0, 1, 1], torch.tensor(2.0 - 16 * step))


def test_logarithms_of_depth_go_evenly_from_near_to_far() -> None:
    near, far = torch.tensor([0.01, 1.0]), torch.tensor([200.0, 16.0])
    whole = cost_volume.full_range(near, far, 5, cost_volume.LOG)
    depth = 1 / whole.inv_depth[..., 0, 0]
    torch.testing.assert_close(depth[1], torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]))
    torch.testing.assert_close(depth[0, [0, 2, 4]], torch.tensor([0.01, 2**0.5, 200.0]))
    fine = cost_volume.around(torch.tensor([2.0, 4.0]).log()[:, None, None], whole, 4)
    depth = 1 / fine.inv_depth[1, :, 0, 0]
    torch.testing.assert_close(depth, torch.tensor([2.0, 2.0**1.5, 4.0, 2.0**2.5]))
    # what is averaged and clamped is the logarithm: the mean of 1 and 16 is 4
    probability = torch.tensor([0.5, 0, 0, 0, 0.5]).expand(2, 1, 1, 5)
    mean = whole.space.to_depth(whole.expected(probability))
    torch.testing.assert_close(mean[:, 0, 0], torch.tensor([2**0.5, 4.0]))
    held = whole.hold(torch.tensor([-9.0, 9.0])[:, None, None])
    torch.testing.assert_close(whole.space.to_depth(held)[:, 0, 0], torch.tensor([0.01, 16.0]))


def test_spaces_lead_back_to_depth() -> None:
    depth = torch.tensor([0.01, 0.5, 3.0, 200.0])
    for space in (cost_volume.INVERSE, cost_volume.LOG):
        value = space.from_depth(depth)
        torch.testing.assert_close(space.to_depth(value), depth)
        torch.testing.assert_close(space.to_inv_depth(value), 1 / depth)


def test_a_depth_that_left_the_range_finds_back_unless_clamped() -> None:
    whole = cost_volume.full_range(torch.tensor([0.5]), torch.tensor([100.0]), 8)
    wanted = torch.tensor([[[1.0, 1.5, 0.3]]])
    beyond = torch.tensor([[[2.5, -0.7, 0.9]]])
    for hard_clamp in (False, True):
        x = beyond.clone().requires_grad_()
        for _ in range(200):
            held = whole.hold(x, hard_clamp=hard_clamp)
            assert held.min() >= 0.01 and held.max() <= 2.0
            (gradient,) = torch.autograd.grad((held - wanted).square().sum(), x)
            x = (x - 0.1 * gradient).detach().requires_grad_()
        there = torch.tensor([[[2.5, -0.7, 0.3]]]) if hard_clamp else wanted
        torch.testing.assert_close(x.detach(), there)
    # where a step would lead further away, nothing passes: the value does not drift off
    x = torch.tensor([[[2.5, -0.7, 0.9]]], requires_grad=True)
    away = torch.tensor([[[-1.0, 1.0, 1.0]]])
    whole.hold(x).backward(away)
    assert x.grad is not None and x.grad.tolist() == [[[0.0, 0.0, 1.0]]]


def test_the_expected_inverse_depth_is_the_mean_over_candidates(
    generator: torch.Generator,
) -> None:
    low, high = (
        torch.rand(2, 3, 4, generator=generator),
        1 + torch.rand(2, 3, 4, generator=generator),
    )
    candidates = cost_volume.Candidates(low, high, 7)
    probability = torch.rand(2, 3, 4, 7, generator=generator).softmax(dim=-1)
    expected = (probability * candidates.inv_depth.permute(0, 2, 3, 1)).sum(-1)
    torch.testing.assert_close(candidates.expected(probability), expected)


def test_an_untrained_regressor_answers_the_middle(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    regressor = cost_volume.Regressor(24, 16, 3, 8, "sdpa")
    candidates = cost_volume.full_range(torch.full((2,), 0.5), torch.full((2,), 100.0), 8)
    maps = [
        torch.randn(2, 8, 8, 8, generator=generator),
        torch.randn(2, 16, 8, 8, generator=generator),
    ]
    found = regressor(maps, candidates, 2)
    middle = (2 + 0.01) / 2
    assert (found.value - middle).abs().max() < 0.25 * middle
    assert ((found.confidence > 1 / 8) & (found.confidence < 0.4)).all()
