"""Scenes side by side: what is drawn is what rasterize draws, in any unit, at any place."""

import math
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from pmsplat.geometry import gaussian, se3, sh
from pmsplat.io.images import to_uint8
from pmsplat.io.video import read_frames
from pmsplat.render import rasterize
from pmsplat.types import CLASSIC, RESPLAT, Cameras, Gaussians
from pmsplat.view import figures, trajectory
from pmsplat.view.stage import (
    ALPHA,
    COLOR,
    CONFIDENCE,
    DEPTH,
    EXTENT,
    MIN_PIXELS,
    Exhibit,
    Pace,
    Stage,
    make_camera,
    select_for_browser,
)
from tests.scenes import random_cameras, random_gaussians

from .blocks import COUNT, SIZE, blocks, lookers, rated


def stage(*scenes: Gaussians) -> Stage:
    return Stage([Exhibit(str(i), scene) for i, scene in enumerate(scenes)], backend="cpu")


def join(*scenes: Gaussians) -> Gaussians:
    return Gaussians.joined(scenes)


def motion() -> torch.Tensor:
    """A turn by 40 degrees about a slanted axis, and a step."""
    axis = torch.nn.functional.normalize(torch.tensor([0.2, 1.0, -0.3]), dim=0)
    half = math.radians(20)
    quat = torch.cat([torch.tensor([math.cos(half)]), math.sin(half) * axis])
    return se3.compose(gaussian.quat_to_rotation(quat), torch.tensor([1.0, -0.5, 3.0]))


@pytest.mark.parametrize("unit", [1.0, 1000.0, 1e-3])
def test_pictures_are_those_of_rasterize_in_any_unit(unit: float) -> None:
    scene, cameras = blocks(unit, degree=2), lookers(unit)
    there = stage(scene)
    assert math.log2(there.unit) % 1 == 0
    radius = (there.exhibits[0].gaussians.means[0] - there.middles[0]).norm(dim=-1).quantile(0.95)
    assert 0.6 * EXTENT < radius < 1.6 * EXTENT
    for i in range(3):
        drawn = rasterize(scene, cameras.at([i]), SIZE, "cpu")
        camera = cameras.at([i]).scaled(1 / there.unit)
        color, _ = there.draw_picture(camera, SIZE, COLOR)
        np.testing.assert_array_equal(color, to_uint8(drawn.color[0, 0]))
        alpha, _ = there.draw_picture(camera, SIZE, ALPHA)
        np.testing.assert_array_equal(
            alpha[..., 1], to_uint8(drawn.alpha[0, 0].expand(3, -1, -1))[..., 0]
        )
        surface = torch.where(drawn.alpha >= 0.5, drawn.depth, 0)[0, 0]
        colored, (near, far) = there.draw_picture(camera, SIZE, DEPTH)
        assert (near, far) == pytest.approx(figures.color_range(surface))
        assert 2 * unit < near < 4.1 * unit and 5.5 * unit < far < 7.5 * unit
        wanted = to_uint8(figures.colorize_depth(surface, near, far))
        assert np.abs(colored.astype(int) - wanted).max() <= 6  # a step of the colour table


def test_confidence_is_a_kind_where_all_scenes_have_it() -> None:
    assert stage(blocks()).kinds == (COLOR, DEPTH, ALPHA)
    assert stage(rated(blocks()), blocks()).kinds == (COLOR, DEPTH, ALPHA)
    assert stage(rated(blocks()), rated(blocks())).kinds == (COLOR, DEPTH, ALPHA, CONFIDENCE)


def test_confidence_is_drawn_where_there_is_something() -> None:
    """Blocks that do not hide each other: each has the colour of its own confidence."""
    there, camera = stage(rated(blocks())), lookers().at([0])
    picture, _ = there.draw_picture(camera.scaled(1 / there.unit), SIZE, CONFIDENCE)
    color = rasterize(blocks(), camera, SIZE, "cpu").color[0, 0]
    seen = rasterize(blocks(), camera, SIZE, "cpu").alpha[0, 0] >= 0.5
    assert 500 < seen.sum() < seen.numel() / 2
    table = matplotlib.colormaps["viridis"]
    for i, level in enumerate((0.1, 0.5, 0.9)):
        block = seen & (color.argmax(dim=0) == i)
        wanted = 255 * np.array(table(level)[:3])
        assert block.sum() > 100
        assert np.abs(picture[block.numpy()] - wanted).max() < 4  # a step of the colour table
    assert (picture[~seen.numpy()] == 0).all()
    there.show(0, False)
    assert there.draw_picture(camera, SIZE, CONFIDENCE)[0].max() == 0


def test_planes_of_rules_hide_nothing_from_a_camera_that_is_moved() -> None:
    """Its near and far are those of the page, not of the training."""
    generator = torch.Generator().manual_seed(0)
    scene = replace(random_gaussians(50, generator), rules=RESPLAT)
    camera = random_cameras(1, generator)
    camera = replace(camera, near=0 * camera.near + 3.5, far=0 * camera.far + 4.0)
    shown = stage(scene)
    got = shown.render(camera.scaled(1 / shown.unit), (24, 32)).color
    rules = replace(RESPLAT, near=CLASSIC.near, far=math.inf)
    wanted = rasterize(scene, camera, (24, 32), rules=rules).color
    cut = rasterize(scene, camera, (24, 32)).color
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
    assert (cut - wanted).norm() > 0.1 * wanted.norm()


def test_scenes_are_drawn_where_they_stand() -> None:
    one, two, pose = blocks(), blocks(degree=2), motion()
    there = stage(one, two)
    placed = pose.clone()
    placed[:3, 3] /= there.unit
    there.place(1, placed)
    camera = lookers().at([1])
    padded = replace(one, sh=torch.nn.functional.pad(one.sh, (0, 0, 0, 8)))
    scaled = camera.scaled(1 / there.unit)
    for shown, wanted in (
        ((True, True), join(padded, two.transformed(pose))),
        ((True, False), one),
        ((False, True), two.transformed(pose)),
    ):
        for i, visible in enumerate(shown):
            there.show(i, visible)
        drawn = there.render(scaled, SIZE)
        truth = rasterize(wanted, camera, SIZE, "cpu")
        assert truth.alpha.mean() > 0.02
        torch.testing.assert_close(drawn.color, truth.color, rtol=0, atol=2e-3)
        torch.testing.assert_close(drawn.alpha, truth.alpha, rtol=0, atol=2e-3)
    there.show(1, False)
    assert there.render(scaled, SIZE).alpha.max() == 0


def test_the_browser_gets_the_gaussians_that_cover_most() -> None:
    scene = blocks(degree=1)
    opacities, scales = scene.opacities.clone(), scene.scales.clone()
    opacities[0, :COUNT] = 0.01  # red is faint, blue is large
    scales[0, 2 * COUNT :] *= 3
    means = scene.means.clone()
    means[0, -1, 1] = math.nan
    scene = replace(scene, opacities=opacities, scales=scales, means=means)
    splats = select_for_browser(scene, 2 * COUNT - 1)
    kept = torch.arange(COUNT, 3 * COUNT - 1)
    np.testing.assert_array_equal(splats.centers, scene.means[0, kept])
    np.testing.assert_allclose(splats.covariances, scene.covariances[0, kept], rtol=1e-6)
    np.testing.assert_array_equal(splats.opacities[:, 0], scene.opacities[0, kept])
    facing = sh.color(scene.sh[0, kept, :1], torch.tensor([0.0, 0, 1]).expand(len(kept), 3))
    np.testing.assert_allclose(splats.rgbs, facing.clamp(0, 1), atol=1e-6)
    few = select_for_browser(scene, COUNT // 2)
    assert len(few.centers) == COUNT // 2 and (few.rgbs.argmax(axis=1) == 2).all()


def test_pictures_become_as_large_as_their_time_allows() -> None:
    """Of a machine that needs 0.02 s and a microsecond per pixel."""
    most, pace = (1000, 1600), Pace(0.5)
    sizes = [pace.size(most)]
    assert sizes[0][0] * sizes[0][1] == pytest.approx(MIN_PIXELS, rel=0.02)
    for _ in range(12):
        height, width = sizes[-1]
        pace.update((height, width), 0.02 + 1e-6 * height * width)
        sizes.append(pace.size(most))
        assert sizes[-1][0] / sizes[-1][1] == pytest.approx(1000 / 1600, rel=0.02)
    assert 0.02 + 1e-6 * sizes[-1][0] * sizes[-1][1] == pytest.approx(0.5, rel=0.02)
    for _ in range(12):
        pace.update(pace.size(most), 1e-5)
    assert pace.size(most) == most
    for _ in range(12):
        pace.update(pace.size(most), 60)
    height, width = pace.size(most)
    assert height * width == pytest.approx(MIN_PIXELS, rel=0.02)


@pytest.mark.parametrize("kind", [COLOR, DEPTH, CONFIDENCE])
def test_a_video_goes_through_its_stops(tmp_path: Path, kind: str) -> None:
    there, seen = stage(rated(blocks())), list[int]()
    stops = lookers().scaled(1 / there.unit)
    there.record(tmp_path / "way.mp4", stops, 9, 10, SIZE, kind, seen.append)
    frames = read_frames(tmp_path / "way.mp4")
    assert seen == list(range(9)) and len(frames) == 9
    way = trajectory.through(stops, 9)
    depths = figures.color_range(
        torch.cat(
            [
                torch.where(one.alpha >= 0.5, one.depth, 0)
                for one in (there.render(stops.at([i]), (90, 120)) for i in range(3))
            ]
        )
        * there.unit
    )
    for i in (0, 5, 8):
        wanted, _ = there.draw_picture(way.at([i]), SIZE, kind, depths)
        assert np.abs(frames[i].astype(int) - wanted).mean() < 4  # the format halves the colour
        assert np.abs(frames[8 - i if i != 5 else 0].astype(int) - wanted).mean() > 6


def test_a_video_that_is_stopped_leaves_no_file(tmp_path: Path) -> None:
    there = stage(blocks())

    def watch(frame: int) -> None:
        if frame == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        there.record(tmp_path / "way.mp4", lookers(), 9, 10, SIZE, COLOR, watch)
    assert not list(tmp_path.iterdir())


def test_a_field_of_view_is_that_of_the_browser() -> None:
    """The angle between the upper and the lower edge, pixels being square."""
    camera: Cameras = make_camera(torch.eye(4), math.radians(60), (100, 250), 0.1)
    K = camera.K[0, 0]
    assert 2 * math.degrees(math.atan(0.5 / K[1, 1])) == pytest.approx(60)
    assert K[0, 0] * 250 == pytest.approx(K[1, 1] * 100)


def test_one_camera_of_a_scene_is_drawn_alone() -> None:
    scene, cameras = blocks(), lookers()
    exhibit = Exhibit("blocks", scene, cameras, ("a", "b", "c"), (SIZE,) * 3, (None,) * 3)
    there = Stage([exhibit, Exhibit("other", blocks(1.1))], backend="cpu")
    there.place(0, motion())
    picture = there.draw_thumbnail(0, 1, 60)
    wanted = rasterize(scene, cameras.at([1]), (60, 80), "cpu").color[0, 0]
    np.testing.assert_array_equal(picture, to_uint8(wanted))
