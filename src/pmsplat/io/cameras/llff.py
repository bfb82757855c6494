"""poses_bounds.npy of LLFF: https://github.com/Fyusion/LLFF, "Using your own poses".

One row of 17 numbers a photo: a 3x5 matrix (camera to world with the axes down, right, backwards;
height, width and focal length in the fifth column), then the nearest and farthest depth. It names
no photos: its rows are those of the folder's photos, sorted by name.
"""

import logging
import math
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ...errors import UserError
from ..files import UNREADABLE_ARRAY
from ..photo_files import is_photo
from .survey import Lens, Shot, Survey, check_lens, check_pose, read_shots
from .tables import read_size

FILE = "poses_bounds.npy"
_FOLDERS = ("images", "images_2", "images_4", "images_8", "images_16", "input", "")

log = logging.getLogger(__name__)


def find(folder: Path) -> Path | None:
    """The poses_bounds.npy of a folder."""
    return folder / FILE if (folder / FILE).is_file() else None


def read(path: Path, images_folder: str | None = None) -> Survey:
    """The cameras of poses_bounds.npy, with the photos of `images_folder` or of images/.

    Where images/ is not there, or has not as many photos as the file has rows, the first smaller
    copy (images_2, images_4, …) that has is taken. Near and far are the file's. Raises UserError
    for other arrays and where no folder fits.
    """
    try:
        rows = np.load(path, allow_pickle=False).astype(np.float64)
    except UNREADABLE_ARRAY as error:
        raise UserError(
            f"{path} cannot be read as an array ({error})",
            "the poses_bounds.npy that LLFF writes",
            "write it again with numpy.save",
        ) from error
    if rows.ndim != 2 or rows.shape[1] != 17 or len(rows) == 0:
        raise UserError(
            f"{path} has the shape {list(rows.shape)}",
            "[photos, 17]: a 3x5 matrix and two depths of each photo",
            "write it again with LLFF's imgs2poses.py",
        )
    files = _find_photos(path.parent, len(rows), images_folder)
    found = read_shots(
        list(zip(files, rows, strict=True)),
        lambda pair: _shot(path, *pair),
        lambda pair: pair[0],
    )
    if lost := sum(shot.near is None for shot in found.shots):
        log.warning("%s: near and far of %d photos are no range: left out", path, lost)
    return Survey(found.shots, left_out=found.left_out)


def _shot(path: Path, file: str, row: Float[np.ndarray, "17"]) -> Shot:
    matrix, (near, far) = row[:15].reshape(3, 5), row[15:]
    down, right, backwards, center = matrix[:, :4].T
    c2w = np.eye(4)
    c2w[:3] = np.stack([right, down, -backwards, center], axis=1)
    height, width, focal = matrix[:, 4]
    size = read_size(path, height, width)
    lens = check_lens(path, Lens(size, (focal, focal), (width / 2, height / 2)))
    bounded = math.isfinite(near) and math.isfinite(far) and 0 < near < far
    return Shot(
        file,
        lens,
        check_pose(path, file, c2w),
        near=float(near) if bounded else None,
        far=float(far) if bounded else None,
    )


def _find_photos(home: Path, count: int, images_folder: str | None) -> list[str]:
    """The photos of the folder that has `count` of them, as seen from `home`."""
    there = {}
    for name in _FOLDERS if images_folder is None else (images_folder,):
        folder = home / name
        photos = sorted(p.name for p in folder.iterdir() if is_photo(p)) if folder.is_dir() else []
        if len(photos) == count:
            wrong = "; ".join(f"{other} has {len(found)}" for other, found in there.items())
            if wrong:
                log.warning("%s has %d rows, %s: photos of %s", home / FILE, count, wrong, folder)
            return [(Path(name) / photo).as_posix() for photo in photos]
        if photos:
            there[name or "the folder itself"] = photos
    counts = ", ".join(f"{len(found)} in {name}" for name, found in there.items()) or "none"
    raise UserError(
        f"{home / FILE} has {count} rows, but the photos there are: {counts}",
        "as many photos as rows: it names none, its rows are the photos sorted by name",
        "take photos that were not posed out of the folder, or put back those that are missing",
    )
