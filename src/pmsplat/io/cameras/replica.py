"""Replica as NICE-SLAM renders it: https://github.com/cvg/nice-slam, src/utils/datasets.py.

results/frame000000.jpg and depth000000.png; traj.txt with a 4x4 matrix in each line, row by row:
camera to world, OpenCV axes, meters; cam_params.json with w h fx fy cx cy, and in `scale` the
counts of depth in a meter.
"""

import logging
import re
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..photo_files import list_photos
from .survey import (
    LeftOut,
    Lens,
    Shot,
    Survey,
    check_lens,
    check_pose,
    check_size,
    read_json,
    read_number,
    read_shots,
)
from .tables import existing, numbers, rows_of

_CAMERA = {"w": 1200, "h": 680, "fx": 600.0, "fy": 600.0, "cx": 599.5, "cy": 339.5, "scale": 6553.5}
_INDEX_CENTER = 0.5  # its pixel centers are whole numbers (599.5 is the middle of 1200)

log = logging.getLogger(__name__)


def find(folder: Path) -> Path | None:
    """The folder, if it has traj.txt and results/."""
    there = (folder / "traj.txt").is_file() and (folder / "results").is_dir()
    return folder if there else None


def read(folder: Path) -> Survey:
    """The photos of results/, each with a line of traj.txt.

    Lines belong to photos in order where there are as many, else by the numbers in their names.
    Without cam_params.json in the folder or the one above, the camera is NICE-SLAM's, and a warning
    says so.
    """
    path = folder / "traj.txt"
    rows = [numbers(path, row) for row in rows_of(path)]
    if not rows or any(len(row) != 16 for row in rows):
        raise UserError(
            f"{path} has a line that is no matrix" if rows else f"{path} is empty",
            "16 numbers in each line",
            "copy the file again",
        )
    photos = list_photos(folder / "results", "frame")
    if not photos:
        raise UserError(
            f"{folder / 'results'} has no photos", "frame000000.jpg and so on", "copy them there"
        )
    in_order = len(rows) == len(photos)
    camera = _read_camera(folder)
    lens = _lens(folder, camera)

    def read_photo(index: int) -> Shot:
        photo = photos[index]
        number = index if in_order else _number(photo)
        if not 0 <= number < len(rows):
            raise UserError(
                f"traj.txt has {len(rows)} lines, none of them of {photo.name}",
                "a line of each photo",
                "copy the whole file there",
            )
        file = photo.relative_to(folder).as_posix()
        depth = photo.with_name(photo.stem.replace("frame", "depth") + ".png")
        c2w = check_pose(path, file, np.reshape(rows[number], (4, 4)))
        return Shot(file, lens, c2w, depth_file=existing(folder, depth))

    found = read_shots(range(len(photos)), read_photo, lambda i: photos[i].name)
    lost = set() if in_order else set(range(len(rows))) - set(map(_number, photos))
    left_out = [LeftOut(f"line {i + 1} of traj.txt", "there is no photo of it") for i in lost]
    scale = read_number(folder / "cam_params.json", camera, "scale")
    if scale <= 0:
        raise UserError(
            f"{folder} has a depth scale of {scale:g}", "counts in a meter", "correct it"
        )
    return Survey(found.shots, depth_scale=1 / scale, left_out=(*found.left_out, *left_out))


def _number(photo: Path) -> int:
    digits = re.search(r"(\d+)$", photo.stem)
    return int(digits[1]) if digits else -1


def _read_camera(folder: Path) -> dict[str, float]:
    """The fields of cam_params.json, or NICE-SLAM's."""
    for place in (folder, folder.absolute().parent):
        path = place / "cam_params.json"
        if path.is_file():
            content = read_json(path)
            fields = content.get("camera", content) if isinstance(content, dict) else None
            if not isinstance(fields, dict):
                raise UserError(f"{path} has no camera", "w h fx fy cx cy scale", "copy it again")
            return {"scale": _CAMERA["scale"]} | fields
    log.warning("%s has no cam_params.json: its camera is NICE-SLAM's, f = 600 at 1200x680", folder)
    return _CAMERA


def _lens(folder: Path, camera: dict[str, float]) -> Lens:
    path = folder / "cam_params.json"
    fx, fy, cx, cy, height, width = (
        read_number(path, camera, key) for key in ("fx", "fy", "cx", "cy", "h", "w")
    )
    size = check_size(path, int(height), int(width))
    center = (cx + _INDEX_CENTER, cy + _INDEX_CENTER)
    return check_lens(path, Lens(size, (fx, fy), center))
