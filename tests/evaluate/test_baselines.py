"""The baselines do what they say: the sweep finds depth, the nearest view finds itself."""

from dataclasses import replace

import pytest
import torch

from pmsplat.evaluate import baselines, protocol
from pmsplat.evaluate.depth import depth_metrics
from pmsplat.evaluate.metrics import psnr
from pmsplat.geometry import camera, se3
from pmsplat.scene.fit import stretch
from pmsplat.types import Batch, Cameras, Views
from tests.scenes import random_cameras


def texture(points: torch.Tensor) -> torch.Tensor:
    """A colour for every point in space that varies along x and y, smooth at the pixel."""
    x, y = points[..., 0], points[..., 1]
    waves = [
        torch.sin(7 * x + 3 * y) + torch.sin(13 * y),
        torch.sin(11 * y - 2 * x) + torch.cos(17 * x),
        torch.cos(9 * x + 8 * y) + torch.sin(5 * x),
    ]
    return 0.5 + 0.2 * torch.stack(waves, dim=-3)


def wall(cameras: Cameras, z: float, size: tuple[int, int]) -> Views:
    """Photos of a textured wall at world z, with their exact depth."""
    rays = camera.rays(cameras.c2w, cameras.K, *size)
    eye = cameras.c2w[..., None, None, :3, 3]
    depth = (z - eye[..., 2]) / rays[..., 2]
    return Views(texture(eye + depth[..., None] * rays), cameras, depth=depth)


def side_by_side(count: int, apart: float = 0.25) -> Cameras:
    c2w = torch.eye(4).repeat(1, count, 1, 1)
    c2w[0, :, 0, 3] = apart * (torch.arange(count) - (count - 1) / 2)
    K = torch.tensor([[0.9, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1]]).expand(1, count, 3, 3)
    near = torch.ones(1, count)
    return Cameras(c2w, K, near, 10 * near)


@pytest.mark.parametrize("views", [2, 4])
def test_sweep_finds_a_fronto_parallel_wall(views: int) -> None:
    scene = wall(side_by_side(views), 3.0, (48, 64))
    depth = baselines.sweep_depth(scene, planes=55)  # inverse depths a sixtieth apart: 1/3 is one
    assert scene.depth is not None
    got = depth_metrics(depth, scene.depth)
    assert got.abs_rel < 0.01 and got.delta1 > 0.98


def test_sweep_finds_a_slanted_scene_from_turned_cameras(generator: torch.Generator) -> None:
    given = random_cameras(3, generator, spread=0.15)
    cameras = replace(given, near=given.near * 2, far=given.near * 24)
    scene = wall(cameras, 3.5, (48, 64))
    assert scene.depth is not None
    got = depth_metrics(baselines.sweep_depth(scene), scene.depth)
    constant = depth_metrics(torch.full_like(scene.depth, float(scene.depth.median())), scene.depth)
    assert got.abs_rel < min(0.03, 0.5 * constant.abs_rel) and got.delta1 > 0.98


def test_sweep_sees_past_an_occlusion() -> None:
    """A box before the wall: what one neighbour cannot see, the better half of them does."""
    size, cameras = (48, 96), side_by_side(5, apart=0.15)
    rays = camera.rays(cameras.c2w, cameras.K, *size)
    eye = cameras.c2w[..., None, None, :3, 3]
    at_box = eye + 2.0 * rays
    box = (at_box[..., 0].abs() < 0.3) & (at_box[..., 1].abs() < 0.5)
    depth = torch.where(box, 2.0, 4.0)
    points = eye + depth[..., None] * rays
    images = texture(points + 5 * box[..., None])
    got = baselines.sweep_depth(Views(images, cameras), planes=37, window=3)[:, 2]
    metrics = depth_metrics(got, depth[:, 2])
    assert metrics.abs_rel < 0.05, metrics


def test_what_no_other_view_sees_takes_its_neighbours_depth() -> None:
    cameras = side_by_side(2, apart=1.0)  # the images overlap by two thirds at z = 3
    scene = wall(cameras, 3.0, (32, 96))
    depth = baselines.sweep_depth(scene, planes=55)
    assert (depth > 0).all()
    assert (depth[0, 0, :, :20] - 3).abs().median() < 0.05  # left of what the right view sees


def test_the_sweep_renders_unseen_views() -> None:
    scene = wall(side_by_side(3), 3.0, (64, 64))
    batch = Batch(scene.at([0, 2]), scene.at([1]), ["wall"])
    out = baselines.plane_sweep(batch, planes=55)
    assert out.prediction.depths[0].shape == (1, 2, 64, 64)
    assert out.prediction.gaussians[0].means.shape == (1, 2 * 64 * 64, 3)
    inside = (..., slice(4, -4), slice(4, -4))
    drawn, true = out.renderings[-1], scene.images[:, 1:2]
    copied = baselines.nearest_view(batch).renderings[0].color
    got = psnr(drawn.color[inside].flatten(0, 1), true[inside].flatten(0, 1))
    naive = psnr(copied[inside].flatten(0, 1), true[inside].flatten(0, 1))
    assert got.item() > 24 and got.item() > naive.item() + 8
    assert (drawn.depth[inside] - 3).abs().median() < 0.02
    assert drawn.alpha[inside].min() > 0.95


def test_pixel_splats_reproduce_their_own_photo(generator: torch.Generator) -> None:
    scene = wall(side_by_side(1), 3.0, (96, 128))
    assert scene.depth is not None
    batch = Batch(scene, scene, ["wall"])
    gaussians = baselines.pixel_splats(scene, scene.depth)
    drawn = baselines.rasterize(gaussians, batch.target.cameras, scene.size)
    assert psnr(drawn.color[0], scene.images[0]).item() > 28


def test_nearest_view_is_itself_and_counts_turning(generator: torch.Generator) -> None:
    cameras = random_cameras(5, generator)
    scene = Views(torch.rand(1, 5, 3, 8, 8, generator=generator), cameras)
    (rendering,) = baselines.nearest_view(Batch(scene, scene, ["x"])).renderings
    assert torch.equal(rendering.color, scene.images)
    assert rendering.alpha.min() == 1 and rendering.depth.max() == 0

    same_place = side_by_side(3, apart=0.0)
    angle = torch.tensor([0.0, 0.4, 1.0])
    zero = torch.zeros(3)
    target = torch.stack([angle.sin(), zero, angle.cos()], dim=-1)
    c2w = se3.look_at(torch.zeros(3, 3), target, torch.tensor([0.0, -1.0, 0.0]))[None]
    scene = Views(torch.rand(1, 3, 3, 8, 8, generator=generator), replace(same_place, c2w=c2w))
    got = baselines.nearest_view(Batch(scene.at([0, 2]), scene.at([1]), ["x"]))
    assert torch.equal(got.renderings[0].color, scene.images[:, :1])


def test_nearest_view_undoes_a_stretched_photo() -> None:
    scene = wall(side_by_side(2), 3.0, (54, 96))
    batch = Batch(stretch(scene, (64, 128)), scene, ["x"])
    got = baselines.nearest_view(batch).renderings[0].color
    assert psnr(got.flatten(0, 1), scene.images.flatten(0, 1)).min() > 38
    corners = (..., [0, 0, -1, -1], [0, -1, 0, -1])
    torch.testing.assert_close(got[corners], scene.images[corners])


def test_stretched_context_views_are_measured_at_the_size_of_the_targets() -> None:
    """As ReSplat's evaluation does at 540x960: the same scene, seen in taller pictures."""
    scene = wall(side_by_side(3), 3.0, (54, 96))
    plain = Batch(scene.at([0, 2]), scene.at([1]), ["wall"])
    stretched = replace(plain, context=stretch(plain.context, (58, 96)))
    want, got = (
        protocol.measure(baselines.plane_sweep(batch, planes=55)).values
        for batch in (plain, stretched)
    )
    assert want["psnr"] > 20 and abs(got["psnr"] - want["psnr"]) < 2
    assert got["abs_rel"] < 0.03


def test_batches_are_independent(generator: torch.Generator) -> None:
    scenes = [wall(side_by_side(2, apart), z, (24, 32)) for apart, z in ((0.2, 2.0), (0.3, 4.0))]
    both = Views(
        torch.cat([s.images for s in scenes]),
        Cameras(
            *(torch.cat([getattr(s.cameras, f) for s in scenes]) for f in vars(scenes[0].cameras))
        ),
    )
    together = baselines.sweep_depth(both, planes=20)
    alone = torch.cat([baselines.sweep_depth(replace(s, depth=None), planes=20) for s in scenes])
    assert torch.equal(together, alone)
