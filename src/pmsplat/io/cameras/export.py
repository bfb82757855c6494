"""Cameras and points as other trainers read them: sparse models of COLMAP, and transforms.json.

https://colmap.github.io/format.html and https://docs.nerf.studio/quickstart/data_conventions.html.
Photographs are named as seen from images/ beside the model. Lenses keep their distortion. Points
have colors, but no list of the photographs that observe them.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from plyfile import PlyData, PlyElement

from ...errors import UserError
from ...geometry import gaussian
from ..files import atomic, write_bytes, write_text
from .survey import LENS_MODELS, Lens, Shot

PHOTOS, CLOUD = "images/", "points.ply"

_POINT = np.dtype(
    [("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")]
)  # of points3D.bin, with an empty track


@dataclass(frozen=True)
class Points:
    """A point cloud: positions in the world of the cameras, colors in 0..255."""

    xyz: Float[np.ndarray, "point 3"]
    rgb: UInt8[np.ndarray, "point 3"]


def write_colmap(
    folder: str | Path, shots: Sequence[Shot], points: Points, text: bool = False
) -> None:
    """A sparse model in `folder`: cameras, images and points3D, all .bin, or all .txt with `text`.

    Photos of equal lens share one camera. Binary poses and lenses are float64 to the bit; text has
    as many digits as that needs. With `text`, raises UserError for photo names with spaces: COLMAP
    reads a name up to the first space.
    """
    spaced = [_name(shot) for shot in shots if text and len(_name(shot).split()) != 1]
    if spaced:
        raise UserError(
            f"a photo called {spaced[0]!r} in a COLMAP model as text",
            "names without spaces",
            "write the model as .bin",
        )
    lenses = list(dict.fromkeys(shot.lens for shot in shots))
    numbers = {lens: i + 1 for i, lens in enumerate(lenses)}
    write = _text_model if text else _binary_model
    write(Path(folder), numbers, shots, points)


def _binary_model(
    folder: Path, numbers: dict[Lens, int], shots: Sequence[Shot], points: Points
) -> None:
    # cameras.bin: one entry for each lens.
    data = struct.pack("<Q", len(numbers))
    for lens, number in numbers.items():
        model, values = _model(lens)
        data += struct.pack("<IiQQ", number, model, lens.size[1], lens.size[0])
        data += struct.pack(f"<{len(values)}d", *values)
    write_bytes(folder / "cameras.bin", data)

    # images.bin: poses, names, and no observations.
    rows = [struct.pack("<Q", len(shots))]
    for i, shot in enumerate(shots):
        rows.append(struct.pack("<I7dI", i + 1, *_world_to_camera(shot), numbers[shot.lens]))
        rows.append(_name(shot).encode("utf-8", "surrogateescape") + b"\0" + struct.pack("<Q", 0))
    write_bytes(folder / "images.bin", b"".join(rows))

    # points3D.bin: points with empty tracks.
    table = np.zeros(len(points.xyz), _POINT)
    table["id"] = np.arange(1, len(table) + 1)
    table["xyz"], table["rgb"] = points.xyz, points.rgb
    write_bytes(folder / "points3D.bin", struct.pack("<Q", len(table)) + table.tobytes())


def _text_model(
    folder: Path, numbers: dict[Lens, int], shots: Sequence[Shot], points: Points
) -> None:
    lines = ["# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"]
    for lens, number in numbers.items():
        model, values = _model(lens)
        row = [number, LENS_MODELS[model].name, lens.size[1], lens.size[0], *values]
        lines.append(" ".join(map(str, row)))
    write_text(folder / "cameras.txt", "\n".join(lines) + "\n")
    lines = ["# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME; then its points, none"]
    for i, shot in enumerate(shots):
        row = [i + 1, *_world_to_camera(shot), numbers[shot.lens], _name(shot)]
        lines += [" ".join(map(str, row)), ""]
    content = ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")
    write_bytes(folder / "images.txt", content)
    lines = ["# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[]"]
    for i, (xyz, rgb) in enumerate(zip(points.xyz.tolist(), points.rgb.tolist(), strict=True)):
        lines.append(" ".join(map(str, [i + 1, *xyz, *rgb, 0])))
    write_text(folder / "points3D.txt", "\n".join(lines) + "\n")


def write_transforms(path: str | Path, shots: Sequence[Shot], points: Points) -> None:
    """A transforms.json of nerfstudio with the points as points.ply beside it.

    Poses in OpenGL axes (x right, y up, z backward), intrinsics with every frame; near and far, an
    addition of ours that `transforms.read` knows, where the shots have them.
    """
    path = Path(path)
    # One frame for each shot, with its own intrinsics.
    frames = []
    for shot in shots:
        pose = shot.c2w * np.array([1.0, -1.0, -1.0, 1.0])  # OpenCV -> OpenGL
        frame: dict[str, Any] = {"file_path": PHOTOS + _name(shot)}
        frame |= {"transform_matrix": pose.tolist(), **_intrinsics(shot.lens)}
        frame |= {} if shot.near is None else {"near": shot.near}
        frame |= {} if shot.far is None else {"far": shot.far}
        frames.append(frame)

    # The points, in a file of their own; then the file that names it. A lens model that not all
    # frames share stands with each of them.
    models = [_dialect(shot.lens) for shot in shots]
    content = {"camera_model": models[0] if models else "OPENCV", "ply_file_path": CLOUD}
    if len(set(models)) > 1:
        frames = [
            {"camera_model": model} | frame for model, frame in zip(models, frames, strict=True)
        ]
    content |= {"frames": frames}
    names = ("x", "y", "z", "red", "green", "blue")
    table = np.empty(len(points.xyz), [(name, "<f4" if name in "xyz" else "u1") for name in names])
    for i in range(3):
        table[names[i]], table[names[3 + i]] = points.xyz[:, i], points.rgb[:, i]
    with atomic(path.parent / CLOUD) as temporary:
        PlyData([PlyElement.describe(table, "vertex")]).write(str(temporary))
    write_text(path, json.dumps(content, indent=1) + "\n")


def _dialect(lens: Lens) -> str:
    """The `camera_model` of a lens; OPENCV is also that of a polynomial, whose k4 is no divisor."""
    perspective = lens.projection == "perspective" and not any(lens.radial[3:])
    if perspective or lens.projection == "polynomial":
        return "OPENCV"
    return LENS_MODELS[_model_number(lens)].name


def _intrinsics(lens: Lens) -> dict[str, float]:
    (height, width), (fx, fy), (cx, cy) = lens.size, lens.focal, lens.center
    values = {"w": width, "h": height, "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy}
    if lens.projection == "fov":
        return values | {"omega": lens.radial[0]}
    values |= {f"k{i + 1}": value for i, value in enumerate(lens.radial) if value or i < 2}
    values |= {"p1": lens.tangential[0], "p2": lens.tangential[1]}
    return values | ({"sx1": lens.prism[0], "sy1": lens.prism[1]} if any(lens.prism) else {})


def _model(lens: Lens) -> tuple[int, list[float]]:
    """The simplest lens model that has all of the distortion, and its parameters."""
    if lens.projection == "polynomial" or (lens.projection == "fisheye" and any(lens.radial[4:])):
        raise UserError(
            "a lens that no model of COLMAP describes (polynomial of the 8th power or higher)",
            "one of " + ", ".join(model.name for model in LENS_MODELS.values()),
            "write transforms.json instead, or undistort the photos first",
        )
    number = _model_number(lens)
    named = {"fx": lens.focal[0], "fy": lens.focal[1], "cx": lens.center[0], "cy": lens.center[1]}
    named |= {f"k{i + 1}": value for i, value in enumerate(lens.radial)}
    named |= {"p1": lens.tangential[0], "p2": lens.tangential[1]}
    named |= {"sx1": lens.prism[0], "sy1": lens.prism[1]}
    return number, [float(named[name]) for name in LENS_MODELS[number].parameters]


def _model_number(lens: Lens) -> int:
    """COLMAP's number of the simplest lens model of this projection and kind of distortion."""
    if lens.projection == "fisheye":
        return 10 if any(lens.tangential) or any(lens.prism) else 5
    if lens.projection == "fov":
        return 7
    return 1 if lens.is_pinhole else 6 if any(lens.radial[2:]) else 4


def _world_to_camera(shot: Shot) -> list[float]:
    """qw qx qy qz tx ty tz of COLMAP."""
    rotation = shot.c2w[:3, :3].T
    quat = gaussian.rotation_to_quat(torch.from_numpy(np.ascontiguousarray(rotation)))
    return [*quat.tolist(), *(-rotation @ shot.c2w[:3, 3]).tolist()]


def _name(shot: Shot) -> str:
    """The photo's name as seen from images/."""
    return shot.file.removeprefix("./").removeprefix(PHOTOS)
