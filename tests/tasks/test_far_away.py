"""Scenes in the coordinates of a map: every verb gives what it gives at the origin."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pmsplat import cli, load_gaussians
from pmsplat.io.cameras import export, read_cameras
from pmsplat.io.gaussians import save_gaussians
from pmsplat.scene import open_scene
from pmsplat.tasks.depth import Options as DepthOptions
from pmsplat.tasks.depth import depth
from pmsplat.tasks.predict import Options as PredictOptions
from pmsplat.tasks.predict import predict
from pmsplat.tasks.refine import Options as RefineOptions
from pmsplat.tasks.refine import refine
from pmsplat.tasks.render import Options as RenderOptions
from pmsplat.tasks.render import choose_pictures, render
from tests.tasks.test_any_cameras import SHOTS, Plane, cloud, photos

PLACE = np.array([441547.502, 5121946.513, 2345.087])


def scene(folder: Path, place: np.ndarray) -> Path:
    moved = []
    for shot in SHOTS:
        c2w = shot.c2w.copy()
        left, _, right = np.linalg.svd(c2w[:3, :3])
        c2w[:3, :3] = left @ right  # what float32 left of a rotation moves cameras far away
        c2w[:3, 3] += place
        moved.append(replace(shot, c2w=c2w))
    photos(folder / "images")
    points = cloud()
    points = replace(points, xyz=points.xyz + place)
    export.write_colmap(folder / "sparse" / "0", moved, points)
    return folder


@pytest.fixture
def near(tmp_path: Path) -> Path:
    return scene(tmp_path / "near" / "kitchen", np.zeros(3))


@pytest.fixture
def far(tmp_path: Path) -> Path:
    return scene(tmp_path / "far" / "kitchen", PLACE)


def world(path: Path) -> np.ndarray:
    """Where the cameras of a result stand in the world of the input."""
    return np.stack([shot.c2w[:3, 3] for shot in read_cameras(path / "cameras.json").shots])


def means(path: Path) -> torch.Tensor:
    gaussians = load_gaussians(path / "gaussians.ply")
    return gaussians.means[0].double() + torch.tensor(gaussians.origin, dtype=torch.float64)


def test_predict_and_render(near: Path, far: Path, tmp_path: Path) -> None:
    options = PredictOptions(views=2, fps=1, seconds=0.1, device="cpu")
    here = predict(near, Plane(), tmp_path / "a", options)
    there = predict(far, Plane(), tmp_path / "b", options)
    assert there.means == pytest.approx(here.means, rel=1e-4)
    assert there.origin != (0, 0, 0)
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["origin"] == list(there.origin)
    np.testing.assert_allclose(world(tmp_path / "b") - PLACE, world(tmp_path / "a"), atol=1e-5)
    shifted = means(tmp_path / "b") - torch.from_numpy(PLACE)
    assert (shifted - means(tmp_path / "a")).abs().max() < 1e-5
    for name in ("a.npy", "d.npy"):
        depths = [tmp_path / side / "depth" / name for side in "ab"]
        if depths[0].is_file():
            np.testing.assert_allclose(np.load(depths[1]), np.load(depths[0]), rtol=1e-5)

    # Drawn again, into the cameras of the input and into those of the result.
    for cameras in (far, tmp_path / "b"):
        drawn = render(tmp_path / "b" / "gaussians.ply", cameras, tmp_path / "c")
        assert drawn.means["covered"] > 0.01
        np.testing.assert_allclose(
            world(tmp_path / "c") - PLACE, [s.c2w[:3, 3] for s in SHOTS], atol=1e-5
        )


def test_depth_and_refine(near: Path, far: Path, tmp_path: Path) -> None:
    for side, source in (("a", near), ("b", far)):
        depth(source, Plane(), tmp_path / side / "depth", DepthOptions(views=2, device="cpu"))
        step = RefineOptions(steps=2, start="points", device="cpu", test_every=4)
        refine(source, tmp_path / side / "refined", step)
    for verb in ("depth", "refined"):
        here, there = world(tmp_path / "a" / verb), world(tmp_path / "b" / verb)
        np.testing.assert_allclose(there - PLACE, here, atol=1e-5)
    shifted = means(tmp_path / "b" / "refined") - torch.from_numpy(PLACE)
    assert (shifted - means(tmp_path / "a" / "refined")).abs().max() < 1e-3


def test_gaussians_and_cameras_of_one_map_meet(far: Path, tmp_path: Path) -> None:
    """A file of Gaussians with its own origin is drawn into cameras that count from another."""
    cloud_there = load_gaussians(_some_gaussians(tmp_path))
    moved = cloud_there.at_origin((441500.0, 5121900.0, 2300.0))
    save_gaussians(moved, tmp_path / "moved.ply")
    both = []
    for file in ("some.ply", "moved.ply"):
        gaussians = load_gaussians(tmp_path / file)
        (first, *_) = choose_pictures(gaussians, far, RenderOptions())
        both.append(first.c2w[:3, 3].double() + torch.tensor(gaussians.origin, dtype=torch.float64))
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=1e-4)


def _some_gaussians(folder: Path) -> Path:
    from tests.scenes import random_gaussians

    gaussians = random_gaussians(20, torch.Generator().manual_seed(0))
    x, y, z = PLACE.tolist()
    save_gaussians(replace(gaussians, origin=(x, y, z)), folder / "some.ply")
    return folder / "some.ply"


def test_chunks_keep_the_origin(far: Path, tmp_path: Path) -> None:
    assert cli.main(["data", "convert", str(far), str(tmp_path / "split")]) == 0
    chunk, folder = open_scene(tmp_path / "split"), open_scene(far)
    assert chunk.origin == pytest.approx(folder.origin, abs=1e-9)
    torch.testing.assert_close(chunk.cameras.c2w, folder.cameras.c2w, rtol=0, atol=1e-6)
