"""Exported cameras, read back by our readers and by pycolmap."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.io.cameras import colmap, export, transforms
from pmsplat.io.cameras.survey import Lens, Shot
from tests.scenes import random_cameras

LENSES = (
    Lens((48, 64), (50.5, 51.25), (31.5, 24.75)),
    Lens((48, 64), (50.5, 50.5), (32, 24), (0.1, -0.02, 0, 0, 0, 0), (1e-3, -2e-3)),
    Lens((30, 20), (17.0, 18.0), (9, 16), (0.1, 0.2, 0.3, 0.01, 0.02, 0.03), (0.1, 0.2)),
)

BY_PYCOLMAP = """
import sys, numpy as np, pycolmap
model = pycolmap.Reconstruction(sys.argv[1])
shots = sorted(model.images.values(), key=lambda image: image.name)
cameras = [model.cameras[shot.camera_id] for shot in shots]
points = [model.points3D[i] for i in sorted(model.points3D)]
np.savez(sys.argv[2], w2c=np.stack([shot.cam_from_world().matrix() for shot in shots]),
         names=[shot.name for shot in shots], models=[c.model.name for c in cameras],
         sizes=[(c.height, c.width) for c in cameras], cameras=len(model.cameras),
         focals=[(c.focal_length_x, c.focal_length_y) for c in cameras],
         xyz=np.stack([p.xyz for p in points]), rgb=np.stack([p.color for p in points]))
"""


@pytest.fixture
def shots(generator: torch.Generator) -> list[Shot]:
    c2w = random_cameras(4, generator, dtype=torch.float64).c2w[0].numpy()
    names = ("images/a.png", "c.jpg", "./d/e.jpg", "é.png")
    lenses = (*LENSES, LENSES[0])
    return [
        Shot(name, lens, pose, near=0.25, far=8.0)
        for name, lens, pose in zip(names, lenses, c2w, strict=True)
    ]


@pytest.fixture
def points(generator: torch.Generator) -> export.Points:
    xyz = torch.randn(7, 3, generator=generator, dtype=torch.float64).numpy()
    return export.Points(xyz, np.arange(21, dtype=np.uint8).reshape(7, 3))


def same_poses(read: tuple[Shot, ...], shots: list[Shot], names: list[str]) -> None:
    found = {shot.file: shot for shot in read}
    for name, shot in zip(names, shots, strict=True):
        np.testing.assert_allclose(found[name].c2w, shot.c2w, atol=1e-12)
        assert found[name].lens == shot.lens


@pytest.mark.parametrize("text", [False, True])
def test_colmap_models(
    tmp_path: Path, shots: list[Shot], points: export.Points, text: bool
) -> None:
    export.write_colmap(tmp_path / "model", shots, points, text)
    suffix = ".txt" if text else ".bin"
    expected = {f"{name}{suffix}" for name in ("cameras", "images", "points3D")}
    assert {path.name for path in (tmp_path / "model").iterdir()} == expected
    survey = colmap.read(tmp_path / "model")
    same_poses(survey.shots, shots, ["a.png", "c.jpg", "d/e.jpg", "é.png"])
    assert survey.points is not None
    np.testing.assert_array_equal(survey.points, points.xyz)

    its = tmp_path / "its.npz"
    command = [sys.executable, "-c", BY_PYCOLMAP, str(tmp_path / "model"), str(its)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named 'pycolmap'" in done.stderr:
        pytest.skip("pycolmap is not installed")
    assert done.returncode == 0, done.stderr
    theirs = np.load(its)
    assert theirs["names"].tolist() == ["a.png", "c.jpg", "d/e.jpg", "é.png"]
    w2c = np.stack([np.linalg.inv(shot.c2w)[:3] for shot in shots])
    np.testing.assert_allclose(theirs["w2c"], w2c, atol=1e-12)
    assert theirs["cameras"] == 3
    assert theirs["models"].tolist() == ["PINHOLE", "OPENCV", "FULL_OPENCV", "PINHOLE"]
    assert theirs["sizes"].tolist() == [list(shot.lens.size) for shot in shots]
    assert theirs["focals"].tolist() == [list(shot.lens.focal) for shot in shots]
    np.testing.assert_array_equal(theirs["xyz"], points.xyz)
    np.testing.assert_array_equal(theirs["rgb"], points.rgb)


def test_transforms(tmp_path: Path, shots: list[Shot], points: export.Points) -> None:
    export.write_transforms(tmp_path / "transforms.json", shots, points)
    survey = transforms.read(tmp_path / "transforms.json")
    names = ["images/a.png", "images/c.jpg", "images/d/e.jpg", "images/é.png"]
    assert [shot.file for shot in survey.shots] == names
    same_poses(survey.shots, shots, names)
    assert {(shot.near, shot.far) for shot in survey.shots} == {(0.25, 8.0)}
    assert survey.points is not None
    np.testing.assert_array_equal(survey.points, points.xyz.astype(np.float32))


def test_real_models_survive(tmp_path: Path, shared: Path, points: export.Points) -> None:
    survey = colmap.read(shared / "scenes" / "bonsai" / "sparse" / "0")
    export.write_colmap(tmp_path / "model", survey.shots, points)
    again = colmap.read(tmp_path / "model")
    assert len(again.shots) == len(survey.shots) == 40
    same_poses(again.shots, list(survey.shots), [shot.file for shot in survey.shots])


def test_names_with_spaces(tmp_path: Path, shots: list[Shot], points: export.Points) -> None:
    """COLMAP's text reader ends a name at a space."""
    shots = [replace(shots[0], file="a b.png")]
    with pytest.raises(UserError, match=r"'a b\.png' in a COLMAP model as text"):
        export.write_colmap(tmp_path / "text", shots, points, text=True)
    export.write_colmap(tmp_path / "binary", shots, points)
    assert colmap.read(tmp_path / "binary").shots[0].file == "a b.png"
