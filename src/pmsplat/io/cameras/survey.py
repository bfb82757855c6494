"""Camera files: transforms.json (nerfstudio, instant-ngp), our cameras.json; COLMAP in `colmap`.

Every reader gives poses in OpenCV axes (x right, y down, z forward), camera to world, float64, in
the world and unit of the file. Pixels are centred at index + 0.5. The format of transforms.json:
https://docs.nerf.studio/quickstart/data_conventions.html.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from ...errors import UserError
from ...types import Cameras
from .. import images
from ..files import write_text

_TOLERANCE = 1e-2  # of a rotation's orthonormality; nearer ones are made exact
_MAX_SIDE = 1 << 17  # pixels of a photo's side; beyond is a damaged file


@dataclass(frozen=True)
class Lens:
    """A camera's intrinsics in pixels, with the distortion of OpenCV's rational model.

    `radial` is k1 k2 k3 (numerator) k4 k5 k6 (denominator), `tangential` p1 p2; all 0: a pinhole.
    """

    size: tuple[int, int]
    focal: tuple[float, float]
    center: tuple[float, float]
    radial: tuple[float, ...] = (0.0,) * 6
    tangential: tuple[float, float] = (0.0, 0.0)

    @property
    def is_pinhole(self) -> bool:
        return not any(self.radial) and not any(self.tangential)

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
}


@dataclass(frozen=True)
class Shot:
    """One posed photograph of a camera file.

    `file` and `depth_file` as the file names them; `seen` are the rows of the model's points that
    this photo observes; `near` and `far` in scene units where the file knows them.
    """

    file: str
    lens: Lens
    c2w: Float[np.ndarray, "4 4"]
    depth_file: str | None = None
    seen: Int64[np.ndarray, " observed"] | None = None
    near: float | None = None
    far: float | None = None


@dataclass(frozen=True)
class Survey:
    """What a camera file tells: posed photographs, and the sparse points behind them, if any.

    `depth_scale`: scene units of one count of the depth files.
    """

    shots: tuple[Shot, ...]
    points: Float[np.ndarray, "point 3"] | None = None
    depth_scale: float = 1e-3


@dataclass(frozen=True)
class DepthFiles:
    """Depth maps as 16-bit PNG files, one of each picture, named as seen from the camera file.

    `scale`: scene units of one count.
    """

    names: tuple[str, ...]
    scale: float


def read_transforms(path: str | Path) -> Survey:
    """A transforms.json of nerfstudio or instant-ngp, shots in the order of the file.

    Intrinsics per file or per frame, or `camera_angle_x`; distortion k1..k6 p1 p2; depth files
    with `depth_unit_scale_factor` (default 0.001) or `integer_depth_scale`; `near` and `far`, per
    file or frame, are an addition of ours. OpenGL axes become OpenCV's. The world is that of the
    file: an `applied_transform` is part of its poses, and of its points and depth.
    """
    path = Path(path)
    content = _json_object(path)
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{path} has no frames", "a list `frames` of at least one", "export again")
    shots = tuple(_transforms_shot(path, content, frame) for frame in frames)
    unit = content.get("depth_unit_scale_factor", content.get("integer_depth_scale", 1e-3))
    scale = number(path, {"depth unit": unit}, "depth unit")
    scale *= number(path, content, "applied_scale", 1.0)
    cloud = content.get("ply_file_path")
    points = _ply_points(path.parent / cloud) if isinstance(cloud, str) else None
    return Survey(shots, points, scale)


def read_cameras(path: str | Path) -> Survey:
    """Our own cameras.json, as `write_cameras` writes it."""
    path = Path(path)
    content = _json_object(path)
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{path} has no frames", "a list `frames` of at least one", "export again")
    shots = []
    for frame in frames:
        if not isinstance(frame, dict) or not isinstance(frame.get("name"), str):
            raise UserError(f"a frame of {path} has no name", "name, c2w and K", "export again")
        name = frame["name"]
        height, width = (int(number(path, content, side)) for side in ("height", "width"))
        K = checked_matrix(path, name, frame.get("K"), (3, 3))
        depth_file = frame.get("depth_file")
        shots.append(
            Shot(
                file=name,
                lens=Lens(
                    size=checked_size(path, height, width),
                    focal=(K[0, 0] * width, K[1, 1] * height),
                    center=(K[0, 2] * width, K[1, 2] * height),
                ),
                c2w=checked_pose(path, name, checked_matrix(path, name, frame.get("c2w"), (4, 4))),
                depth_file=depth_file if isinstance(depth_file, str) else None,
                near=number(path, frame, "near"),
                far=number(path, frame, "far"),
            )
        )
    return Survey(tuple(shots), depth_scale=number(path, content, "depth_scale", 1e-3))


def write_cameras(
    path: str | Path,
    cameras: Cameras,
    names: Sequence[str],
    size: tuple[int, int],
    scale: float = 1.0,
    depth: DepthFiles | None = None,
) -> None:
    """The cameras of one scene (batch 1) as cameras.json.

    `size` is the (height, width) of their pictures; `scale` records by what the scene was
    multiplied before the network saw it (the cameras written are those of the user's world);
    `depth` where the depth maps of the pictures are.
    """
    files = [{}] * len(names) if depth is None else [{"depth_file": file} for file in depth.names]
    frames = [
        {
            "name": name,
            "c2w": cameras.c2w[0, i].tolist(),
            "K": cameras.K[0, i].tolist(),
            "near": float(cameras.near[0, i]),
            "far": float(cameras.far[0, i]),
            **file,
        }
        for i, (name, file) in enumerate(zip(names, files, strict=True))
    ]
    head = {
        "convention": "c2w: camera to world, OpenCV axes; K divided by (width, height)",
        "height": size[0],
        "width": size[1],
        "scale": scale,
    }
    head |= {} if depth is None else {"depth_scale": depth.scale}
    write_text(path, json.dumps(head | {"frames": frames}, indent=1) + "\n")


def _transforms_shot(path: Path, content: dict[str, Any], frame: Any) -> Shot:
    if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
        raise UserError(f"a frame of {path} has no file_path", "a photo's path", "export again")
    file = _with_suffix(path.parent, frame["file_path"])
    depth_file = frame.get("depth_file_path", frame.get("depth_path"))
    matrix = checked_matrix(path, file, frame.get("transform_matrix"), (4, 4))
    c2w = checked_pose(path, file, matrix) * np.array([1.0, -1.0, -1.0, 1.0])  # OpenGL -> OpenCV
    told = content | frame
    return Shot(
        file=file,
        lens=_transforms_lens(path, file, told),
        c2w=c2w,
        depth_file=depth_file if isinstance(depth_file, str) else None,
        near=number(path, told, "near") if "near" in told else None,
        far=number(path, told, "far") if "far" in told else None,
    )


def _transforms_lens(path: Path, file: str, told: dict[str, Any]) -> Lens:
    model = told.get("camera_model", "OPENCV")
    if model not in {known.name for known in LENS_MODELS.values()} or told.get("is_fisheye"):
        raise unknown_lens(path, "fisheye" if told.get("is_fisheye") else str(model))
    if "w" in told and "h" in told:
        size = checked_size(path, int(number(path, told, "h")), int(number(path, told, "w")))
    else:
        size = images.image_size(path.parent / file)
    height, width = size

    def focal(key: str, angle: str, side: int) -> float | None:
        if key in told:
            return number(path, told, key)
        if angle in told:
            return 0.5 * side / math.tan(0.5 * number(path, told, angle))
        return None

    fx = focal("fl_x", "camera_angle_x", width)
    fy = focal("fl_y", "camera_angle_y", height) or fx
    fx = fx or fy
    if fx is None or fy is None:
        raise UserError(
            f"{path} gives no focal length for {file}",
            "fl_x (and fl_y) in pixels, or camera_angle_x in radians",
            "export the intrinsics too",
        )
    lens = Lens(
        size=size,
        focal=(fx, fy),
        center=(number(path, told, "cx", width / 2), number(path, told, "cy", height / 2)),
        radial=tuple(number(path, told, f"k{i}", 0.0) for i in range(1, 7)),
        tangential=(number(path, told, "p1", 0.0), number(path, told, "p2", 0.0)),
    )
    return checked_lens(path, lens)


def _with_suffix(folder: Path, file: str) -> str:
    """The file as named; Blender's files name photos without ".png"."""
    if not Path(file).suffix and not (folder / file).is_file():
        return f"{file}.png"
    return file


def _ply_points(path: Path) -> np.ndarray | None:
    """The vertices of a point cloud file, None where there is none."""
    if not path.is_file():
        return None
    from plyfile import PlyData, PlyParseError

    try:
        vertex = PlyData.read(path)["vertex"]
        return np.stack([np.asarray(vertex[axis], np.float64) for axis in "xyz"], axis=1)
    except (PlyParseError, KeyError, ValueError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as a point cloud ({error})", "vertices x y z", "export again"
        ) from error


def read_json(path: Path) -> Any:
    """What a JSON file holds; raises UserError where there is none, or something else."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}", "a camera file", "check the path") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error})", "a camera file", "export again") from error


def _json_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object", "a camera file", "export again")
    return content


def number(path: Path, told: dict[str, Any], key: str, default: float | None = None) -> float:
    """The number at `key`; raises UserError for what is none, or not finite."""
    value = told.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{path} has {key}={value!r}", "a finite number", "export again")
    return float(value)


def checked_size(path: Path, height: int, width: int) -> tuple[int, int]:
    """(height, width) of a photo; raises UserError where no photo is of such a size."""
    if not (0 < height < _MAX_SIDE and 0 < width < _MAX_SIDE):
        raise UserError(
            f"{path} has photos of {height}x{width} pixels", "a sensible size", "export again"
        )
    return height, width


def checked_lens(path: Path, lens: Lens) -> Lens:
    """The lens; raises UserError where its numbers are none that a lens can have."""
    numbers = [*lens.focal, *lens.center, *lens.radial, *lens.tangential]
    if not all(map(math.isfinite, numbers)) or min(lens.focal) <= 0:
        raise UserError(
            f"{path} has a lens with focal lengths {lens.focal} and centre {lens.center}",
            "finite numbers and positive focal lengths",
            "export the cameras again",
        )
    return lens


def checked_matrix(path: Path, name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """What the file gives for `name` as float64 of `shape`; raises UserError for anything else."""
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != shape:
        got = "none" if value is None else f"shape {list(matrix.shape)}"
        raise UserError(
            f"{path} has a matrix of {got} for {name}",
            f"{' rows of '.join(map(str, shape))} numbers",
            "export the cameras again",
        )
    return matrix


def checked_pose(path: Path, name: str, motion: np.ndarray) -> np.ndarray:
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
    """What to raise for a pose that is no rigid motion."""
    return UserError(
        f"the pose of {name} in {path} {what}",
        "a rotation and a translation",
        "pose the photos again, or leave this one out",
    )


def unknown_lens(path: Path, name: str) -> UserError:
    """What to raise for a lens model that cannot be undistorted here."""
    known = ", ".join(model.name for model in LENS_MODELS.values())
    return UserError(
        f"{path} has a lens of model {name}",
        f"one of {known}",
        "undistort the photos first (`colmap image_undistorter`)",
    )
