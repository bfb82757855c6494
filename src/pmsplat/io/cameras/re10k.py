"""Camera text of RealEstate10K: https://google.github.io/realestate10k/download.html.

The first line is the video's address. Each other line is a frame: its time in microseconds; fx fy
cx cy divided by width and height; two numbers that are 0; world to camera as 3x4, OpenCV axes.
"""

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np

from ...errors import UserError
from ..images import write_image
from ..photo_files import list_photos, natural_key
from ..video import read_frame_at
from .survey import LeftOut, Lens, Shot, Survey, check_lens, check_pose, read_shots
from .tables import inverse, numbers, photo_size, rows_of

_FIELDS = 19
RANGE = (0.5, 100.0)  # near and far: its scenes are scaled so that near things are about 1 away
_HEAD = 2048  # bytes that are looked at to recognize a file
_VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".m4v", ".avi")
_FOLDERS = ("frames", "images", "rgb", "")

log = logging.getLogger(__name__)


def find(folder: Path) -> Path | None:
    """The only camera text in a folder; UserError where there are several."""
    found = [path for path in folder.glob("*.txt") if is_cameras(path)]
    if len(found) > 1:
        raise UserError(
            f"{folder} has {len(found)} camera files of RealEstate10K",
            "one scene",
            f"name its file, for example {found[0]}",
        )
    return found[0] if found else None


def is_cameras(path: Path) -> bool:
    """Whether a file begins as these do: with an address, then a line of 19 numbers."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD).decode("utf-8", "replace").splitlines()
    except OSError:
        return False
    return len(head) > 1 and head[0].startswith("http") and len(head[1].split()) == _FIELDS


def read(path: Path, images_folder: str | None = None) -> Survey:
    """The frames of a camera text whose photos are there, named by their times.

    They are looked for in `images_folder`, or in a folder called frames, images, rgb or like the
    file, with or without one more folder like the file in it, or beside the file. Photos that have
    other names are those of the rows in order, if there are as many; a warning says so.
    """
    rows = [numbers(path, row) for row in rows_of(path)[1:]]
    bad = [row for row in rows if len(row) != _FIELDS or not math.isfinite(row[0])]
    if bad or not rows:
        raise UserError(
            f"{path} has the line {bad[0]}" if bad else f"{path} has no frames",
            "lines of 19 numbers: a time, fx fy cx cy, 0 0 and a 3x4 matrix",
            "copy the file again",
        )
    if any(row[5] or row[6] for row in rows):
        log.warning("%s: the numbers behind cx and cy, which should be 0, are left out", path)
    photos = _find_photos(path, rows, images_folder)
    size = photo_size(path.parent, [photo for photo in photos if photo is not None])

    def read_row(index: int) -> Shot:
        row, photo = rows[index], photos[index]
        if photo is None:
            raise UserError(
                f"there is no photo of frame {row[0]:.0f} of {path.name}",
                f"{row[0]:.0f}.jpg",
                "cut it from the video",
            )
        file, (fx, fy, cx, cy) = Path(os.path.relpath(photo, path.parent)).as_posix(), row[1:5]
        height, width = size
        lens = Lens(size, (fx * width, fy * height), (cx * width, cy * height))
        w2c = np.vstack([np.reshape(row[7:], (3, 4)), [0, 0, 0, 1]])
        c2w = inverse(check_pose(path, file, w2c))
        near, far = RANGE
        return Shot(file, check_lens(path, lens), c2w, near=near, far=far, time=row[0])

    log.warning(
        "%s: near and far are %g and %g, those of RealEstate10K, in whose unit it should be",
        path,
        *RANGE,
    )
    found = read_shots(range(len(rows)), read_row, lambda i: f"frame {rows[i][0]:.0f}")
    return Survey(found.shots, left_out=(*found.left_out, *_unposed(path, photos)))


def find_video(path: Path, folders: Sequence[Path]) -> Path | None:
    """The video of a camera text in one of the folders: called like the text, or by its id.

    That is the part of its address behind v=, as downloads from YouTube are called.
    """
    with path.open(encoding="utf-8", errors="replace") as stream:
        address = stream.readline().strip()
    names = [path.stem, *parse_qs(urlsplit(address).query).get("v", [])]
    files = (folder / f"{name}{kind}" for folder in folders for name in names for kind in _VIDEOS)
    return next((file for file in files if file.is_file()), None)


def cut_frames(path: Path, video: Path, folder: Path) -> None:
    """Writes the frames of a camera text from its video into a folder, as PNG named by their times.

    Frames behind the end of the video are left out. Raises UserError where none is in it.
    """
    times = [int(numbers(path, row[:1])[0]) for row in rows_of(path)[1:]]
    for time in times:
        frame = read_frame_at(video, time / 1e6)
        if frame is not None:
            write_image(folder / f"{time}.png", frame)
    if not any(folder.iterdir()):
        raise UserError(
            f"{video} has none of the {len(times)} frames of {path}",
            "the whole video",
            "download it again",
        )


def _find_photos(
    path: Path, rows: list[list[float]], images_folder: str | None
) -> list[Path | None]:
    """The photo of each row, None where there is none."""
    names = _FOLDERS if images_folder is None else (images_folder,)
    places = [path.parent / name / sub for name in names for sub in (path.stem, "")]
    in_order = None
    for place in dict.fromkeys(places):
        photos = list_photos(place)
        by_time = {int(p.stem): p for p in photos if p.stem.isdecimal()}
        found = [by_time.get(int(row[0])) for row in rows]
        if sum(photo is not None for photo in found) >= min(2, len(rows)):
            return found
        if len(photos) == len(rows) and in_order is None:
            in_order = photos
    if in_order is None:
        raise UserError(
            f"{path} has {len(rows)} frames, but none of their photos is in "
            + ", ".join(str(place) for place in dict.fromkeys(places)),
            f"photos named by their times, such as {rows[0][0]:.0f}.jpg",
            "cut the frames from the video, or name their folder",
        )
    log.warning("%s: photos in %s are not named by times: taken in order", path, in_order[0].parent)
    return list(in_order)


def _unposed(path: Path, photos: list[Path | None]) -> list[LeftOut]:
    """Photos beside those of the rows that have no row."""
    used = {photo for photo in photos if photo is not None}
    beside = set(list_photos(next(iter(used)).parent)) - used
    names = sorted((photo.name for photo in beside), key=natural_key)
    return [LeftOut(name, f"{path.name} has no line of it") for name in names]
