"""ARKitScenes: https://github.com/apple/ARKitScenes, DATA.md and tenFpsDataLoader.py.

lowres_wide/VIDEO_TIME.png, lowres_depth/ likewise (millimeters), lowres_wide_intrinsics/ likewise
(.pincam: width height fx fy cx cy), and lowres_wide.traj: time, rotation around an axis (radians)
and translation in meters, world to camera, OpenCV axes.
"""

from pathlib import Path

import numpy as np

from ...errors import UserError
from ..photo_files import list_photos
from .survey import Lens, Shot, Survey, check_lens, check_pose, read_shots
from .tables import (
    axis_rotation,
    existing,
    inverse,
    make_motion,
    nearest,
    numbers,
    read_size,
    rows_of,
)

_TRAJECTORY, _PHOTOS, _DEPTHS = "lowres_wide.traj", "lowres_wide", "lowres_depth"
_LENSES = "lowres_wide_intrinsics"
_POSE_APART, _LENS_APART = 0.005, 0.0015  # seconds, as Apple's loader has them


def find(folder: Path) -> Path | None:
    """The folder, or VIDEO_frames/ in it, if it has a trajectory and photos."""
    for place in (folder, *sorted(folder.glob("*_frames"))):
        if (place / _TRAJECTORY).is_file() and (place / _PHOTOS).is_dir():
            return place
    return None


def read(folder: Path) -> Survey:
    """The photos of lowres_wide/ that have a pose within 5 ms, in the order of their times."""
    path = folder / _TRAJECTORY
    table = [numbers(path, row) for row in rows_of(path)]
    if not table or any(len(row) != 7 for row in table):
        raise UserError(
            f"{path} has a line that is no pose" if table else f"{path} is empty",
            "7 numbers in each line: time, rotation, translation",
            "download it again",
        )
    times = np.array([row[0] for row in table])
    lenses = {_time(file): file for file in (folder / _LENSES).glob("*.pincam")}
    lens_times = np.array(sorted(time for time in lenses if time is not None))

    def read_photo(photo: Path) -> Shot:
        file, time = photo.relative_to(folder).as_posix(), _time(photo)
        row = None if time is None else nearest(times, time, _POSE_APART)
        if time is None or row is None:
            raise UserError(
                f"{_TRAJECTORY} has no pose within {_POSE_APART} s of {file}",
                "a pose of each photo",
                "check that both are of one recording",
            )
        lens = nearest(lens_times, time, _LENS_APART)
        if lens is None:
            raise UserError(
                f"{_LENSES}/ has no intrinsics of {file}",
                "a .pincam of each photo",
                "download them",
            )
        w2c = make_motion(axis_rotation(table[row][1:4]), table[row][4:])
        return Shot(
            file,
            _lens(lenses[float(lens_times[lens])]),
            inverse(check_pose(path, file, w2c)),
            depth_file=existing(folder, folder / _DEPTHS / f"{photo.stem}.png"),
            time=time,
        )

    photos = sorted(list_photos(folder / _PHOTOS), key=lambda photo: _time(photo) or 0.0)
    if not photos:
        raise UserError(f"{folder / _PHOTOS} has no photos", "VIDEO_TIME.png", "download them")
    found = read_shots(photos, read_photo, lambda photo: photo.relative_to(folder).as_posix())
    return Survey(found.shots, left_out=found.left_out)


def _time(file: Path) -> float | None:
    """The time in a name like 41069021_306.508.png."""
    try:
        return float(file.stem.rpartition("_")[2])
    except ValueError:
        return None


def _lens(path: Path) -> Lens:
    values = [number for row in rows_of(path) for number in numbers(path, row)]
    if len(values) != 6:
        raise UserError(
            f"{path} has {len(values)} numbers", "width height fx fy cx cy", "get it again"
        )
    width, height, fx, fy, cx, cy = values
    size = read_size(path, height, width)
    return check_lens(path, Lens(size, (fx, fy), (cx, cy)))
