"""Procedural scenes: exact depth, one color from everywhere, the same example every time."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import grid_sample

from pmsplat import registry
from pmsplat.data import _scenery, _textures, _tracer, scenery
from pmsplat.errors import UserError
from pmsplat.geometry import camera
from pmsplat.types import Batch

STEP = torch.zeros((), dtype=torch.int64)
SIZE = (48, 64)


def settings(**more: object) -> scenery.Config:
    return scenery.Config(textures=8, sizes=[[32, 48], [48, 32]], **more)  # pyright: ignore


def drawn(seed: int) -> tuple[_scenery.Cameras, _scenery.Scene]:
    rng = np.random.default_rng(seed)
    cameras = _scenery.draw_cameras(rng, SIZE[1] / SIZE[0], 2, 1)
    return cameras, _scenery.draw_scene(rng, cameras, 8)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_depth_against_surfaces_in_float64(seed: int) -> None:
    """Each pixel's point lies on a surface, and no point of its ray before that inside a body."""
    cameras, scene = drawn(seed)
    blank = np.zeros((8, _tracer.TEXELS, 3), np.uint8)
    picture = _tracer.trace(scene.bodies, blank, scene.light, cameras.c2w[1], cameras.K, SIZE)
    c2w, K = torch.from_numpy(cameras.c2w[1]), torch.from_numpy(cameras.K)
    rays = camera.rays(c2w, K, *SIZE).numpy().reshape(-1, 3)
    depth = picture.depth.reshape(-1).astype(np.float64)
    first = np.full(len(depth), np.inf)
    for i in range(len(scene.bodies.kind)):
        first = np.minimum(first, _first(scene.bodies, i, cameras.c2w[1, :3, 3], rays))
    close = np.abs(depth - first) <= 1e-3 * first  # rays that graze an edge may differ
    assert close.mean() > 0.995
    assert np.isfinite(depth).all()


def _first(b: _tracer.Bodies, i: int, eye: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """First hit: crossings of the planes and quadrics of the unit shape that lie on it."""
    m = b.to_local[i].astype(np.float64)
    o, d = m @ (eye - b.center[i]), rays @ m.T
    found = []
    with np.errstate(all="ignore"):
        kind = b.kind[i]
        sides = {_tracer.SQUARE: [(2, 0)], _tracer.DISC: [(2, 0)]}
        sides[_tracer.BOX] = [(axis, side) for axis in range(3) for side in (-1, 1)]
        sides[_tracer.CYLINDER] = [(1, -1), (1, 1)]
        for axis, side in sides.get(kind, []):
            found.append((side - o[axis]) / d[:, axis])
        if kind in (_tracer.BALL, _tracer.CYLINDER):
            used = [0, 1, 2] if kind == _tracer.BALL else [0, 2]
            A, B = (d[:, used] ** 2).sum(1), d[:, used] @ o[used]
            root = np.sqrt(B**2 - A * ((o[used] ** 2).sum() - 1))
            found += [(-B - root) / A, (-B + root) / A]
        best = np.full(len(rays), np.inf)
        for t in found:
            p = o + t[:, None] * d
            x, y, z = (np.abs(p) - 1e-7).T
            on = {
                _tracer.SQUARE: (x <= 1) & (y <= 1),
                _tracer.DISC: x**2 + y**2 <= 1,
                _tracer.BOX: (x <= 1) & (y <= 1) & (z <= 1),
                _tracer.BALL: np.isfinite(t),
                _tracer.CYLINDER: (y <= 1) & (x**2 + z**2 <= 1 + 1e-6),
            }[kind]
            best = np.where(on & (t > 0) & (t < best), t, best)
    return best


def test_one_view_seen_from_another_has_its_colors() -> None:
    """Where depth says that both see one point, they have one color: light does not move."""
    errors, shares = [], []
    for seed in range(6):
        stream = scenery.build(settings(drift=0.0)).train(seed, STEP)
        batch = next(iter(stream))
        views = batch.context
        c2w, K = views.cameras.c2w[0], views.cameras.K[0]
        assert views.depth is not None
        depth = views.depth[0]
        points = camera.unproject_depth(depth[0], c2w[0], K[0]).reshape(-1, 3)
        seen = camera.project_world(points, c2w[1], K[1])
        grid = (2 * seen[:, :2] - 1)[None, None]
        maps = torch.cat([views.images[0, 1], depth[1][None]])[None]
        other = grid_sample(maps, grid, align_corners=False)[0, :, 0]
        inside = ((seen[:, :2] > 0) & (seen[:, :2] < 1)).all(dim=1)
        same = inside & ((seen[:, 2] / other[3] - 1).abs() < 0.01) & (depth[0].flatten() > 0)
        errors.append((other[:3] - views.images[0, 0].flatten(1)).abs().mean(dim=0)[same])
        shares.append(same.float().mean())
    assert torch.stack(shares).mean() > 0.4
    assert torch.cat(errors).median() < 0.02


def equal(one: Batch, other: Batch) -> bool:
    pairs = [(one.context, other.context), (one.target, other.target)]
    return one.scene == other.scene and all(
        torch.equal(a.images, b.images) and torch.equal(a.cameras.c2w, b.cameras.c2w)
        for a, b in pairs
    )


def test_examples_follow_from_seed_and_number() -> None:
    """A stream that begins later has the examples of one that began before; seeds differ."""
    data = scenery.build(settings(views=[2, 3]))
    whole = list(islice(data.train(3, STEP, 0, 2), 6))
    late = list(islice(data.train(3, STEP, 4, 2), 2))
    assert all(map(equal, whole[4:], late))
    assert not equal(whole[0], next(iter(data.train(4, STEP, 0, 2))))
    for first, second in zip(whole[::2], whole[1::2], strict=True):
        assert first.context.images.shape == second.context.images.shape


def test_evaluation_is_of_scenes_apart() -> None:
    data = scenery.build(settings(test_scenes=3))
    scenes = list(data.evaluation())
    assert len(scenes) == 3 == len(data.evaluation(9))
    assert all(batch.context.size == (32, 48) for batch in scenes)
    assert equal(scenes[0], next(iter(data.evaluation(1))))


def test_pieces_of_photographs(tmp_path: Path) -> None:
    """With photographs alone, the textures have their color; an empty folder is an error."""
    from PIL import Image

    with pytest.raises(UserError, match="no photograph"):
        scenery.build(settings(photos=str(tmp_path))).train(1, STEP)
    Image.new("RGB", (80, 60), (200, 30, 60)).save(tmp_path / "red.png")
    paths = _textures.read_photos(tmp_path)
    textures = _textures.make_textures(np.random.default_rng(0), 3, paths, 1.0)
    assert textures.shape == (3, _tracer.TEXELS, 3)
    assert np.abs(textures.astype(int) - (200, 30, 60)).max() <= 1


def test_a_mix_takes_turns_and_goes_on() -> None:
    """Parts get their shares; a stream that begins later goes on in each part."""
    part = {"name": "scenery", "textures": 8, "sizes": [[32, 32]]}
    parts = {"small": part | {"share": 2}, "large": part | {"sizes": [[48, 48]]}}
    config = registry.make_config("data", "mix", {"parts": parts, "evaluate": "large"})
    data = registry.build("data", "mix", config)
    whole = list(islice(data.train(1, STEP), 6))
    sides = [batch.context.size[0] for batch in whole]
    assert sorted(sides[:3]) == [32, 32, 48] and sides[3:] == sides[:3]
    late = list(islice(data.train(1, STEP, skip=4), 2))
    assert all(map(equal, whole[4:], late))
    assert next(iter(data.evaluation())).context.size == (48, 48)


def test_a_mix_of_nothing_is_refused() -> None:
    part = {"name": "scenery", "share": 0}
    for settings_, error in (({"parts": {"a": part}}, "a share"), ({"parts": {"a": {}}}, "name")):
        with pytest.raises(UserError, match=error):
            registry.build("data", "mix", registry.make_config("data", "mix", settings_))


def test_depth_is_none_where_the_sky_is() -> None:
    """No depth beyond the farthest body, and near and far hold most of what there is."""
    inside = []
    for batch in islice(scenery.build(settings()).train(9, STEP), 8):
        depth, cameras = batch.context.depth, batch.context.cameras
        assert depth is not None and (cameras.near < cameras.far).all()
        known = depth[depth > 0]
        held = (known > cameras.near[0, 0]) & (known < cameras.far[0, 0])
        inside.append(held.float().mean())
    assert torch.stack(inside).mean() > 0.85
