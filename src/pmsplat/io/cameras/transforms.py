"""transforms.json of nerfstudio and instant-ngp.

https://docs.nerf.studio/quickstart/data_conventions.html
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from .. import images
from ..photo_files import photo_beside
from .survey import (
    LENS_MODELS,
    Lens,
    Shot,
    Survey,
    check_lens,
    check_matrix,
    check_pose,
    check_size,
    frames_of,
    read_number,
    read_shots,
    text_at,
    unknown_lens,
)


def read(path: str | Path) -> Survey:
    """A transforms.json.

    Intrinsics per file or per frame, or `camera_angle_x`; distortion k1..k6 p1 p2; depth files
    with `depth_unit_scale_factor` (default 0.001) or `integer_depth_scale`; `near` and `far`, per
    file or frame, are an addition of ours. OpenGL axes become OpenCV's. The world is that of the
    file: an `applied_transform` is part of its poses, and of its points and depth.
    """
    path = Path(path)
    content, frames = frames_of(path)
    found = read_shots(frames, lambda frame: _shot(path, content, frame), text_at("file_path"))
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
    matrix = check_matrix(path, file, frame.get("transform_matrix"), (4, 4))
    c2w = check_pose(path, file, matrix) * np.array([1.0, -1.0, -1.0, 1.0])  # OpenGL -> OpenCV
    fields = content | frame
    return Shot(
        file=file,
        lens=_lens(path, file, fields),
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


def _lens(path: Path, file: str, fields: dict[str, Any]) -> Lens:
    model = fields.get("camera_model", "OPENCV")
    if model not in {known.name for known in LENS_MODELS.values()} or fields.get("is_fisheye"):
        raise unknown_lens(path, "fisheye" if fields.get("is_fisheye") else str(model))
    if "w" in fields and "h" in fields:
        height, width = (int(read_number(path, fields, side)) for side in ("h", "w"))
        height, width = check_size(path, height, width)
    else:
        photo = photo_beside(path.parent, file)  # Blender's files name photos without suffix
        height, width = images.image_size(photo or path.parent / file)

    def focal(key: str, angle: str, side: int) -> float | None:
        if key in fields:
            return read_number(path, fields, key)
        if angle in fields:
            return 0.5 * side / math.tan(0.5 * read_number(path, fields, angle))
        return None

    fx = focal("fl_x", "camera_angle_x", width)
    fy = focal("fl_y", "camera_angle_y", height) or fx
    fx = fx or fy
    if fx is None or fy is None:
        raise UserError(
            f"{path} gives no focal length for {file}",
            "fl_x (and fl_y) in pixels, or camera_angle_x in radians",
            "export the intrinsics too",
        )
    lens = Lens(
        size=(height, width),
        focal=(fx, fy),
        center=(
            read_number(path, fields, "cx", width / 2),
            read_number(path, fields, "cy", height / 2),
        ),
        radial=tuple(read_number(path, fields, f"k{i}", 0.0) for i in range(1, 7)),
        tangential=(read_number(path, fields, "p1", 0.0), read_number(path, fields, "p2", 0.0)),
    )
    return check_lens(path, lens)


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
