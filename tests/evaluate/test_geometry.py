"""Measures of surfaces against closed forms, and clouds against scipy's table of all distances."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from pmsplat.evaluate.geometry import (
    cloud_metrics,
    discontinuities,
    edge_metrics,
    geometry_metrics,
    normal_metrics,
    predicted_points,
)
from pmsplat.geometry import camera, se3
from pmsplat.types import Cameras, Prediction, Views
from tests.scenes import random_cameras, random_gaussians

SIZE = 12, 16


def seen(depth: Tensor, cameras: Cameras | None = None) -> Views:
    """Views of known depth [view, height, width]; without cameras, one after the other."""
    count = len(depth)
    if cameras is None:
        c2w = torch.eye(4).repeat(1, count, 1, 1)
        c2w[0, :, 0, 3] = 100.0 * torch.arange(count)
        K = torch.tensor([[1.2, 0, 0.5], [0, 1.6, 0.5], [0, 0, 1]]).repeat(1, count, 1, 1)
        cameras = Cameras(c2w, K, torch.ones(1, count), 9 * torch.ones(1, count))
    return Views(torch.zeros(1, count, 3, *depth.shape[1:]), cameras, depth[None])


def cloud(views: Views) -> Tensor:
    assert views.depth is not None
    return camera.unproject_depth(views.depth, views.cameras.c2w, views.cameras.K)


def test_a_displaced_plane_is_off_by_its_displacement() -> None:
    views = seen(torch.full((2, *SIZE), 2.0))
    found = cloud_metrics(cloud(views) + torch.tensor([0, 0, 0.25]), views)
    for name in ("accuracy", "completeness", "chamfer"):
        assert getattr(found, name) == pytest.approx(0.25, rel=1e-5)
        assert getattr(found, f"{name}_median") == pytest.approx(0.25, rel=1e-5)
        assert getattr(found, f"{name}_rel") == pytest.approx(0.125, rel=1e-5)
    assert found.points == found.true_points == 2 * math.prod(SIZE)


def test_accuracy_and_completeness_are_the_two_directions() -> None:
    """Half of the surface predicted exactly: accurate, and not complete."""
    views = seen(torch.full((1, *SIZE), 2.0))
    known = torch.zeros(1, 1, *SIZE, dtype=torch.bool)
    known[..., :8] = True
    found = cloud_metrics(cloud(views), views, known)
    apart = 2.0 / (1.2 * SIZE[1])  # of two pixels of a row
    assert found.accuracy == 0 and found.points == 8 * SIZE[0]
    assert found.completeness == pytest.approx(apart * sum(range(1, 9)) / 16, rel=1e-5)
    assert found.completeness_median == pytest.approx(0, abs=1e-6)
    assert found.true_points == math.prod(SIZE)


def a_scene(generator: torch.Generator) -> tuple[Views, Tensor, Tensor]:
    depth = 1 + 4 * torch.rand(2, *SIZE, generator=generator)
    depth[torch.rand(depth.shape, generator=generator) < 0.3] = 0
    views = seen(depth, random_cameras(2, generator, dtype=torch.float32))
    points = cloud(seen(1 + 4 * torch.rand(2, *SIZE, generator=generator), views.cameras))
    known = torch.rand(1, *depth.shape, generator=generator) < 0.8
    return views, points, known


def test_clouds_against_all_distances_in_float64(generator: torch.Generator) -> None:
    views, points, known = a_scene(generator)
    assert views.depth is not None
    found = cloud_metrics(points, views, known)
    true, ours = cloud(views)[views.depth > 0], points[known]
    counted = points[known & (views.depth > 0)]
    table = torch.from_numpy(cdist(counted.double(), true.double()))
    accuracy, at = table.min(dim=1)
    completeness = torch.from_numpy(cdist(true.double(), ours.double())).amin(dim=1)
    truth = views.depth[views.depth > 0].double()
    want = {
        "accuracy": accuracy.mean(),
        "accuracy_median": accuracy.median(),
        "accuracy_rel": (accuracy / truth[at]).mean(),
        "completeness": completeness.mean(),
        "completeness_median": completeness.median(),
        "completeness_rel": (completeness / truth).mean(),
        "chamfer": (accuracy.mean() + completeness.mean()) / 2,
    }
    for name, value in want.items():
        assert getattr(found, name) == pytest.approx(value.item(), rel=1e-4), name
    assert (found.points, found.true_points) == (len(counted), len(true))


def test_clouds_turned_moved_and_scaled_together(generator: torch.Generator) -> None:
    views, points, known = a_scene(generator)
    assert views.depth is not None
    before = vars(cloud_metrics(points, views, known))
    move = random_cameras(1, generator, dtype=torch.float32).c2w[0, 0]
    turned = replace(views, cameras=replace(views.cameras, c2w=move @ views.cameras.c2w))
    after = vars(cloud_metrics(se3.transform(move, points), turned, known))
    assert after == pytest.approx(before, rel=1e-4)
    larger = replace(views, cameras=views.cameras.scaled(8.0), depth=8 * views.depth)
    scaled = vars(cloud_metrics(8 * points, larger, known))
    for name, value in before.items():
        alike = name.endswith(("_rel", "points"))
        assert scaled[name] == pytest.approx(value if alike else 8 * value, rel=1e-5), name


def test_nothing_in_common_is_not_a_number(generator: torch.Generator) -> None:
    views, points, _ = a_scene(generator)
    found = cloud_metrics(points, views, torch.zeros(1, 2, *SIZE, dtype=torch.bool))
    assert math.isnan(found.chamfer) and found.points == 0 and found.true_points > 0


def step() -> Tensor:
    """A wall at 1 in front of one at 2, the edge between columns 7 and 8."""
    depth = torch.ones(SIZE)
    depth[:, 8:] = 2
    return depth


def columns(**at: float) -> Tensor:
    """The step with other depths in some columns: c6=1.25."""
    depth = step()
    for name, value in at.items():
        depth[:, int(name[1:])] = value
    return depth


@pytest.mark.parametrize(
    ("depth", "error", "flying"),
    [
        (step(), 0, 0),  # exact
        (columns(c6=1.25, c7=1.5, c8=1.75), (0.25 + 0.5 + 0.125) / 6, 3 / 6),  # blurred
        (columns(c7=2), 1 / 6, 0),  # sharp, in another place
        (columns(c7=0.5, c8=3), (0.5 + 0.5) / 6, 0),  # before and behind both
        (columns(c7=1.02, c8=1.98), (0.02 + 0.01) / 6, 0),  # on a surface, nearly
        (columns(c7=0), 1 / 6, 0),  # no prediction
        (columns(c2=1.5, c13=1.5), 0, 0),  # flying, but not at the edge
    ],
)
def test_edges_of_a_step(depth: Tensor, error: float, flying: float) -> None:
    """Within 2 pixels of the edge there are 6 columns: 5 to 10."""
    found = edge_metrics(depth, step(), within=2)
    assert found.edge_points == 6 * SIZE[0]
    assert found.edge_abs_rel == pytest.approx(error, abs=1e-6)
    assert found.flying == pytest.approx(flying, abs=1e-6)
    scaled = edge_metrics(7 * depth, 7 * step())
    assert vars(scaled) == pytest.approx(vars(found), abs=1e-6)
    turned = edge_metrics(depth.T.contiguous(), step().T.contiguous())
    assert vars(turned) == pytest.approx(vars(found), abs=1e-6)


def test_unknown_depth_makes_no_edge_and_does_not_count() -> None:
    truth = step()
    truth[:, 3] = 0  # not an edge from 1 to nothing and back
    truth[0, 7] = 0
    found = edge_metrics(columns(c7=1.5), truth, within=1)
    assert found.edge_points == 4 * SIZE[0] - 1
    assert found.flying == pytest.approx((SIZE[0] - 1) / found.edge_points)
    truth[:, 7] = 0  # a whole column of nothing between the walls: no neighbours, no edge
    assert not discontinuities(truth).any()
    nothing = edge_metrics(step(), truth)
    assert nothing.edge_points == 0 and math.isnan(nothing.flying)


def test_an_edge_is_a_jump_by_more_than_a_share() -> None:
    depth = torch.tensor([[1.0, 1.09, 1.3, 1.3], [1.0, 1.05, 1.2, 1.25]])
    want = torch.tensor([[False, True, True, False], [False, True, True, False]])
    assert torch.equal(discontinuities(depth), want)
    assert torch.equal(discontinuities(depth, jump=0.25), torch.zeros(2, 4, dtype=torch.bool))


def tilted(degrees: float, K: Tensor) -> Tensor:
    """The depth of a plane at 3, turned by so much about the vertical axis."""
    angle = math.radians(degrees)
    normal = torch.tensor([math.sin(angle), 0, math.cos(angle)])
    directions = camera.directions(camera.pixel_grid(*SIZE, like=K), K[None, None])
    return 3 * math.cos(angle) / (directions @ normal)


@pytest.mark.parametrize(("ours", "true"), [(0, 0), (10, 0), (0, 25), (-20, 15)])
def test_normals_of_tilted_planes_differ_by_the_tilt(ours: float, true: float) -> None:
    K = seen(torch.ones(1, *SIZE)).cameras.K[0, 0]
    found = normal_metrics(tilted(ours, K), tilted(true, K), K)
    assert found.normals == pytest.approx(math.cos(math.radians(ours - true)), abs=1e-5)
    assert found.normal_points == math.prod(SIZE)


def test_normals_at_an_edge_and_without_depth_do_not_count() -> None:
    K = seen(torch.ones(1, *SIZE)).cameras.K[0, 0]
    depth = step()
    depth[5, 3] = 0  # takes itself and its four neighbours along
    found = normal_metrics(depth, step(), K)
    assert found.normals == pytest.approx(1) and found.normal_points == (16 - 4) * 12 - 5


def test_the_truth_itself_is_perfect(generator: torch.Generator) -> None:
    views = seen(torch.stack([step(), 2 * step()]))
    assert views.depth is not None
    found = geometry_metrics(views, Prediction((views.depth,), ()))
    zero = ("accuracy", "completeness", "chamfer", "edge_abs_rel", "flying")
    assert all(value == 0 for name, value in found.items() if name.startswith(zero))
    assert found["normals"] == pytest.approx(1)
    views.depth[:] = 2.0
    smooth = geometry_metrics(views, Prediction((views.depth,), ()))
    assert smooth["chamfer"] == 0 and "flying" not in smooth and smooth["edge_points"] == 0
    views.depth[:] = 0.0
    assert geometry_metrics(views, Prediction((torch.ones_like(views.depth),), ())) == {}


def test_points_are_the_gaussians_where_each_pixel_has_one(generator: torch.Generator) -> None:
    views = seen(torch.stack([step(), step()]))
    assert views.depth is not None
    gaussians = random_gaussians(2 * math.prod(SIZE), generator)
    found = predicted_points(views, Prediction((views.depth,), (gaussians,)))
    assert torch.equal(found.flatten(1, 3), gaussians.means)
    few = random_gaussians(5, generator)
    found = predicted_points(views, Prediction((views.depth,), (few,)))
    assert torch.equal(found, cloud(views))


def test_normals_at_the_border_of_the_image_need_the_neighbours_that_there_are() -> None:
    K = seen(torch.ones(1, *SIZE)).cameras.K[0, 0]
    truth = tilted(10, K)
    corner = truth.clone()
    corner[0, 0] = 0  # takes itself and the two neighbours that it has along
    assert normal_metrics(corner, truth, K).normal_points == math.prod(SIZE) - 3
