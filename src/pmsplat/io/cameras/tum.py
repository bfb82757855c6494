"""TUM's RGB-D sequences: https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats.

rgb.txt and depth.txt list times and files; groundtruth.txt lists times and poses: tx ty tz qx qy qz
qw, camera to world, OpenCV axes, meters. Depth is 5000 counts a meter. They are brought together by
their times, at most 0.02 s apart, as TUM's associate.py does.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ...errors import UserError
from .survey import Lens, Shot, Survey, check_lens, check_pose, read_shots
from .tables import (
    make_motion,
    matrix_lens,
    nearest,
    numbers,
    photo_size,
    quaternion_rotation,
    read_matrix,
    read_size,
    rows_of,
)

_POSES = ("groundtruth.txt", "pose.txt", "poses.txt")
_LENSES = ("calibration.txt", "camera.txt", "calib.txt", "intrinsics.txt", "camera-intrinsics.txt")
_APART = 0.02  # seconds
_COUNTS = 5000  # of depth, in a meter
_SIZE = (480, 640)
_FREIBURG = {  # fx fy cx cy k1 k2 p1 p2 k3, by the number of the sequence
    "1": (517.3, 516.5, 318.6, 255.3, 0.2624, -0.9531, -0.0054, 0.0026, 1.1633),
    "2": (520.9, 521.0, 325.1, 249.7, 0.2312, -0.7849, -0.0033, -0.0001, 0.9172),
    "3": (535.4, 539.2, 320.1, 247.6),
}
_DEFAULT = (525.0, 525.0, 319.5, 239.5)  # of ROS
_INDEX_CENTER = 0.5  # their pixel centers are whole numbers (319.5 is the middle of 640)

log = logging.getLogger(__name__)


def find(folder: Path) -> Path | None:
    """The folder, if it has lists of photos and of poses."""
    there = (folder / "rgb.txt").is_file() and _poses(folder) is not None
    return folder if there else None


def read(folder: Path) -> Survey:
    """The photos of rgb.txt that have a pose, in the order of the list.

    The lens is that of calibration.txt or camera.txt (fx fy cx cy and perhaps k1 k2 p1 p2 k3, or a
    3x3 matrix); without, that of the Freiburg sequence in the folder's name, or the default of ROS:
    a warning says which.
    """
    poses = _poses(folder)
    assert poses is not None
    table = [numbers(poses, row) for row in rows_of(poses)]
    if not table or min(map(len, table)) < 8:
        raise UserError(
            f"{poses} has a line of less than 8 numbers" if table else f"{poses} is empty",
            "a time, tx ty tz and qx qy qz qw in each line",
            "copy the file again",
        )
    times = np.array([row[0] for row in table])
    apart = _APART * _second(times)
    photos = _listed(folder / "rgb.txt")
    depths = _listed(folder / "depth.txt") if (folder / "depth.txt").is_file() else []
    depth_times = np.array([time for time, _ in depths])
    lens = _lens(folder, photo_size(folder, [folder / file for _, file in photos]))

    def read_row(photo: tuple[float, str]) -> Shot:
        time, file = photo
        row = nearest(times, time, apart)
        if row is None:
            raise UserError(
                f"{poses.name} has no pose within {_APART} s of {file}",
                "a pose at the time of each photo",
                "check that both lists are of one recording",
            )
        pose = make_motion(quaternion_rotation(table[row][4:8]), table[row][1:4])
        depth = nearest(depth_times, time, apart)
        return Shot(
            file,
            lens,
            check_pose(poses, file, pose),
            depth_file=None if depth is None else depths[depth][1],
            time=time,
        )

    found = read_shots(photos, read_row, lambda photo: photo[1])
    return Survey(found.shots, depth_scale=1 / _COUNTS, left_out=found.left_out)


def _second(times: Float[np.ndarray, " pose"]) -> float:
    """How many units of the times are a second: of times since 1970, 1, 10³, 10⁶ or 10⁹."""
    latest = float(np.abs(times).max())
    return next(unit for unit in (1e9, 1e6, 1e3, 1.0) if latest > 1e8 * unit or unit == 1)


def _poses(folder: Path) -> Path | None:
    return next((folder / name for name in _POSES if (folder / name).is_file()), None)


def _listed(path: Path) -> list[tuple[float, str]]:
    """The times and files of a list."""
    rows = rows_of(path)
    if not rows or min(map(len, rows)) < 2:
        raise UserError(f"{path} lists no files", "a time and a file in each line", "copy it again")
    return [(numbers(path, row[:1])[0], row[1]) for row in rows]


def _lens(folder: Path, size: tuple[int, int]) -> Lens:
    path = next((folder / name for name in _LENSES if (folder / name).is_file()), None)
    if path is not None:
        rows = rows_of(path)
        if rows and len(rows[0]) in (3, 4) and len(rows) in (3, 4):
            K = read_matrix(path)
            K[:2, 2] += _INDEX_CENTER
            return matrix_lens(path, K, size)
        if len(rows) > 1 and len(rows[1]) == 2:  # the size of the photos that were calibrated
            width, height = numbers(path, rows[1])
            size = read_size(path, height, width)
        if len(rows) > 2:
            log.warning("%s: lines from the third on are left out", path)
        return _make_lens(path, numbers(path, rows[0] if rows else []), size)
    number = re.search(r"(?:freiburg|fr)([123])(?!\d)", folder.resolve().name)
    values = _FREIBURG[number[1]] if number else _DEFAULT
    whose = f"Freiburg {number[1]}, by the folder's name" if number else "the default of ROS"
    log.warning("%s has no calibration.txt: its lens is %s, f = %g", folder, whose, values[0])
    return _make_lens(folder, values, _SIZE)


def _make_lens(path: Path, values: Sequence[float], size: tuple[int, int]) -> Lens:
    if len(values) not in (4, 6, 8, 9):
        raise UserError(
            f"{path} begins with {len(values)} numbers",
            "fx fy cx cy, then perhaps k1 k2 p1 p2 k3; or a 3x3 matrix",
            "correct the file",
        )
    fx, fy, cx, cy, k1, k2, p1, p2, k3 = (*values, *(0.0,) * (9 - len(values)))
    center = (cx + _INDEX_CENTER, cy + _INDEX_CENTER)
    lens = Lens(size, (fx, fy), center, (k1, k2, k3, 0.0, 0.0, 0.0), (p1, p2))
    return check_lens(path, lens)
