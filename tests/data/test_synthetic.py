"""Rooms: exact depth, the same colour from everywhere, the same bytes every time."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import grid_sample

from pmsplat import config
from pmsplat.cli import main
from pmsplat.data import _rooms, synthetic
from pmsplat.errors import UserError
from pmsplat.geometry import camera

STEP = torch.zeros((), dtype=torch.int64)


def test_depth_against_rays_in_float64() -> None:
    """Each pixel's point lies on one of the surfaces, and no surface lies before it."""
    rng = np.random.default_rng(1)
    extent = np.array([5.0, 3.0, 6.0])
    path = _rooms.walk(rng, extent, 3, 1.5)
    room = _rooms.furnish(rng, path, extent)
    pictures = _rooms.trace(room, path, (24, 36))
    rays = camera.rays(path.c2w.double(), path.K.double(), 24, 36).numpy().reshape(-1, 3)
    eyes = np.repeat(path.c2w[:, :3, 3].double().numpy(), 24 * 36, axis=0)
    depth = pictures.depth.reshape(-1).astype(np.float64)
    first = np.full(len(depth), np.inf)
    for body in room.objects:
        first = np.minimum(first, _march(body, eyes, rays))
    np.testing.assert_allclose(depth, first, rtol=2e-5)


def _march(body: _rooms.Box | _rooms.Sphere, eyes: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """First hit by solving each face plane, or the quadratic, on its own."""
    best = np.full(len(eyes), np.inf)
    if isinstance(body, _rooms.Sphere):
        for eye, ray, i in zip(eyes, rays, range(len(eyes)), strict=True):
            o = eye - body.center
            roots = np.roots([ray @ ray, 2 * ray @ o, o @ o - body.radius**2])
            real = roots.real[np.abs(roots.imag) < 1e-12]
            best[i] = min((t for t in real if t > 0), default=np.inf)
        return best
    axes = body.axes.astype(np.float64)
    for axis in range(3):
        for side in (-1, 1):
            corner = body.center + side * body.half[axis] * axes[axis]
            with np.errstate(divide="ignore", invalid="ignore"):
                t = ((corner - eyes) @ axes[axis]) / (rays @ axes[axis])
                points = (eyes + t[:, None] * rays - body.center) @ axes.T
                others = [i for i in range(3) if i != axis]
                on = (np.abs(points[:, others]) <= body.half[others] + 1e-6).all(axis=1)
            best = np.where(on & (t > 1e-6) & (t < best), t, best)
    return best


def test_one_view_seen_from_another_has_its_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unprojecting the depth of one photo into another finds the same colours and depths."""
    monkeypatch.setattr(synthetic, "_NOISE", 0.0)
    monkeypatch.setattr(_rooms, "_PLAIN", 0.0)
    scene = synthetic.scene("a room", 6, (96, 128))
    images = torch.stack([torch.from_numpy(scene.image(i)).float() / 255 for i in (0, 5)])
    depths = torch.stack([torch.from_numpy(scene.depth(i)) for i in (0, 5)])
    points = camera.unproject_depth(depths[0], scene.c2w[0], scene.K[0])
    seen = camera.project_world(points.reshape(-1, 3), scene.c2w[5], scene.K[5])
    grid = (2 * seen[:, :2] - 1)[None, None]

    def sampled(values: torch.Tensor, mode: str) -> torch.Tensor:
        moved = grid_sample(values[None], grid, mode, "border", align_corners=False)
        return moved[0, :, 0].T

    other = sampled(depths[1][None], "nearest")[:, 0]
    inside = ((seen[:, :2] > 0) & (seen[:, :2] < 1)).all(dim=1)
    visible = inside & ((seen[:, 2] - other).abs() < 0.02 * other)
    assert visible.float().mean() > 0.6
    relative = ((seen[:, 2] - other).abs() / other)[visible]
    assert relative.median() < 0.004  # half a pixel of slope
    error = (sampled(images[1].permute(2, 0, 1), "bilinear") - images[0].reshape(-1, 3)).abs()
    shuffled = (images[0].reshape(-1, 3).roll(997, 0) - images[0].reshape(-1, 3)).abs()
    assert error[visible].median() < 0.02 < shuffled.median() / 3


def test_context_views_have_a_parallax_of_a_few_pixels() -> None:
    scene = synthetic.scene("another room", 9, (96, 96))
    points = camera.unproject_depth(torch.from_numpy(scene.depth(0)), scene.c2w[0], scene.K[0])
    still = points + (scene.c2w[8, :3, 3] - scene.c2w[0, :3, 3])  # as if nothing had moved
    a = camera.project_world(points.reshape(-1, 3), scene.c2w[8], scene.K[8])[:, :2]
    b = camera.project_world(still.reshape(-1, 3), scene.c2w[8], scene.K[8])[:, :2]
    assert 2 < float((a - b).norm(dim=1).median()) * 96 < 24


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        synthetic.write(tmp_path / name, 3, 4, (24, 32), seed=7, split="train")
    a, b = (sorted((tmp_path / name / "train").iterdir()) for name in ("a", "b"))
    assert [p.name for p in a] == ["000000.torch", "index.json", "synthetic.json"]
    assert all(x.read_bytes() == y.read_bytes() for x, y in zip(a, b, strict=True))


def test_splits_and_seeds_differ(tmp_path: Path) -> None:
    keys = set()
    for split, seed in (("train", 0), ("test", 0), ("train", 1)):
        root = tmp_path / f"{seed}"
        synthetic.write(root, 2, 2, (8, 8), seed, split)
        dataset = {p.read_bytes() for p in (root / split).glob("*.torch")}
        keys |= dataset
    assert len(keys) == 3


def test_the_dataset_makes_itself_once(tmp_path: Path) -> None:
    cfg = synthetic.Config(root=str(tmp_path), scenes=3, test_scenes=2, frames=10, size=[16, 24])
    dataset = synthetic.build(cfg)
    assert not any(tmp_path.iterdir())
    batches = list(dataset.evaluation())
    made = (tmp_path / "train" / "000000.torch").stat().st_mtime_ns
    assert len(batches) == 2 and batches[0].target.images.shape == (1, 3, 3, 16, 24)
    depth = batches[0].target.depth
    assert depth is not None and bool((depth > 0.9).all())
    cameras = batches[0].target.cameras
    inside = (depth > cameras.near[..., None, None]) & (depth < cameras.far[..., None, None])
    assert inside.float().mean() > 0.99
    next(iter(dataset.train(0, STEP)))
    assert (tmp_path / "train" / "000000.torch").stat().st_mtime_ns == made
    with pytest.raises(UserError, match="holds another dataset"):
        synthetic.build(synthetic.Config(root=str(tmp_path), scenes=4)).train(0, STEP)


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(key: str, frames: int, size: tuple[int, int]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write(tmp_path, 1, 2, (8, 8), 0, "train")
    assert not any(tmp_path.iterdir())


def test_other_data_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"\(not a procedural one\).*; choose another"):
        synthetic.write(tmp_path, 1, 2, (8, 8), 0, "train")


def test_no_split_is_made_beside_other_data(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match=r"\(not a procedural one\).*; choose another"):
        synthetic.make(synthetic.Config(str(tmp_path), scenes=1, test_scenes=1))
    assert not (tmp_path / "train").exists()


def test_rooms_of_other_settings_say_how_to_use_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message for both splits, and what it says works."""
    made = synthetic.Config(str(tmp_path), scenes=3, test_scenes=2, frames=10, size=[16, 24])
    synthetic.make(made)
    with pytest.raises(UserError, match="use it with") as told:
        synthetic.make(synthetic.Config(str(tmp_path)))
    words = re.findall(r"`(dataset\.[^`]+)`", str(told.value))
    assert len(words) == 5
    given = config.compose(["+experiment=demo_tiny", f"dataset.root={tmp_path}", *words])
    assert given.dataset.settings.scenes == 3
    synthetic.make(given.dataset.settings)
    assert main(["data", "synthetic", str(tmp_path)]) == 2
    flags = "--scenes 3 --test-scenes 2 --frames 10 --seed 0 --size 16x24"
    assert flags in capsys.readouterr().err
    assert main(["data", "synthetic", str(tmp_path), *flags.split()]) == 0
    for split, text in (("train", '"design": 3'), ("test", '"design": 3')):
        path = tmp_path / split / "synthetic.json"
        path.write_text(path.read_text().replace(text, '"design": 2'))
    with pytest.raises(UserError, match="; delete it: rooms have come to look different, or cho"):
        synthetic.make(made)


def test_rooms_that_no_settings_make_are_not_said_to_be_of_use(tmp_path: Path) -> None:
    """One split beside other data, and two of different sizes."""
    synthetic.write(tmp_path, 1, 3, (8, 8), 0, "train")
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match=r"; choose another root folder$"):
        synthetic.make(synthetic.Config(str(tmp_path)))
    (tmp_path / "test").rmdir()
    synthetic.write(tmp_path, 1, 3, (8, 16), 0, "test")
    with pytest.raises(UserError, match=r"; choose another root folder$"):
        synthetic.make(synthetic.Config(str(tmp_path)))


def test_another_evaluation_index_may_be_given(tmp_path: Path) -> None:
    """Such as a bound-aware one, whose targets lie outside the baseline."""
    rooms = tmp_path / "rooms"
    made = synthetic.Config(str(rooms), scenes=1, test_scenes=1, frames=10, size=[16, 24])
    synthetic.make(made)
    (key,) = json.loads((rooms / "test" / "index.json").read_text())
    index = tmp_path / "outside.json"
    index.write_text(json.dumps({key: {"context": [3, 6], "target": [0, 9]}}))
    dataset = synthetic.build(replace(made, index=str(index)))
    (batch,) = dataset.evaluation()
    assert batch.target.images.shape[1] == 2
    (usual,) = synthetic.build(made).evaluation()
    assert not torch.equal(batch.context.images, usual.context.images)


def test_making_a_scene_is_quick() -> None:
    """64 scenes of 16 photos are to take seconds; the bound leaves room for a busy machine."""
    start = time.process_time()
    synthetic.scene("quick", 16, (96, 96))
    assert time.process_time() - start < 2.0
