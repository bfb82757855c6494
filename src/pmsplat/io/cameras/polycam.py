"""Polycam's raw data: https://github.com/PolyCam/polyform, "Polycam's data format".

keyframes/cameras/TIME.json: t_00 to t_23 are camera to world, row by row, ARKit's axes (x right, y
up, z backward), meters; fx fy cx cy width height of the photo images/TIME.jpg; depth/TIME.png in
millimeters. corrected_cameras/ and corrected_images/ are better, if they are there.
"""

import logging
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..photo_files import list_photos, natural_key
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
from .tables import existing, from_opengl

_PREFIXES = ("corrected_", "")

log = logging.getLogger(__name__)


def find(folder: Path) -> Path | None:
    """The folder that has keyframes/ with cameras; also where keyframes/ itself is given."""
    home = folder.absolute().parent if folder.name == "keyframes" else folder
    return home if _prefix(home) is not None else None


def read(folder: Path) -> Survey:
    """The keyframes of a capture in the order of their times.

    The world is ARKit's, y up. What mesh_info.json says of raw.glb is not needed for it.
    """
    frames, prefix = folder / "keyframes", _prefix(folder)
    assert prefix is not None
    if not prefix:
        log.warning("%s has no corrected cameras: those of ARKit are taken", folder)
    place = frames / f"{prefix}images"
    photos = {photo.stem: photo for photo in list_photos(place)}
    files = (frames / f"{prefix}cameras").glob("*.json")
    cameras = sorted(files, key=lambda path: natural_key(path.name))

    def read_camera(path: Path) -> Shot:
        fields = read_json(path)
        if not isinstance(fields, dict):
            raise UserError(f"{path} is no camera", "an object with t_00 to t_23", "export again")
        rows = [[read_number(path, fields, f"t_{i}{j}") for j in range(4)] for i in range(3)]
        photo = photos.get(path.stem, place / f"{path.stem}.jpg")
        file = photo.relative_to(folder).as_posix()
        c2w = from_opengl(check_pose(path, file, np.vstack([rows, [0, 0, 0, 1]])))
        return Shot(
            file,
            _lens(path, fields),
            c2w,
            depth_file=existing(folder, frames / "depth" / f"{path.stem}.png"),
            time=float(path.stem) if path.stem.isdecimal() else None,
        )

    found = read_shots(cameras, read_camera, lambda path: path.stem)
    lost = sorted(photos.keys() - {path.stem for path in cameras})
    left_out = (*found.left_out, *(LeftOut(photos[name].name, "it has no camera") for name in lost))
    return Survey(found.shots, left_out=left_out)


def _prefix(home: Path) -> str | None:
    """Which cameras and photos there are, the better ones first."""
    frames = home / "keyframes"
    for prefix in _PREFIXES:
        cameras = frames / f"{prefix}cameras"
        if next(cameras.glob("*.json"), None) and (frames / f"{prefix}images").is_dir():
            return prefix
    return None


def _lens(path: Path, fields: dict[str, float]) -> Lens:
    fx, fy, cx, cy, height, width = (
        read_number(path, fields, key) for key in ("fx", "fy", "cx", "cy", "height", "width")
    )
    size = check_size(path, int(height), int(width))
    return check_lens(path, Lens(size, (fx, fy), (cx, cy)))
