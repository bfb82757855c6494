"""COLMAP sparse models, binary and text: https://colmap.github.io/format.html.

pycolmap 4 also writes rigs and frames; photos of one camera do not need them.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from .survey import (
    LENS_MODELS,
    Lens,
    Shot,
    Survey,
    bad_pose,
    make_lens,
    unknown_lens,
)

_MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0", "")
_OTHER_MODELS = {
    11: "RAD_TAN_THIN_PRISM_FISHEYE",
    12: "SIMPLE_DIVISION",
    13: "DIVISION",
    16: "EUCM",
    17: "EQUIRECTANGULAR",
}


def find_model(folder: Path) -> Path | None:
    """Where a folder has a sparse model: in sparse/0 or the like, or in itself; None without."""
    for name in _MODEL_FOLDERS:
        if any((folder / name / f"cameras{kind}").is_file() for kind in (".bin", ".txt")):
            return folder / name
    return None


def read(folder: str | Path) -> Survey:
    """A sparse model, binary or text (cameras, images, points3D), shots in order of their names.

    COLMAP looks at the pixels of photos as they are stored, whatever EXIF says. Raises UserError
    for missing or damaged files, and for lenses that are not in `LENS_MODELS`.
    """
    folder = Path(folder)
    kind = ".bin" if (folder / "cameras.bin").is_file() else ".txt"
    paths = [folder / f"{name}{kind}" for name in ("cameras", "images", "points3D")]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"there is no {path}",
                "a COLMAP model: cameras, images and points3D, all .bin or all .txt",
                "export the whole sparse model, or copy the file that is missing",
            )
    try:
        if kind == ".bin":
            lenses = _binary_lenses(paths[0])
            ids, points = _binary_points(paths[2])
            shots = _binary_shots(paths[1], lenses, ids)
        else:
            lenses = _text_lenses(paths[0])
            ids, points = _text_points(paths[2])
            shots = _text_shots(paths[1], lenses, ids)
    except UserError:
        raise
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise UserError(
            f"the COLMAP model {folder} is damaged ({type(error).__name__}: {error})",
            "whole cameras, images and points3D files",
            "export the model again",
        ) from error
    if not shots:
        raise UserError(
            f"the COLMAP model {folder} has no images",
            "at least one",
            "choose another of its models (sparse/1, …), or pose the photos again",
        )
    shots.sort(key=lambda shot: shot.file)
    return Survey(tuple(shots), points, as_stored=True)


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
        return name


def _binary_lenses(path: Path) -> dict[int, Lens]:
    cursor = _Cursor(path)
    lenses = {}
    for _ in range(cursor.take("Q")[0]):
        number, model, width, height = cursor.take("IiQQ")
        if model not in LENS_MODELS:
            raise unknown_lens(path, _OTHER_MODELS.get(model, f"number {model}"))
        parameters = cursor.array("<f8", len(LENS_MODELS[model].parameters))
        size = (height, width)
        lenses[number] = make_lens(path, LENS_MODELS[model], size, parameters.tolist())
    return lenses


_OBSERVATION = np.dtype([("xy", "<f8", 2), ("point", "<u8")])


def _binary_shots(path: Path, lenses: dict[int, Lens], ids: np.ndarray) -> list[Shot]:
    cursor = _Cursor(path)
    shots = []
    for _ in range(cursor.take("Q")[0]):
        _, *pose = cursor.take("I7d")
        (camera,) = cursor.take("I")
        name = cursor.text()
        (count,) = cursor.take("Q")
        observed = cursor.array(_OBSERVATION, count)["point"]
        shots.append(_colmap_shot(path, name, lenses[camera], pose, observed, ids))
    return shots


def _binary_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(sorted ids, points in that order)."""
    cursor = _Cursor(path)
    ids, points = [], []
    for _ in range(cursor.take("Q")[0]):
        number, *xyz, _, _, _, _, track = cursor.take("Q3d3BdQ")
        cursor.array("<u8", track)
        ids.append(number)
        points.append(xyz)
    return _by_id(ids, points)


def _rows(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            if not line.startswith("#"):
                yield line.strip()


def _text_lenses(path: Path) -> dict[int, Lens]:
    models = {model.name: model for model in LENS_MODELS.values()}
    lenses = {}
    for line in filter(None, _rows(path)):
        number, name, width, height, *parameters = line.split()
        if name not in models:
            raise unknown_lens(path, name)
        values = [float(value) for value in parameters]
        lenses[int(number)] = make_lens(path, models[name], (int(height), int(width)), values)
    return lenses


def _text_shots(path: Path, lenses: dict[int, Lens], ids: np.ndarray) -> list[Shot]:
    rows = _rows(path)
    shots = []
    for line in rows:
        if not line:
            continue
        _, *pose, camera, name = line.split(maxsplit=9)
        observed = np.array(next(rows, "").split()[2::3], dtype=np.int64).astype(np.uint64)
        pose = [float(value) for value in pose]
        shots.append(_colmap_shot(path, name, lenses[int(camera)], pose, observed, ids))
    return shots


def _text_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    rows = [line.split(maxsplit=4)[:4] for line in filter(None, _rows(path))]
    return _by_id([int(row[0]) for row in rows], [[float(x) for x in row[1:]] for row in rows])


def _by_id(ids: list[int], points: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.array(ids, dtype=np.uint64)
    order = numbers.argsort()
    return numbers[order], np.array(points, dtype=np.float64).reshape(-1, 3)[order]


def _colmap_shot(
    path: Path,
    name: str,
    lens: Lens,
    pose: Sequence[float],
    observed: np.ndarray,
    ids: np.ndarray,
) -> Shot:
    """A shot from COLMAP's world-to-camera quaternion (wxyz) and translation."""
    q = np.array(pose[:4])
    length = float(np.linalg.norm(q))
    if not math.isfinite(length) or length < 1e-6 or not np.isfinite(pose).all():
        raise bad_pose(path, name, "is not finite or has no rotation")
    w, x, y, z = q / length
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    c2w = np.eye(4)
    c2w[:3, :3] = rotation.T
    c2w[:3, 3] = -rotation.T @ np.array(pose[4:])
    rows = np.searchsorted(ids, observed).clip(max=max(len(ids) - 1, 0))
    known = ids[rows] == observed if len(ids) else np.zeros(len(observed), bool)
    return Shot(name, lens, c2w, seen=np.unique(rows[known]))
