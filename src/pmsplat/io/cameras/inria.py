"""cameras.json of INRIA's 3D Gaussian Splatting, and files of world-to-camera R and t.

The first is `camera_to_JSON` in utils/camera_utils.py of
https://github.com/graphdeco-inria/gaussian-splatting, written beside a trained scene.
"""

from pathlib import Path
from typing import Any

from ...errors import UserError
from .survey import (
    Lens,
    Shot,
    Survey,
    check_lens,
    check_matrix,
    check_pose,
    check_size,
    frames_of,
    name_unknown,
    read_json,
    read_number,
    read_shots,
    text_at,
)
from .tables import inverse, make_motion

_ENTRY = {"id", "img_name", "width", "height", "position", "rotation", "fx", "fy", "cx", "cy"}
_HEAD = {"frames", "W", "H", "fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"}


def is_inria(path: Path) -> bool:
    """Whether a JSON file holds a list, as INRIA's does; ours and nerfstudio's hold an object."""
    with path.open("rb") as stream:
        return stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def read(path: str | Path) -> Survey:
    """A list of cameras, each with camera-to-world `rotation` and its center, `position`.

    Lenses are pinholes with the principal point in the middle of the photo as it is stored, if `cx`
    and `cy`, which INRIA does not write, do not say otherwise. The names of photos have no suffix.
    """
    path = Path(path)
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f"{path} has no cameras",
            "a list of at least one",
            "use the cameras.json that the training wrote beside its point_cloud/",
        )

    def read_shot(entry: Any) -> Shot:
        name = _name(path, entry, "img_name")
        rotation = check_matrix(path, name, entry.get("rotation"), (3, 3))
        pose = make_motion(rotation, check_matrix(path, name, entry.get("position"), (3,)))
        height, width = (int(read_number(path, entry, side)) for side in ("height", "width"))
        lens = Lens(
            size=check_size(path, height, width),
            focal=(read_number(path, entry, "fx"), read_number(path, entry, "fy")),
            center=(
                read_number(path, entry, "cx", width / 2),
                read_number(path, entry, "cy", height / 2),
            ),
        )
        return Shot(name, check_lens(path, lens), check_pose(path, name, pose))

    found = read_shots(entries, read_shot, text_at("img_name"))
    name_unknown(path, entries, _ENTRY)
    return Survey(found.shots, left_out=found.left_out)


def read_world_to_camera(path: str | Path) -> Survey:
    """A file of frames with `file`, `R` and `t` (world to camera, OpenCV axes) and one lens.

    The lens: W, H, fx, fy, cx, cy in pixels, and k1, k2, p1, p2 of OpenCV where it distorts.
    """
    path = Path(path)
    content, frames = frames_of(path)
    height, width = (int(read_number(path, content, side)) for side in ("H", "W"))
    numbers = {key: read_number(path, content, key) for key in ("fx", "fy", "cx", "cy")}
    distortion = {key: read_number(path, content, key, 0.0) for key in ("k1", "k2", "p1", "p2")}
    lens = Lens(
        size=check_size(path, height, width),
        focal=(numbers["fx"], numbers["fy"]),
        center=(numbers["cx"], numbers["cy"]),
        radial=(distortion["k1"], distortion["k2"], 0, 0, 0, 0),
        tangential=(distortion["p1"], distortion["p2"]),
    )
    check_lens(path, lens)

    def read_shot(frame: Any) -> Shot:
        name = _name(path, frame, "file")
        rotation = check_matrix(path, name, frame.get("R"), (3, 3))
        w2c = make_motion(rotation, check_matrix(path, name, frame.get("t"), (3,)))
        return Shot(name, lens, inverse(check_pose(path, name, w2c)))

    found = read_shots(frames, read_shot, text_at("file"))
    name_unknown(path, frames, {"file", "R", "t"})
    name_unknown(path, [content], _HEAD)
    return Survey(found.shots, left_out=found.left_out)


def _name(path: Path, entry: Any, key: str) -> str:
    """The photo's name in an entry of the file."""
    if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
        raise UserError(
            f"a camera of {path} has no {key}",
            "the name of its photo",
            f"add `{key}`, or leave the camera out",
        )
    return entry[key]
