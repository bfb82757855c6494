"""What readers of pose folders share: numbers in text files, rotations, and lists of photos."""

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ...errors import UserError
from .. import images
from .survey import Lens, check_K, check_lens, check_size

Matrix3 = Float[np.ndarray, "3 3"]
Motion = Float[np.ndarray, "4 4"]
Vector = Sequence[float] | Float[np.ndarray, " number"]


def rows_of(path: Path) -> list[list[str]]:
    """The words of each line of a text file, split at spaces and commas, without comments (#)."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror})", "a text file", "check the path"
        ) from error
    lines = (line.partition("#")[0] for line in text.splitlines())
    return [words for line in lines if (words := re.split(r"[\s,]+", line.strip())) != [""]]


def numbers(path: Path, words: Sequence[str]) -> list[float]:
    """Words as numbers, nan and inf among them; raises UserError for others."""
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise UserError(
            f"{path} has {' '.join(words)[:60]!r} where numbers should be",
            "numbers",
            "copy or export the file again",
        ) from error


def read_cloud(path: Path) -> Float[np.ndarray, "point 3"]:
    """The vertices of a .ply file; raises UserError where it has none."""
    from plyfile import PlyData, PlyParseError

    try:
        vertex = PlyData.read(path)["vertex"]
        return np.stack([np.asarray(vertex[axis], np.float64) for axis in "xyz"], axis=1)
    except (PlyParseError, KeyError, ValueError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as a point cloud ({error})",
            "vertices x y z",
            "export it again, or take it away",
        ) from error


def read_size(path: Path, height: float, width: float) -> tuple[int, int]:
    """(height, width) of photos from two numbers; raises UserError where they are no size."""
    whole = (round(side) if math.isfinite(side) else 0 for side in (height, width))
    return check_size(path, *whole)


def read_matrix(path: Path) -> np.ndarray:
    """A 3x3, 3x4 or 4x4 matrix in a text file, row by row or in one line, as float64.

    A 3x4 matrix gets the last row 0 0 0 1. Raises UserError for anything else.
    """
    values = numbers(path, [word for row in rows_of(path) for word in row])
    if len(values) == 12:
        values += [0, 0, 0, 1]
    side = {9: 3, 16: 4}.get(len(values))
    if side is None:
        raise UserError(
            f"{path} holds {len(values)} numbers",
            "a matrix of 3x3, 3x4 or 4x4",
            "copy or export the file again",
        )
    return np.array(values, np.float64).reshape(side, side)


def matrix_lens(path: Path, K: np.ndarray, size: tuple[int, int]) -> Lens:
    """The pinhole of intrinsics in pixels, of a photo of `size`; `path` is for errors."""
    K = check_K(path, K[:3, :3])
    lens = Lens(check_size(path, *size), (K[0, 0], K[1, 1]), (K[0, 2], K[1, 2]))
    return check_lens(path, lens)


def quaternion_rotation(xyzw: Vector) -> Matrix3:
    """The rotation of a quaternion, scalar last, of any length; nan where it has none."""
    length = float(np.linalg.norm(xyzw))
    if not 0 < length < math.inf:
        return np.full((3, 3), np.nan)
    x, y, z, w = np.array(xyzw, np.float64) / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def axis_rotation(vector: Vector) -> Matrix3:
    """The rotation around an axis by as many radians as the axis is long."""
    angle = float(np.linalg.norm(vector))
    if not math.isfinite(angle):
        return np.full((3, 3), np.nan)
    half = angle / 2
    axis = np.array(vector, np.float64) * (np.sin(half) / angle if angle else 0.5)
    return quaternion_rotation([*axis, np.cos(half)])


def make_motion(rotation: Matrix3, translation: Vector) -> Motion:
    """A rotation and a translation as one matrix."""
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = rotation, translation
    return motion


def inverse(motion: Motion) -> Motion:
    """The inverse of a rigid motion."""
    rotation = motion[:3, :3].T
    return make_motion(rotation, -rotation @ motion[:3, 3])


def from_opengl(c2w: Motion) -> Motion:
    """The pose of a camera whose axes are OpenGL's or ARKit's: x right, y up, z backward."""
    return c2w * np.array([1.0, -1.0, -1.0, 1.0])


def photo_size(folder: Path, photos: Sequence[Path]) -> tuple[int, int]:
    """(height, width) of the first of one camera's photos that is whole; UserError without any."""
    for photo in photos:
        if photo.is_file():
            with suppress(UserError):  # whoever opens the photos names those that are damaged
                return images.image_size(photo)
    raise UserError(
        f"{folder} has camera poses, but no photo of them",
        "photos beside their poses",
        "copy the photos there too",
    )


def nearest(times: Float[np.ndarray, " time"], time: float, limit: float) -> int | None:
    """Which of `times` is nearest to `time`, None where none is within `limit`."""
    if len(times) == 0:
        return None
    best = int(np.abs(times - time).argmin())
    return best if abs(times[best] - time) <= limit else None


def existing(home: Path, file: Path) -> str | None:
    """A file's path as seen from `home`, None where there is no such file."""
    return file.relative_to(home).as_posix() if file.is_file() else None
