"""The lens in a transforms.json, and the fields of it that are left out, by who wrote the file.

* nerfstudio: https://docs.nerf.studio/quickstart/data_conventions.html. Its k1 to k4 are factors of
  r² to r⁸ (`radial_and_tangential_undistort` in nerfstudio/cameras/camera_utils.py, and issue
  3355), as Metashape's and RealityCapture's are, which it imports; OpenCV's k4 to k6 are divisors.
* instant-ngp: `read_lens` in src/nerf_loader.cu of https://github.com/NVlabs/instant-ngp.
* COLMAP's names of lens models: https://colmap.github.io/cameras.html.
"""

import logging
import math
from pathlib import Path
from typing import Any

from ...errors import UserError
from .. import images
from ..photo_files import photo_beside
from .survey import (
    LENS_MODELS,
    Lens,
    Projection,
    check_lens,
    check_size,
    read_number,
    say_once,
    unknown_lens,
)

_MODELS = {model.name: model for model in LENS_MODELS.values()}
_PERSPECTIVE = {"PERSPECTIVE"} | {
    name for name, model in _MODELS.items() if model.projection == "perspective"
}
_FLAGS = {  # of instant-ngp, whatever they hold
    "equirectangular": "EQUIRECTANGULAR",
    "latlong": "LATLONG",
    "orthographic": "ORTHOGRAPHIC",
    "ftheta_p0": "F-theta",
}
_DIFFERENT = 0.02  # of a focal length: more is no rounding
_PARAMS = ("k1", "k2", "k3", "k4", "p1", "p2")  # nerfstudio's `distortion_params`, in order

_READ = {
    *("frames", "file_path", "transform_matrix", "w", "h", "fl_x", "fl_y", "cx", "cy"),
    *("camera_angle_x", "camera_angle_y", "x_fov", "y_fov", "camera_model", "is_fisheye"),
    *("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "omega", "sx1", "sy1", "distortion_params"),
    *("depth_file_path", "depth_path", "depth_unit_scale_factor", "integer_depth_scale"),
    *("applied_transform", "applied_scale", "ply_file_path", "near", "far", "time", "timestamp"),
}
_NO_MATTER = {  # settings of other trainers, and notes: neither photos nor cameras depend on them
    *("aabb_scale", "aabb", "render_aabb", "scale", "offset", "up", "sharpness", "sharpen"),
    *("sharpness_discard_threshold", "importance_sampling", "n_extra_learnable_dims", "envmap"),
    *("from_na", "fix_premult", "enable_ray_loading", "white_transparent", "black_transparent"),
    *("driver_parameters", "orientation_override", "colmap_im_id", "rotation", "camera_id"),
    *("blur_score", "id", "name", "timestamp_us", "frame_id", "has_mask"),
    *("crop", "scene_box", "metadata", "version", "frame_count", "fps"),
}
_NAMED = {
    "mask_path": "masks",
    "rolling_shutter": "rolling shutter",
    "rolling_shutter_time": "rolling shutter",
    "transform_matrix_start": "motion during the exposure",
    "transform_matrix_end": "motion during the exposure",
    "fisheye_crop_radius": "the radius at which fisheyes are cut off",
    "train_filenames": "the split (all photos are opened)",
    "val_filenames": "the split (all photos are opened)",
    "test_filenames": "the split (all photos are opened)",
    "test_frames": "frames held out for tests",
    "rays_path": "rays of single pixels",
}
_NAMED |= {key: "distortion of higher order" for key in ("p3", "p4", "k7", "k8", "k9")}
_NAMED |= {key: "thin prisms" for key in ("s1", "s2", "s3", "s4")}
_NAMED |= {key: "affinity and skew" for key in ("b1", "b2", "skew")}

# The order of axes in which nerfstudio's importer of Metashape, and no other, turns the world.
_METASHAPE = [[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]]

log = logging.getLogger(__name__)


def read_lens(path: Path, file: str, fields: dict[str, Any]) -> Lens:
    """The lens of the photo `file`, from the fields of its frame laid over those of the file.

    Size: w and h, else the photo's own. Focal length: fl_x and fl_y in pixels, else
    camera_angle_x and camera_angle_y in radians, else x_fov and y_fov in degrees; one stands for
    both. Raises UserError for panoramas, orthographic pictures and unknown models.
    """
    model = _model(path, fields)
    if "w" in fields and "h" in fields:
        height, width = (int(read_number(path, fields, side)) for side in ("h", "w"))
        height, width = check_size(path, height, width)
    else:
        photo = photo_beside(path.parent, file)  # Blender's files name photos without suffix
        height, width = images.image_size(photo or path.parent / file)
    fx = _focal(path, fields, "x", width)
    fy = _focal(path, fields, "y", height) or fx
    fx = fx or fy
    if fx is None or fy is None:
        raise UserError(
            f"{path} gives no focal length for {file}",
            "fl_x (and fl_y) in pixels, or camera_angle_x in radians",
            "export the intrinsics too",
        )
    fields = fields | _distortion_params(path, fields)
    radial = tuple(read_number(path, fields, f"k{i}", 0.0) for i in range(1, 7))
    if model == "FOV":
        radial = (read_number(path, fields, "omega", 0.0), *(0.0,) * 5)
    lens = Lens(
        size=(height, width),
        focal=(fx, fy),
        center=(
            read_number(path, fields, "cx", width / 2),
            read_number(path, fields, "cy", height / 2),
        ),
        radial=radial,
        tangential=(read_number(path, fields, "p1", 0.0), read_number(path, fields, "p2", 0.0)),
        projection=_projection(model, radial),
        prism=(read_number(path, fields, "sx1", 0.0), read_number(path, fields, "sy1", 0.0)),
    )
    return check_lens(path, lens)


def name_left_out(path: Path, content: dict[str, Any], frames: list[Any]) -> None:
    """Logs, once for the file, what it says beside photographs and cameras and is not used.

    A coefficient that another tool would take for something else is named too.
    """
    whole = [content, *(frame for frame in frames if isinstance(frame, dict))]
    given = {key for fields in whole for key, value in fields.items() if _says(value)}
    left_out = sorted({f"{_NAMED[key]} ({key})" for key in given & set(_NAMED)})
    unknown = sorted(given - _READ - _NO_MATTER - set(_NAMED))
    if unknown:
        left_out.append(f"fields that are not known here ({', '.join(unknown)})")
    if left_out:
        log.warning("%s: its cameras are used, but not %s", path, "; ".join(left_out))
    model = str(content.get("camera_model", "OPENCV")).upper()
    divided = model == "FULL_OPENCV" or {"k5", "k6"} & given
    if "k4" in given and not divided and model in _PERSPECTIVE and not content.get("is_fisheye"):
        log.warning(
            "%s: k4 is taken for the factor of r^8, as nerfstudio, Metashape and RealityCapture "
            "mean it; name the camera_model FULL_OPENCV if it is OpenCV's divisor",
            path,
        )
    if {"p1", "p2"} & given and content.get("applied_transform") == _METASHAPE:
        log.warning(
            "%s seems to come from Metashape by nerfstudio, which until 2026 exchanged its p1 and "
            "p2 (nerfstudio issue 3714); they are taken as OpenCV's",
            path,
        )


def _says(value: Any) -> bool:
    """Whether a field says anything: 0, none, false, and lists of these do not."""
    if isinstance(value, list | tuple):
        return any(map(_says, value))
    if isinstance(value, str):
        try:
            return float(value) != 0
        except ValueError:
            return bool(value)
    return bool(value)


def _model(path: Path, fields: dict[str, Any]) -> str:
    """The lens model by COLMAP's name; raises UserError for one that is not known."""
    flags = [name for key, name in _FLAGS.items() if fields.get(key) not in (None, False)]
    if flags:
        raise unknown_lens(path, flags[0])
    model = str(fields.get("camera_model") or "OPENCV").upper()
    if model in _PERSPECTIVE:
        return "OPENCV_FISHEYE" if fields.get("is_fisheye") else model
    if model not in _MODELS:
        raise unknown_lens(path, model)
    return model


def _projection(model: str, radial: tuple[float, ...]) -> Projection:
    if model not in _PERSPECTIVE:
        return _MODELS[model].projection
    k4, k5, k6 = radial[3:]
    return "polynomial" if k4 and not (k5 or k6 or model == "FULL_OPENCV") else "perspective"


def _focal(path: Path, fields: dict[str, Any], axis: str, side: int) -> float | None:
    """Pixels, None where the fields do not say."""
    if f"fl_{axis}" in fields:
        focal = read_number(path, fields, f"fl_{axis}")
        other = _focal(
            path, {k: v for k, v in fields.items() if not k.startswith("fl_")}, axis, side
        )
        if other is not None and abs(focal / other - 1) > _DIFFERENT:
            say_once(
                f"{path} has fl_{axis}={focal:g}, but a field of view of which it would be "
                f"{other:g} in photos {side} pixels long: fl_{axis} is taken"
            )
        return focal
    if f"camera_angle_{axis}" in fields:
        angle = read_number(path, fields, f"camera_angle_{axis}")
    elif f"{axis}_fov" in fields:
        angle = math.radians(read_number(path, fields, f"{axis}_fov"))
    else:
        return None
    if not 0 < angle < math.pi:
        raise UserError(
            f"{path} has a field of view of {math.degrees(angle):g} degrees",
            "one between 0 and 180",
            "correct it in the file (camera_angle_x is in radians, x_fov in degrees)",
        )
    return 0.5 * side / math.tan(0.5 * angle)


def _distortion_params(path: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """nerfstudio's list by the names of its entries; it takes precedence over them, as there."""
    params = fields.get("distortion_params")
    if params is None:
        return {}
    if not isinstance(params, list) or len(params) != len(_PARAMS):
        raise UserError(
            f"{path} has distortion_params={params!r}",
            f"the six numbers {' '.join(_PARAMS)}",
            "correct it in the file, or undistort the photos first",
        )
    return dict(zip(_PARAMS, params, strict=True))
