"""Record3D's .r3d, extracted, and its export as EXR and JPG: https://record3d.app.

`metadata` is JSON (issues 27, 33, 36 and 83 of https://github.com/marek-simonik/record3d): `poses`
are qx qy qz qw tx ty tz, camera to world, OpenGL axes, meters; `K` is column by column;
`perFrameIntrinsicCoeffs` are fx fy cx cy of each frame; `w` and `h` the size of the photos, which
are rgbd/0.jpg (or rgb/0.jpg) and so on.
"""

import logging
import zipfile
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..photo_files import list_photos
from .survey import (
    LeftOut,
    Lens,
    Shot,
    Survey,
    check_K,
    check_lens,
    check_matrix,
    check_pose,
    check_size,
    read_json,
    read_number,
    read_shots,
)
from .tables import from_opengl, make_motion, photo_size, quaternion_rotation

_FILES = ("metadata", "metadata.json")
_PHOTOS = ("rgbd", "rgb")

log = logging.getLogger(__name__)


def find(folder: Path) -> Path | None:
    """The folder, if it has Record3D's metadata and photos."""
    path = _metadata(folder)
    if path is None or _photos(folder) is None:
        return None
    with path.open("rb") as stream:
        return folder if b'"poses"' in stream.read() else None


def refuse_archive(path: Path) -> UserError:
    """The error for a .r3d that has not been extracted."""
    kind = "a zip file" if zipfile.is_zipfile(path) else "no zip file, so it is damaged"
    return UserError(
        f"{path} is {kind}",
        "the folder that is in it",
        "extract it (unzip), and name the folder with `metadata` and rgbd/",
    )


def read(folder: Path) -> Survey:
    """The photos of a recording by number, each with its pose.

    Depth, which Record3D compresses as LZFSE or writes as EXR, is left out, and a warning says so.
    """
    path, place = _metadata(folder), _photos(folder)
    assert path is not None and place is not None
    content = read_json(path)
    poses = content.get("poses") if isinstance(content, dict) else None
    if not isinstance(poses, list) or not poses:
        raise UserError(f"{path} has no poses", "a list 'poses'", "record with LiDAR, export again")
    if any(next(folder.glob(kind), None) for kind in ("rgbd/*.depth", "depth/*.exr")):
        log.warning("%s: depth, compressed as LZFSE or as EXR, is left out", folder)
    photos = list_photos(place)
    size = photo_size(folder, photos)
    if "w" in content and "h" in content:
        height, width = (int(read_number(path, content, side)) for side in ("h", "w"))
        size = check_size(path, height, width)

    def read_photo(photo: Path) -> Shot:
        file = photo.relative_to(folder).as_posix()
        number = int(photo.stem) if photo.stem.isdecimal() else -1
        if not 0 <= number < len(poses):
            raise UserError(
                f"{path.name} has {len(poses)} poses, none of them of {file}",
                "a pose of each photo, which is named by its number",
                "export the recording again",
            )
        pose = check_matrix(path, file, poses[number], (7,))
        c2w = from_opengl(make_motion(quaternion_rotation(pose[:4]), pose[4:]))
        lens = _lens(path, content, number, size)
        return Shot(file, lens, check_pose(path, file, c2w), time=_time(content, number))

    found = read_shots(photos, read_photo, lambda photo: photo.relative_to(folder).as_posix())
    there = {int(photo.stem) for photo in photos if photo.stem.isdecimal()}
    lost = [f"{place.name}/{i}.jpg" for i in range(len(poses)) if i not in there]
    left_out = [LeftOut(name, "there is no photo of its pose") for name in lost]
    return Survey(found.shots, left_out=(*found.left_out, *left_out))


def _metadata(folder: Path) -> Path | None:
    return next((folder / name for name in _FILES if (folder / name).is_file()), None)


def _photos(folder: Path) -> Path | None:
    return next((folder / name for name in _PHOTOS if (folder / name).is_dir()), None)


def _lens(path: Path, content: dict[str, Any], number: int, size: tuple[int, int]) -> Lens:
    """That of the frame, if the file has it, else that of the recording."""
    each = content.get("perFrameIntrinsicCoeffs")
    if isinstance(each, list) and number < len(each):
        fx, fy, cx, cy = check_matrix(path, f"the lens of frame {number}", each[number], (4,))
    else:
        K = check_K(path, check_matrix(path, "K", content.get("K"), (9,)).reshape(3, 3).T)
        fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    return check_lens(path, Lens(size, (float(fx), float(fy)), (float(cx), float(cy))))


def _time(content: dict[str, Any], number: int) -> float | None:
    """Seconds of a frame since the first, where the file has its times or the rate of frames."""
    times, rate = content.get("frameTimestamps"), content.get("fps")
    if isinstance(times, list) and number < len(times) and isinstance(times[number], int | float):
        return float(times[number])
    return number / rate if isinstance(rate, int | float) and rate > 0 else None
