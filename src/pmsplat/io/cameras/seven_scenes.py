"""Folders of frame-000000.color.png, .depth.png and .pose.txt.

Such are Microsoft's 7-Scenes, https://www.microsoft.com/research/project/rgb-d-dataset-7-scenes,
its successors 12-Scenes and ScanNet's first release, with info.txt, and 3DMatch, with
camera-intrinsics.txt. A pose is camera to world, OpenCV axes, meters. Depth is in millimeters, 0
and 65535 stand for none.
"""

import logging
import math
import re
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..photo_files import is_photo, natural_key
from .survey import LeftOut, Lens, Shot, Survey, check_pose, read_shots
from .tables import existing, matrix_lens, numbers, photo_size, read_matrix, read_size

_DEPTHS = (".png", ".pgm")  # the second of ScanNet's first release
_POSE, _NO_DEPTH, _MILLIMETER = ".pose.txt", 65535, 1e-3
_FOCAL, _SIZE = 525.0, (480, 640)  # of the Kinect's color camera, which nobody has calibrated
_INFOS = ("info.txt", "_info.txt")
_MATRICES = ("camera-intrinsics.txt", "intrinsics.txt")

log = logging.getLogger(__name__)


def find(folder: Path) -> Path | None:
    """The folder, or the only sequence in it, if it has poses; UserError where it has several."""
    if next(folder.glob(f"*{_POSE}"), None) is not None:
        return folder
    found = sorted(p for p in folder.glob("seq*") if next(p.glob(f"*{_POSE}"), None) is not None)
    if len(found) > 1:
        raise UserError(
            f"{folder} has {len(found)} sequences with poses", "one", f"name it: {found[0]}"
        )
    return found[0] if found else None


def read(folder: Path) -> Survey:
    """The frames of a sequence that have a pose, in the order of their numbers.

    The lens is that of info.txt or camera-intrinsics.txt in the folder or the one above; without
    such a file it is the Kinect's, f = 525 at 640x480, and a warning says so.
    """
    frames = sorted((p.name.removesuffix(_POSE) for p in folder.glob(f"*{_POSE}")), key=natural_key)
    color = [path for path in folder.glob("*.color.*") if is_photo(path)]
    photos = {path.name.rpartition(".color")[0]: path for path in color}
    suffix = color[0].suffix if color else ".png"
    info = _read_info(folder)
    lens = _lens(folder, info, photo_size(folder, color))

    def read_frame(frame: str) -> Shot:
        file = photos.get(frame, folder / f"{frame}.color{suffix}")
        pose = folder / f"{frame}{_POSE}"
        c2w = check_pose(pose, file.name, read_matrix(pose))
        depths = (existing(folder, folder / f"{frame}.depth{kind}") for kind in _DEPTHS)
        return Shot(file.name, lens, c2w, depth_file=next(filter(None, depths), None))

    found = read_shots(frames, read_frame, lambda frame: f"{frame}.color{suffix}")
    lost = sorted(photos[frame].name for frame in photos.keys() - set(frames))
    left_out = (*found.left_out, *(LeftOut(name, "it has no pose") for name in lost))
    unit = (info.get("m_depthShift") or [1 / _MILLIMETER])[0]
    if not 0 < unit < math.inf:
        raise UserError(f"{folder} has m_depthShift {unit:g}", "a positive number", "correct it")
    return Survey(found.shots, depth_scale=1 / unit, left_out=left_out, no_depth=_NO_DEPTH)


def _read_info(folder: Path) -> dict[str, list[float]]:
    """The numbers of info.txt by their names, none where there is no such file."""
    path = _first(folder, _INFOS)
    if path is None:
        return {}
    lines = (line.partition("=") for line in path.read_text(errors="replace").splitlines())
    return {
        name.strip(): numbers(path, words.split())
        for name, _, words in lines
        if re.match(r"m_(calibration|depthShift|color|depth)\w*\s*$", name)
    }


def _lens(folder: Path, info: dict[str, list[float]], size: tuple[int, int]) -> Lens:
    height, width = size
    matrix = info.get("m_calibrationColorIntrinsic", [])
    if len(matrix) == 16:
        sides = [*info.get("m_colorHeight", []), *info.get("m_colorWidth", [])]
        of = read_size(folder, *sides) if len(sides) == 2 else size
        return matrix_lens(folder, np.reshape(matrix, (4, 4)), of)
    path = _first(folder, _MATRICES)
    if path is not None:
        return matrix_lens(path, read_matrix(path), size)
    if height * _SIZE[1] != width * _SIZE[0]:
        raise UserError(
            f"{folder} has poses of photos of {height}x{width} pixels, but no intrinsics",
            "photos of the shape 480x640, as 7-Scenes has",
            "write the 3x3 matrix of the intrinsics to camera-intrinsics.txt beside the poses",
        )
    log.warning(
        "%s has no camera-intrinsics.txt: its lens is taken for that of the Kinect, f = %g at "
        "640x480; depth of 7-Scenes was not registered to the photos",
        folder,
        _FOCAL,
    )
    return Lens(_SIZE, (_FOCAL, _FOCAL), (_SIZE[1] / 2, _SIZE[0] / 2))


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first file of these names in the folder or in the one above."""
    places = (folder, folder.absolute().parent)
    return next((p / name for p in places for name in names if (p / name).is_file()), None)
