"""transforms.json of nerfstudio and instant-ngp.

https://docs.nerf.studio/quickstart/data_conventions.html
"""

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from .dialects import name_left_out, read_lens
from .survey import (
    Shot,
    Survey,
    check_matrix,
    check_pose,
    frames_of,
    read_number,
    read_shots,
    text_at,
)


def read(path: str | Path) -> Survey:
    """A transforms.json.

    Intrinsics and distortion per file or per frame, see `dialects`; depth files with
    `depth_unit_scale_factor` (default 0.001) or `integer_depth_scale`; `near` and `far`, per file
    or frame, are an addition of ours. OpenGL axes become OpenCV's. The world is that of the file:
    an `applied_transform` is part of its poses, and of its points and depth.
    """
    path = Path(path)
    content, frames = frames_of(path)
    found = read_shots(frames, lambda frame: _shot(path, content, frame), text_at("file_path"))
    name_left_out(path, content, frames)
    unit = content.get("depth_unit_scale_factor", content.get("integer_depth_scale", 1e-3))
    scale = read_number(path, {"depth unit": unit}, "depth unit")
    scale *= read_number(path, content, "applied_scale", 1.0)
    cloud = content.get("ply_file_path")
    points = _ply_points(path.parent / cloud) if isinstance(cloud, str) else None
    return Survey(found.shots, points, scale, found.left_out)


def _shot(path: Path, content: dict[str, Any], frame: Any) -> Shot:
    if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
        raise UserError(
            f"a frame of {path} has no file_path",
            "the path of its photo",
            "add it, or leave the frame out",
        )
    file = frame["file_path"]
    depth_file = frame.get("depth_file_path", frame.get("depth_path"))
    matrix = frame.get("transform_matrix")
    if isinstance(matrix, list) and len(matrix) == 3:
        matrix = [*matrix, [0.0, 0.0, 0.0, 1.0]]
    matrix = check_matrix(path, file, matrix, (4, 4))
    c2w = check_pose(path, file, matrix) * np.array([1.0, -1.0, -1.0, 1.0])  # OpenGL -> OpenCV
    fields = content | frame
    return Shot(
        file=file,
        lens=read_lens(path, file, fields),
        c2w=c2w,
        depth_file=depth_file if isinstance(depth_file, str) else None,
        near=read_number(path, fields, "near") if "near" in fields else None,
        far=read_number(path, fields, "far") if "far" in fields else None,
        time=_time(path, frame),
    )


def _time(path: Path, frame: dict[str, Any]) -> float | None:
    """When a frame was taken, if the file says."""
    key = next((key for key in ("timestamp", "time") if key in frame), None)
    return None if key is None else read_number(path, frame, key)


def _ply_points(path: Path) -> np.ndarray | None:
    """The vertices of a point cloud file, None where there is none."""
    if not path.is_file():
        return None
    from plyfile import PlyData, PlyParseError

    try:
        vertex = PlyData.read(path)["vertex"]
        return np.stack([np.asarray(vertex[axis], np.float64) for axis in "xyz"], axis=1)
    except (PlyParseError, KeyError, ValueError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as a point cloud ({error})",
            "vertices x y z",
            "export it again, or remove 'ply_file_path' from the camera file",
        ) from error
