"""COLMAP sparse models, binary and text: https://colmap.github.io/format.html.

pycolmap 4 also writes rigs and frames; photos of one camera do not need them.
"""

import logging
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt64

from ...errors import UserError
from ..photo_files import readable
from .survey import (
    LENS_MODELS,
    Lens,
    Shot,
    Survey,
    bad_pose,
    make_lens,
    read_shots,
    unknown_lens,
)
from .tables import inverse, make_motion, quaternion_rotation, read_cloud

_MODEL_FOLDERS = (
    "sparse/*",
    "sparse",
    "colmap/sparse/*",
    "colmap/sparse",
    "colmap",
    "",
    "dense/sparse",
    "dense/*/sparse",
    "undistorted/sparse",
    "distorted/sparse/*",
    "distorted/sparse",
)  # in the order in which they are looked into
_OTHER_MODELS = {
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    12: ("SIMPLE_DIVISION", 4),
    13: ("DIVISION", 5),
    16: ("EUCM", 6),
    17: ("EQUIRECTANGULAR", 2),
}  # their names and the number of their parameters

log = logging.getLogger(__name__)


def find_model(folder: Path, quiet: bool = False) -> Path | None:
    """Where a folder has a sparse model, None without.

    In one of _MODEL_FOLDERS. Of several models side by side (sparse/0, sparse/1) it is the one with
    most images; name another one's own folder to have that. A warning tells which, unless `quiet`.
    """
    for pattern in _MODEL_FOLDERS:
        places = folder.glob(pattern) if pattern else [folder]
        found = sorted(path for path in places if _kind(path) is not None)
        if found:
            best = max(found, key=_count_images)
            if len(found) > 1 and not quiet:
                log.warning("%s has %d models: %s is the largest", folder, len(found), best.name)
            return best
    return None


def _kind(folder: Path) -> str | None:
    """The suffix of a model's files; None where there is no model."""
    return next((kind for kind in (".bin", ".txt") if (folder / f"cameras{kind}").is_file()), None)


def _count_images(folder: Path) -> int:
    """How many images a model has, or seems to have; 0 where it has no file of them."""
    binary, text = folder / "images.bin", folder / "images.txt"
    if binary.is_file():
        with binary.open("rb") as file:
            return int.from_bytes(file.read(8), "little")
    return text.stat().st_size if text.is_file() else 0


def read(folder: str | Path) -> Survey:
    """A sparse model, binary or text: cameras, images, and points3D (or .ply) if it is there.

    Shots in the order of their numbers. COLMAP looks at the pixels of photos as they are stored,
    whatever EXIF says. Raises UserError for missing or damaged files; images whose pose or lens
    cannot be used are left out.
    """
    folder = Path(folder)
    kind = _kind(folder) or ".bin"
    cameras, pictures = (folder / f"{name}{kind}" for name in ("cameras", "images"))
    for path in (cameras, pictures):
        if not path.is_file():
            raise UserError(
                f"there is no {path}",
                "a COLMAP model: cameras and images, both .bin or both .txt",
                "export the whole sparse model, or copy the file that is missing",
            )
    binary = kind == ".bin"
    try:
        lenses = _binary_lenses(cameras) if binary else _text_lenses(cameras)
        rows = _binary_images(pictures) if binary else _text_images(pictures)
        known = _read_points(folder, kind)
        if missing := {row.camera for row in rows} - set(lenses):
            raise ValueError(f"images of camera {min(missing)}, which cameras{kind} has not")
    except UserError:
        raise
    except (ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise UserError(
            f"the COLMAP model {folder} is damaged ({type(error).__name__}: {error})",
            "whole cameras, images and points3D files",
            "export the model again",
        ) from error
    if not rows:
        raise UserError(
            f"the COLMAP model {folder} has no images",
            "at least one",
            "choose another of its models (sparse/1, …), or pose the photos again",
        )
    found = read_shots(
        sorted(rows, key=lambda row: row.number),
        lambda row: _make_shot(pictures, row, lenses[row.camera], known),
        lambda row: row.name,
    )
    return Survey(found.shots, known.points if len(known.points) else None, left_out=found.left_out)


@dataclass(frozen=True)
class _Camera:
    """A camera as the file has it; what its lens is, `_make_lens` finds out."""

    model: str
    size: tuple[int, int]
    values: tuple[float, ...]


@dataclass(frozen=True)
class _Image:
    """An image as the file has it: world-to-camera quaternion (wxyz) and translation."""

    number: int
    name: str
    camera: int
    pose: tuple[float, ...]
    observed: UInt64[np.ndarray, " observation"]


@dataclass(frozen=True)
class _Cloud:
    """The points of a model, by their sorted numbers; those of a .ply have none."""

    ids: UInt64[np.ndarray, " point"]
    points: Float[np.ndarray, "point 3"]


class _Cursor:
    """Reads a binary file from front to back; asking for more than is left is a ValueError."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self.at = 0

    def array(self, dtype: Any, count: int) -> np.ndarray:
        bytes_ = np.dtype(dtype).itemsize * count
        if bytes_ > len(self.data) - self.at:
            raise ValueError(f"{bytes_} more bytes expected, {len(self.data) - self.at} left")
        values = np.frombuffer(self.data, dtype, count, self.at)
        self.at += bytes_
        return values

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def text(self) -> str:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise ValueError("a file name without an end")
        name = self.data[self.at : end].decode("utf-8", "surrogateescape")
        self.at = end + 1
        return readable(name)


def _binary_lenses(path: Path) -> dict[int, _Camera]:
    cursor = _Cursor(path)
    known = {number: (m.name, len(m.parameters)) for number, m in LENS_MODELS.items()}
    known |= _OTHER_MODELS
    cameras = {}
    for _ in range(cursor.take("Q")[0]):
        number, model, width, height = cursor.take("IiQQ")
        if model not in known:
            raise unknown_lens(path, f"number {model}")
        name, count = known[model]
        values = cursor.array("<f8", count).tolist()
        cameras[number] = _Camera(name, (height, width), tuple(values))
    return cameras


_OBSERVATION = np.dtype([("xy", "<f8", 2), ("point", "<u8")])


def _binary_images(path: Path) -> list[_Image]:
    cursor = _Cursor(path)
    found = []
    for _ in range(cursor.take("Q")[0]):
        number, *pose = cursor.take("I7d")
        (camera,) = cursor.take("I")
        name = cursor.text()
        (count,) = cursor.take("Q")
        observed = cursor.array(_OBSERVATION, count)["point"]
        found.append(_Image(number, name, camera, tuple(pose), observed))
    return found


def _binary_points(path: Path) -> _Cloud:
    cursor = _Cursor(path)
    ids, points = [], []
    for _ in range(cursor.take("Q")[0]):
        number, *xyz, _, _, _, _, track = cursor.take("Q3d3BdQ")
        cursor.array("<u8", track)
        ids.append(number)
        points.append(xyz)
    return _by_id(ids, points)


def _rows(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for line in map(str.strip, lines):
            if not line.startswith("#"):
                yield line


def _text_lenses(path: Path) -> dict[int, _Camera]:
    cameras = {}
    for line in filter(None, _rows(path)):
        number, name, width, height, *values = line.split()
        cameras[int(number)] = _Camera(name, (int(height), int(width)), tuple(map(float, values)))
    return cameras


def _text_images(path: Path) -> list[_Image]:
    """Two lines an image: itself and its observations. Some tools leave the second out (B2)."""
    found: list[_Image] = []
    complete = True
    for line in _rows(path):
        words = line.split()
        if not complete and len(words) % 3 == 0 and _are_numbers(words):
            observed = np.array(words[2::3], dtype=np.int64).astype(np.uint64)
            found[-1] = replace(found[-1], observed=observed)
            complete = True
        elif words:
            number, *pose, camera, name = line.split(maxsplit=9)
            values = tuple(map(float, pose))
            none = np.empty(0, np.uint64)
            found.append(_Image(int(number), readable(name), int(camera), values, none))
            complete = False
    return found


def _are_numbers(words: list[str]) -> bool:
    try:
        return all(math.isfinite(float(word)) for word in words)
    except ValueError:
        return False


def _text_points(path: Path) -> _Cloud:
    rows = [line.split(maxsplit=4)[:4] for line in filter(None, _rows(path))]
    return _by_id([int(row[0]) for row in rows], [[float(x) for x in row[1:]] for row in rows])


def _read_points(folder: Path, kind: str) -> _Cloud:
    """The points of a model whose other files are of a `kind`; those that are not finite are lost.

    Where it has none of that kind, points of the other, or points3D.ply as INRIA writes it.
    """
    readers = {".bin": _binary_points, ".txt": _text_points, ".ply": _ply_points}
    for suffix in (kind, *readers):
        path = folder / f"points3D{suffix}"
        if path.is_file():
            cloud = readers[suffix](path)
            finite = np.isfinite(cloud.points).all(axis=1)
            ids = cloud.ids[finite] if len(cloud.ids) else cloud.ids
            return _Cloud(ids, cloud.points[finite])
    return _by_id([], [])


def _ply_points(path: Path) -> _Cloud:
    return _Cloud(_by_id([], []).ids, read_cloud(path))


def _by_id(ids: list[int], points: list[list[float]]) -> _Cloud:
    numbers = np.array(ids, dtype=np.uint64)
    order = numbers.argsort()
    return _Cloud(numbers[order], np.array(points, dtype=np.float64).reshape(-1, 3)[order])


def _make_shot(path: Path, image: _Image, camera: _Camera, cloud: _Cloud) -> Shot:
    """The shot of an image. Raises UserError for a pose or a lens that cannot be used."""
    length = float(np.linalg.norm(image.pose[:4]))
    if not math.isfinite(length) or length < 1e-6 or not np.isfinite(image.pose).all():
        raise bad_pose(path, image.name, "is not finite or has no rotation")
    w, *xyz = image.pose[:4]
    c2w = inverse(make_motion(quaternion_rotation([*xyz, w]), image.pose[4:]))
    rows = np.searchsorted(cloud.ids, image.observed).clip(max=max(len(cloud.ids) - 1, 0))
    known = np.zeros(len(rows), bool)
    if len(cloud.ids):
        known = cloud.ids[rows] == image.observed
    return Shot(image.name, _make_lens(path, camera), c2w, seen=np.unique(rows[known]))


def _make_lens(path: Path, camera: _Camera) -> Lens:
    models = {model.name: model for model in LENS_MODELS.values()}
    if camera.model not in models:
        raise unknown_lens(path, camera.model)
    model = models[camera.model]
    if len(model.parameters) != len(camera.values):
        raise UserError(
            f"a camera of {path.parent} is {camera.model} with {len(camera.values)} parameters",
            f"{len(model.parameters)}: {' '.join(model.parameters)}",
            "export the model again",
        )
    return make_lens(path, model, camera.size, camera.values)
