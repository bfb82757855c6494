"""Cameras of any file: told apart by content, and told from damaged ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmsplat.errors import UserError
from pmsplat.io.cameras import find_cameras, inria, read_cameras
from pmsplat.io.cameras.survey import Lens

TURN = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # camera x, y, z are world y, z, x
CENTER = np.array([1.0, 2, 3])
INRIA = {
    "id": 0, "img_name": "a", "width": 120, "height": 80, "fx": 100.0, "fy": 110.0,
    "position": CENTER.tolist(), "rotation": TURN.tolist(),
}  # fmt: skip
W2C = {
    "W": 120, "H": 80, "fx": 100.0, "fy": 110.0, "cx": 59.0, "cy": 41.0, "k1": 0.1, "p2": 0.2,
    "frames": [{"file": "a.JPG", "R": TURN.T.tolist(), "t": (-TURN.T @ CENTER).tolist()}],
}  # fmt: skip


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_cameras_of_a_trained_scene(tmp_path: Path) -> None:
    survey = read_cameras(written(tmp_path / "cameras.json", [INRIA, INRIA | {"img_name": "b"}]))
    first, second = survey.shots
    assert (first.file, second.file) == ("a", "b")
    assert first.lens == Lens((80, 120), (100.0, 110.0), (60.0, 40.0))
    point = TURN @ [0, 0, 5] + CENTER  # five units ahead: world x is the camera's z
    assert np.allclose(point, [6, 2, 3])
    assert np.allclose(first.c2w @ [0, 0, 5, 1], [6, 2, 3, 1])


def test_world_to_camera(tmp_path: Path) -> None:
    (shot,) = read_cameras(written(tmp_path / "any.json", W2C)).shots
    assert shot.file == "a.JPG"
    assert np.allclose(shot.c2w @ [0, 0, 5, 1], [6, 2, 3, 1])
    radial = (0.1, 0, 0, 0, 0, 0)
    assert shot.lens == Lens((80, 120), (100.0, 110.0), (59.0, 41.0), radial, (0, 0.2))


def test_where_cameras_are_looked_for(tmp_path: Path) -> None:
    assert find_cameras(tmp_path) is None
    (tmp_path / "sparse/0").mkdir(parents=True)
    (tmp_path / "sparse/0/cameras.txt").touch()
    assert find_cameras(tmp_path) == find_cameras(tmp_path / "sparse/0") == tmp_path / "sparse/0"
    written(tmp_path / "cameras.json", [INRIA])  # knows less than the model
    assert find_cameras(tmp_path) == tmp_path / "sparse/0"
    (tmp_path / "cameras.json").write_text("")
    assert find_cameras(tmp_path) == tmp_path / "cameras.json"
    (tmp_path / "transforms.json").touch()
    assert find_cameras(tmp_path) == tmp_path / "transforms.json"
    assert find_cameras("not/there.json") == Path("not/there.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "has no cameras"),
        ({}, "no cameras that are known"),
        ({"frames": [3]}, "no cameras that are known"),
        (3, "no cameras that are known"),
        ([3], "has no img_name"),
        ([INRIA | {"img_name": 3}], "has no img_name"),
        ([INRIA | {"rotation": [[1, 0], [0, 1]]}], r"shape \[2, 2\] for a"),
        ([INRIA | {"rotation": np.zeros((3, 3)).tolist()}], "scales, shears"),
        ([INRIA | {"position": [1, 2]}], r"shape \[2\] for a; wanted 3 numbers"),
        ([INRIA | {"position": [1, 2, float("nan")]}], "not finite"),
        ([INRIA | {"fx": "wide"}], "fx='wide'"),
        ([INRIA | {"fy": 0}], "focal lengths"),
        ([INRIA | {"width": 1e9}], "sensible size"),
        (W2C | {"H": None}, "H=None"),
        (W2C | {"fx": -1}, "focal lengths"),
        (W2C | {"frames": [{"R": 1, "t": 1}]}, "has no file"),
    ],
)
def test_files_that_lie(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_cameras(written(tmp_path / "cameras.json", content))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "cameras.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_cameras(tmp_path / "cameras.json")
    with pytest.raises(UserError, match="there is no"):
        read_cameras(tmp_path / "none.json")
    with pytest.raises(UserError, match="has no cameras"):
        inria.read(written(tmp_path / "cameras.json", {}))
