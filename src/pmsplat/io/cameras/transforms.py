"""transforms.json of nerfstudio and instant-ngp.

https://docs.nerf.studio/quickstart/data_conventions.html
"""

import logging
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ..photo_files import file_beside
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
from .tables import from_opengl, read_cloud

log = logging.getLogger(__name__)


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
    given = [_stated_time(frame) for frame in frames if isinstance(frame, dict)]
    if sum(shot.time is not None for shot in found.shots) < sum(t is not None for t in given):
        log.warning("%s: times that are no numbers and no dates are left out", path)
    points = _points(path, content.get("ply_file_path"))
    units = _depth_units(path, content, frames)
    scale = (*units, 1e-3)[0] * read_number(path, content, "applied_scale", 1.0)
    if scale <= 0:
        raise UserError(f"{path} has a depth unit of {scale:g}", "a positive number", "correct it")
    return Survey(found.shots, points, scale, found.left_out, depth_stated=bool(units))


def _depth_units(path: Path, content: dict[str, Any], frames: list[Any]) -> set[float]:
    """The unit of depth that a file or its frames give, if any; UserError for different ones."""
    units = {
        read_number(path, fields, key)
        for fields in (content, *frames)
        for key in ("depth_unit_scale_factor", "integer_depth_scale")
        if isinstance(fields, dict) and key in fields
    }
    if len(units) > 1:
        raise UserError(
            f"{path} has {len(units)} different units of depth", "one", "write depth in one unit"
        )
    return units


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
    c2w = from_opengl(check_pose(path, file, matrix))
    fields = _merge(content, frame)
    return Shot(
        file=file,
        lens=read_lens(path, file, fields),
        c2w=c2w,
        depth_file=None if depth_file is None else str(depth_file),
        near=read_number(path, fields, "near") if "near" in fields else None,
        far=read_number(path, fields, "far") if "far" in fields else None,
        time=_time(path, frame),
    )


def _merge(content: dict[str, Any], frame: dict[str, Any]) -> dict[str, Any]:
    """The fields of a frame, and those of the file where it has none of their kind."""
    angles = {"camera_angle_x", "camera_angle_y", "x_fov", "y_fov"} & set(frame)
    if angles and not {"fl_x", "fl_y"} & set(frame):
        content = {key: value for key, value in content.items() if key not in ("fl_x", "fl_y")}
    return content | frame


def _time(path: Path, frame: dict[str, Any]) -> float | None:
    """When a frame was taken, in seconds or any unit, if the file says: a number or a date."""
    given = _stated_time(frame)
    with suppress(UserError):
        return None if given is None else read_number(path, {"time": given}, "time")
    with suppress(ValueError):
        return datetime.fromisoformat(str(given)).timestamp()
    return None


def _stated_time(frame: dict[str, Any]) -> Any:
    return next((frame[key] for key in ("timestamp", "time") if key in frame), None)


def _points(path: Path, named: Any) -> np.ndarray | None:
    """The points of the cloud that a camera file names; a warning where it is not there."""
    if named is None:
        return None
    cloud = file_beside(path.parent, str(named), alone=True)
    if cloud is None:
        log.warning("%s: the sparse points, %s, are not there: left out", path, named)
    return None if cloud is None else read_cloud(cloud)
