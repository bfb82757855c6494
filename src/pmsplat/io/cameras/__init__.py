"""Cameras from any file that holds them, recognized by content: the only judge of camera files.

One file a format: `transforms` (nerfstudio, instant-ngp), `ours`, `colmap`, `inria` (and files of
world-to-camera R and t). `survey` is what all of them give, `export` writes for other trainers.
"""

from pathlib import Path

from ...errors import UserError
from . import colmap, inria, ours, transforms
from .survey import Survey, in_capture_order, read_json

KINDS = "transforms.json, cameras.json (ours or INRIA's) or a COLMAP model"


def find_cameras(path: str | Path) -> Path | None:
    """The file or folder in which `read_cameras` finds cameras; None where `path` has none.

    `path` is a .json file, or a folder. Of a folder, in this order: its transforms.json; its
    cameras.json, if it is ours; a COLMAP model, in the folder itself or in sparse/0, sparse or
    colmap/sparse/0; INRIA's cameras.json, which knows less of the same cameras than the model.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        return path
    if (path / "transforms.json").is_file():
        return path / "transforms.json"
    listed, model = path / "cameras.json", colmap.find_model(path)
    if listed.is_file() and (model is None or not inria.is_inria(listed)):
        return listed
    return model


def read_cameras(path: str | Path) -> Survey:
    """The cameras that `find_cameras` found, in capture order; photographs need not be there.

    Raises UserError for what is missing, damaged, or of no format that is known.
    """
    return in_capture_order(_read(Path(path)))


def _read(path: Path) -> Survey:
    if path.is_dir():
        return colmap.read(path)
    content = read_json(path)
    if isinstance(content, list):
        return inria.read(path)
    frames = content.get("frames") if isinstance(content, dict) else None
    first = frames[0] if isinstance(frames, list) and frames else None
    if isinstance(first, dict):
        if "c2w" in first:
            return ours.read(path)
        if "R" in first and "t" in first:
            return inria.read_world_to_camera(path)
        if {"file_path", "transform_matrix"} & set(first):
            return transforms.read(path)
    raise UserError(
        f"{path} holds no cameras that are known here", KINDS, "export the cameras as one of these"
    )
