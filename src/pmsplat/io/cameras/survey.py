"""What every camera file gives, and the checks that its readers share.

Poses are camera to world in OpenCV axes (x right, y down, z forward), float64, in the world and
unit of the file. Pixels are centered at index + 0.5.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float, Int64

from ...errors import UserError

T = TypeVar("T")

log = logging.getLogger(__name__)

_TOLERANCE = 1e-2  # of a rotation's orthonormality; nearer ones are made exact
_OFF_CENTER = 0.3  # of a photo's side, from its middle: few photos are cut so much
_SKEW = 1e-3  # of the focal length: less moves no corner by a pixel
_MAX_SIDE = 1 << 17  # pixels of a photo's side; beyond is a damaged file

GIVEN = "file"  # what found the cameras, where a file has them and does not say

Projection = Literal["perspective", "polynomial", "fisheye", "fov"]
"""How a lens distorts; r is the length of (x/z, y/z), s the factor of it on the sensor.

`perspective`: OpenCV's rational model, s = (1 + k1 r² + k2 r⁴ + k3 r⁶) / (1 + k4 r² + k5 r⁴ +
k6 r⁶). `polynomial`: s = 1 + k1 r² + … + k6 r¹², the k4 of Brown, nerfstudio and Metashape.
`fisheye`: the same polynomial in the angle θ = atan r, with θ for r (COLMAP's fisheyes).
`fov`: s = atan(2 r tan(ω/2)) / (r ω), ω in place of k1.
"""


@dataclass(frozen=True)
class Lens:
    """A camera's intrinsics in pixels, with its distortion.

    `radial` is k1 … k6, `tangential` p1 p2 (OpenCV's), `prism` sx1 sy1 (COLMAP's THIN_PRISM), all
    in the plane of the `projection`; all 0 and perspective: a pinhole.
    """

    size: tuple[int, int]
    focal: tuple[float, float]
    center: tuple[float, float]
    radial: tuple[float, ...] = (0.0,) * 6
    tangential: tuple[float, float] = (0.0, 0.0)
    projection: Projection = "perspective"
    prism: tuple[float, float] = (0.0, 0.0)

    @property
    def is_pinhole(self) -> bool:
        distorts = any(self.radial) or any(self.tangential) or any(self.prism)
        return not distorts and self.projection != "fisheye"

    @property
    def is_wide(self) -> bool:
        """Whether the whole photo may see more than any pinhole can."""
        return self.projection in ("fisheye", "fov")

    @property
    def K(self) -> Float[np.ndarray, "3 3"]:
        """Intrinsics divided by (width, height)."""
        height, width = self.size
        (fx, fy), (cx, cy) = self.focal, self.center
        return np.array([[fx / width, 0, cx / width], [0, fy / height, cy / height], [0, 0, 1.0]])


@dataclass(frozen=True)
class LensModel:
    """A lens model of COLMAP (nerfstudio uses the names): its parameters, in their order."""

    name: str
    parameters: tuple[str, ...]
    projection: Projection = "perspective"


_THIN_PRISM = ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "sx1", "sy1")

LENS_MODELS = {
    0: LensModel("SIMPLE_PINHOLE", ("f", "cx", "cy")),
    1: LensModel("PINHOLE", ("fx", "fy", "cx", "cy")),
    2: LensModel("SIMPLE_RADIAL", ("f", "cx", "cy", "k1")),
    3: LensModel("RADIAL", ("f", "cx", "cy", "k1", "k2")),
    4: LensModel("OPENCV", ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2")),
    6: LensModel(
        "FULL_OPENCV",
        ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
    ),
    5: LensModel("OPENCV_FISHEYE", ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4"), "fisheye"),
    7: LensModel("FOV", ("fx", "fy", "cx", "cy", "k1"), "fov"),
    8: LensModel("SIMPLE_RADIAL_FISHEYE", ("f", "cx", "cy", "k1"), "fisheye"),
    9: LensModel("RADIAL_FISHEYE", ("f", "cx", "cy", "k1", "k2"), "fisheye"),
    10: LensModel("THIN_PRISM_FISHEYE", _THIN_PRISM, "fisheye"),
    14: LensModel("SIMPLE_FISHEYE", ("f", "cx", "cy"), "fisheye"),
    15: LensModel("FISHEYE", ("fx", "fy", "cx", "cy"), "fisheye"),
}

PANORAMAS = {"EQUIRECTANGULAR", "SPHERICAL", "LATLONG", "PANORAMA", "VR180_L", "VR180_R"}
PANORAMAS |= {"OMNIDIRECTIONALSTEREO_L", "OMNIDIRECTIONALSTEREO_R"}


@dataclass(frozen=True)
class Shot:
    """One posed photograph of a camera file.

    `file` and `depth_file` as the file names them; `seen` are the rows of the model's points that
    this photo observes; `near` and `far` in scene units, `time` of the shutter in any unit, None
    where the file does not say.
    """

    file: str
    lens: Lens
    c2w: Float[np.ndarray, "4 4"]
    depth_file: str | None = None
    seen: Int64[np.ndarray, " observed"] | None = None
    near: float | None = None
    far: float | None = None
    time: float | None = None


@dataclass(frozen=True)
class LeftOut:
    """A photograph that a file names and that cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Survey:
    """What a camera file holds: posed photographs, and the sparse points of the scene, if any.

    `depth_scale`: scene units of one count of the depth files; `no_depth`: the count, beside 0,
    that stands for none; `depth_stated`: whether the file gives `depth_scale`, which then also
    holds for depth files that are no counts, where none is. `left_out`: what the file names beside
    them and cannot be used. `order` says what `order.in_capture_order` went by. `poses`: what found
    the cameras, where the file says.
    """

    shots: tuple[Shot, ...]
    points: Float[np.ndarray, "point 3"] | None = None
    depth_scale: float = 1e-3
    left_out: tuple[LeftOut, ...] = ()
    order: str = "the camera file"
    no_depth: int = 0
    depth_stated: bool = False
    poses: str = GIVEN


@dataclass(frozen=True)
class Readable:
    """The entries of a file that can be read, and those that cannot."""

    shots: tuple[Shot, ...]
    left_out: tuple[LeftOut, ...]


def read_shots(
    entries: Sequence[T], read: Callable[[T], Shot], name: Callable[[T], str]
) -> Readable:
    """`read` of every entry for which it raises no UserError; the others with the reason.

    Raises the error of the first entry where none can be read.
    """
    shots, left_out, errors = [], [], []
    for entry in entries:
        try:
            shots.append(read(entry))
        except UserError as error:
            errors.append(error)
            left_out.append(LeftOut(name(entry), error.got))
    if not shots:
        raise errors[0]
    return Readable(tuple(shots), tuple(left_out))


def text_at(key: str) -> Callable[[Any], str]:
    """What names an entry of a JSON file: its text at `key`, if it has one."""

    def name(entry: Any) -> str:
        found = entry.get(key) if isinstance(entry, dict) else None
        return found if isinstance(found, str) else f"an entry without {key}"

    return name


def read_json(path: Path) -> Any:
    """What a JSON file holds, in UTF-8, UTF-16 or Latin-1, with or without a mark of byte order.

    Raises UserError where there is no such file, or it holds no JSON.
    """
    try:
        data = path.read_bytes()
        try:
            return json.loads(data)
        except UnicodeDecodeError:
            return json.loads(data.decode("latin-1"))
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}", "a camera file", "check the path") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror})", "a camera file", "check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not JSON ({error})",
            "a camera file in JSON",
            "it is damaged or of another kind: export the cameras again",
        ) from error


def frames_of(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """The JSON object in a file and its `frames`; raises UserError where it has none."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is not a JSON object", "an object with 'frames'", "export the cameras again"
        )
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise UserError(
            f"{path} has no frames", "a list 'frames' of at least one", "export the cameras again"
        )
    return content, frames


def read_number(
    path: Path, fields: dict[str, Any], key: str, default: float | None = None
) -> float:
    """The number at `key`, also if it is written as text, as some importers of nerfstudio do.

    Raises UserError for anything else, and for a number that is not finite.
    """
    given = fields.get(key, default)
    try:
        value = math.nan if isinstance(given, bool) else float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):  # overflow: a whole number of 400 digits
        value = math.nan
    if not math.isfinite(value):
        raise UserError(
            f"{path} has {key}={given!r:.60}", "a finite number", f"correct {key} in the file"
        )
    return value


def check_size(path: Path, height: int, width: int) -> tuple[int, int]:
    """(height, width) of a photo; raises UserError where no photo is of such a size."""
    if not (0 < height < _MAX_SIDE and 0 < width < _MAX_SIDE):
        raise UserError(
            f"{path} has photos of {height}x{width} pixels",
            f"a sensible size: sides from 1 to {_MAX_SIDE - 1}",
            "correct height and width in the file",
        )
    return height, width


def make_lens(path: Path, model: LensModel, size: tuple[int, int], values: Sequence[float]) -> Lens:
    """The lens of a model of COLMAP; raises UserError for parameters that are none.

    Raises ValueError where there are not as many as the model has.
    """
    named = dict(zip(model.parameters, values, strict=True))
    fx, fy = (named.get(key, named.get("f", 0.0)) for key in ("fx", "fy"))
    lens = Lens(
        size=check_size(path, *size),
        focal=(fx, fy),
        center=(named["cx"], named["cy"]),
        radial=tuple(named.get(f"k{i}", 0.0) for i in range(1, 7)),
        tangential=(named.get("p1", 0.0), named.get("p2", 0.0)),
        projection=model.projection,
        prism=(named.get("sx1", 0.0), named.get("sy1", 0.0)),
    )
    return check_lens(path, lens)


def check_lens(path: Path, lens: Lens) -> Lens:
    """The lens; raises UserError where no lens has such numbers."""
    numbers = [*lens.focal, *lens.center, *lens.radial, *lens.tangential, *lens.prism]
    if not all(map(math.isfinite, numbers)) or min(lens.focal) <= 0:
        raise UserError(
            f"{path} has a lens with focal lengths {lens.focal} and center {lens.center}",
            "finite numbers and positive focal lengths",
            "export the cameras again",
        )
    (height, width), (cx, cy) = lens.size, lens.center
    if abs(cx / width - 0.5) > _OFF_CENTER or abs(cy / height - 0.5) > _OFF_CENTER:
        say_once(
            f"{path} has the principal point ({cx:.1f}, {cy:.1f}) in photos of {height}x{width} "
            "pixels: check that its intrinsics are those of photos of that size"
        )
    return lens


def check_K(path: Path, K: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    """Intrinsics as a matrix; a warning for skew, UserError for a matrix of another kind."""
    if K[2, :2].any():
        raise UserError(
            f"{path} has intrinsics whose last row is {K[2].tolist()}",
            "fx 0 cx, 0 fy cy, 0 0 1, row by row",
            "write the matrix in this order",
        )
    if abs(K[0, 1]) > _SKEW * abs(K[0, 0]):
        say_once(f"{path} has intrinsics with skew, {K[0, 1]:g}: it is left out")
    return K


def name_unknown(path: Path, entries: Sequence[Any], known: set[str]) -> None:
    """A warning that names the fields of a file's entries beside those that are `known`."""
    given = {key for entry in entries if isinstance(entry, dict) for key in entry}
    if given - known:
        names = ", ".join(sorted(given - known))
        unknown = f"fields that are not known here ({names})"
        log.warning("%s: its cameras are used, but not %s", path, unknown)


@cache  # a file has hundreds of frames of one kind
def say_once(text: str) -> None:
    """A warning, once for every text."""
    log.warning("%s", text)


def check_matrix(path: Path, name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """What the file gives for `name` as float64 of `shape`; raises UserError for anything else."""
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.empty(0)
    if matrix.shape != shape:
        got = "none" if value is None else f"shape {list(matrix.shape)}"
        raise UserError(
            f"{path} has a matrix of {got} for {name}",
            f"{' rows of '.join(map(str, shape))} numbers",
            "export the cameras again",
        )
    return matrix


def check_pose(path: Path, name: str, motion: np.ndarray) -> np.ndarray:
    """The pose with its rotation made exactly orthonormal; raises UserError where it is none."""
    if not np.isfinite(motion).all():
        raise bad_pose(path, name, "is not finite")
    rotation = motion[:3, :3]
    left, stretch, right = np.linalg.svd(rotation)
    if np.abs(stretch - 1).max() > _TOLERANCE or np.linalg.det(rotation) < 0:
        raise bad_pose(path, name, "scales, shears, mirrors or cannot be inverted")
    if np.abs(motion[3] - [0, 0, 0, 1]).max() > 1e-6:
        raise bad_pose(path, name, "does not end with the row 0 0 0 1")
    exact = motion.copy()
    exact[:3, :3] = left @ right
    return exact


def bad_pose(path: Path, name: str, what: str) -> UserError:
    """The error for a pose that is no rigid motion."""
    return UserError(
        f"the pose of {name} in {path} {what}",
        "a rotation and a translation",
        "pose the photos again, or leave this one out",
    )


def unknown_lens(path: Path, name: str) -> UserError:
    """The error for a lens model that cannot be undistorted here."""
    if name.upper() in PANORAMAS:
        return UserError(
            f"{path} has panoramas ({name})",
            "photos that a pinhole can take",
            "cut each panorama into perspective views and pose those: "
            "`ns-process-data images --camera-type equirectangular` of nerfstudio does both",
        )
    if name.upper() in ("ORTHOPHOTO", "ORTHOGRAPHIC"):
        return UserError(
            f"{path} has orthographic pictures ({name})",
            "photos that a pinhole can take",
            "render the scene with perspective cameras",
        )
    known = ", ".join(model.name for model in LENS_MODELS.values())
    return UserError(
        f"{path} has a lens of model {name}",
        f"one of {known}",
        "undistort the photos first (`colmap image_undistorter`), or pose them with another model",
    )
