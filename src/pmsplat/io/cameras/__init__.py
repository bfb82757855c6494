"""Cameras from whatever file holds them, told apart by content.

Besides the formats of `poses` and `colmap`: the cameras.json that INRIA's 3D Gaussian Splatting
writes beside a trained scene (`camera_to_JSON` in utils/camera_utils.py of
https://github.com/graphdeco-inria/gaussian-splatting), and files of world-to-camera R and t.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from .colmap import model_folder, read_colmap
from .survey import (
    Lens,
    Shot,
    Survey,
    checked_lens,
    checked_matrix,
    checked_pose,
    checked_size,
    number,
    read_cameras,
    read_json,
    read_transforms,
)

KINDS = "cameras.json (INRIA's or ours), transforms.json or a COLMAP model"


def find_cameras(path: str | Path) -> Path | None:
    """The file or folder in which `read_survey` finds cameras; None where `path` has none.

    `path` is a .json file, a folder with a COLMAP model or in whose sparse/0 one is, or a folder
    with transforms.json or cameras.json.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        return path
    if any((path / f"cameras{kind}").is_file() for kind in (".bin", ".txt")):
        return path
    for name in ("transforms.json", "cameras.json"):
        if (path / name).is_file():
            return path / name
    return model_folder(path)


def read_survey(path: Path) -> Survey:
    """The cameras that `find_cameras` found; photographs need not be there.

    Raises UserError for what is missing, damaged, or of no format that is known.
    """
    if path.is_dir():
        return read_colmap(path)
    content = read_json(path)
    if isinstance(content, list):
        return read_inria(path)
    frames = content.get("frames") if isinstance(content, dict) else None
    first = frames[0] if isinstance(frames, list) and frames else None
    if isinstance(first, dict):
        if "transform_matrix" in first:
            return read_transforms(path)
        if "c2w" in first:
            return read_cameras(path)
        if "R" in first and "t" in first:
            return read_world_to_camera(path)
    raise UserError(f"{path} holds no cameras that are known here", KINDS, "export the cameras")


def read_inria(path: Path) -> Survey:
    """cameras.json of 3D Gaussian Splatting: camera-to-world `rotation`, centre `position`.

    Pinholes with the principal point in the middle; the photos' names have no suffix.
    """
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} has no cameras", "a list of at least one", "train again")
    shots = []
    for entry in entries:
        name = _named(path, entry, "img_name")["img_name"]
        pose = np.eye(4)
        pose[:3, :3] = checked_matrix(path, name, entry.get("rotation"), (3, 3))
        pose[:3, 3] = checked_matrix(path, name, entry.get("position"), (3,))
        height, width = (int(number(path, entry, side)) for side in ("height", "width"))
        lens = Lens(
            size=checked_size(path, height, width),
            focal=(number(path, entry, "fx"), number(path, entry, "fy")),
            center=(width / 2, height / 2),
        )
        shots.append(Shot(name, checked_lens(path, lens), checked_pose(path, name, pose)))
    return Survey(tuple(shots))


def read_world_to_camera(path: Path) -> Survey:
    """A file of frames with `file`, `R` and `t` (world to camera, OpenCV axes) and one lens.

    The lens: W, H, fx, fy, cx, cy in pixels, and k1, k2, p1, p2 of OpenCV where it distorts.
    """
    content = read_json(path)
    height, width = (int(number(path, content, side)) for side in ("H", "W"))
    lens = Lens(
        size=checked_size(path, height, width),
        focal=(number(path, content, "fx"), number(path, content, "fy")),
        center=(number(path, content, "cx"), number(path, content, "cy")),
        radial=(number(path, content, "k1", 0.0), number(path, content, "k2", 0.0), 0, 0, 0, 0),
        tangential=(number(path, content, "p1", 0.0), number(path, content, "p2", 0.0)),
    )
    checked_lens(path, lens)
    shots = []
    for frame in content["frames"]:
        name = _named(path, frame, "file")["file"]
        motion = np.eye(4)
        motion[:3, :3] = checked_matrix(path, name, frame.get("R"), (3, 3))
        motion[:3, 3] = checked_matrix(path, name, frame.get("t"), (3,))
        w2c = checked_pose(path, name, motion)
        rotation = w2c[:3, :3].T
        c2w = np.eye(4)
        c2w[:3, :3], c2w[:3, 3] = rotation, -rotation @ w2c[:3, 3]
        shots.append(Shot(name, lens, c2w))
    return Survey(tuple(shots))


def _named(path: Path, entry: Any, key: str) -> dict[str, Any]:
    if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
        raise UserError(f"a camera of {path} has no {key}", "a photo's name", "export again")
    return entry
