"""ScanNet's exported scans: http://www.scan-net.org, SensReader of github.com/ScanNet/ScanNet.

color/0.jpg, depth/0.png (millimeters, 0 is none), pose/0.txt (4x4, camera to world, OpenCV axes,
meters; -inf where the camera was lost) and intrinsic/intrinsic_color.txt. Others who keep to it
call the folders rgb/ and poses/, and the file intrinsics.txt.
"""

import logging
from pathlib import Path

import numpy as np

from ...errors import UserError
from .. import images
from ..photo_files import list_photos, natural_key
from .survey import LeftOut, Lens, Shot, Survey, check_pose, read_shots
from .tables import existing, matrix_lens, photo_size, read_matrix

_PHOTOS, _POSES = ("color", "rgb"), ("pose", "poses")
_SIZE = (968, 1296)  # of ScanNet's photos; smaller copies often keep the intrinsics of these
_LENSES = (
    "intrinsic/intrinsic_color.txt",
    "intrinsic_color.txt",
    "intrinsics_color.txt",
    "intrinsic/intrinsics_color.txt",
    "intrinsics.txt",
    "intrinsic.txt",
)
_SHIFT = 0.02  # of the picture's sides: registered depth has the lens of the photos that closely

log = logging.getLogger(__name__)


def find(folder: Path) -> Path | None:
    """The folder, or frames/ in it, if it has photos, poses and intrinsics."""
    places = (folder, folder / "frames")
    return next((p for p in places if all(_first(p, k) for k in (_PHOTOS, _POSES, _LENSES))), None)


def read(folder: Path) -> Survey:
    """The photos of color/ that have a pose, by number; depth/ if it belongs to them."""
    place, poses, path = (_first(folder, kind) for kind in (_PHOTOS, _POSES, _LENSES))
    assert place is not None and poses is not None and path is not None
    photos = list_photos(place)
    lens = _lens(path, photo_size(folder, photos))
    with_depth = _has_depth(folder, path, lens)

    def read_photo(photo: Path) -> Shot:
        file, pose = photo.relative_to(folder).as_posix(), poses / f"{photo.stem}.txt"
        if not pose.is_file():
            raise UserError(
                f"{poses.name}/ has no pose of {file}", f"{pose.name}", "copy the poses there too"
            )
        c2w = check_pose(pose, file, read_matrix(pose))
        depth = existing(folder, folder / "depth" / f"{photo.stem}.png") if with_depth else None
        return Shot(file, lens, c2w, depth_file=depth)

    found = read_shots(photos, read_photo, lambda photo: photo.relative_to(folder).as_posix())
    posed = {pose.stem for pose in poses.glob("*.txt")}
    lost = sorted(posed - {photo.stem for photo in photos}, key=natural_key)
    left_out = [LeftOut(f"{place.name}/{stem}", "there is no photo of its pose") for stem in lost]
    return Survey(found.shots, left_out=(*found.left_out, *left_out))


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _lens(path: Path, size: tuple[int, int]) -> Lens:
    """The lens of the photos; intrinsics whose middle is not theirs are of ScanNet's own size."""
    K = read_matrix(path)
    for of in (size, _SIZE):
        height, width = of
        if abs(K[0, 2] / width - 0.5) < 0.15 and abs(K[1, 2] / height - 0.5) < 0.15:
            if of != size:
                log.warning("%s is of photos of 968x1296: scaled to %dx%d", path, *size)
            return matrix_lens(path, K, of)
    return matrix_lens(path, K, size)


def _has_depth(folder: Path, path: Path, lens: Lens) -> bool:
    """Whether the depth maps see what the photos see; a warning where they do not."""
    maps = list_photos(folder / "depth")
    depth_path = path.with_name(path.name.replace("color", "depth"))
    if not maps or not depth_path.is_file():
        return bool(maps)
    seen = matrix_lens(depth_path, read_matrix(depth_path), images.image_size(maps[0]))
    if np.abs(seen.K - lens.K).max() > _SHIFT:
        log.warning("%s: depth has another lens than the photos: it is left out", folder)
        return False
    return True
