"""Cameras from any file that holds them, recognized by content: the only judge of camera files.

One file a format: `transforms` (nerfstudio, instant-ngp, Blender; `dialects` knows their lenses),
`ours`, `colmap`, `inria` (and files of world-to-camera R and t), `llff`, `re10k`, and folders of
poses: `polycam`, `record3d`, `arkitscenes`, `scannet`, `tum`, `replica`, `seven_scenes` (all of
these use `tables`). `survey` is what all of them give, `export` writes for other trainers.
"""

import logging
from pathlib import Path

from ...errors import UserError
from . import (
    arkitscenes,
    colmap,
    inria,
    llff,
    ours,
    polycam,
    re10k,
    record3d,
    replica,
    scannet,
    seven_scenes,
    transforms,
    tum,
)
from .survey import Survey, in_capture_order, read_json

KINDS = (
    "transforms.json, cameras.json (ours or INRIA's), a COLMAP model, poses_bounds.npy, "
    "RealEstate10K's text, or poses as Polycam, Record3D, ARKitScenes, ScanNet, TUM, Replica and "
    "7-Scenes have them"
)

_FOLDERS = (polycam, record3d, arkitscenes, scannet, tum, replica, seven_scenes)
_BLENDER = tuple(f"transforms_{split}.json" for split in ("train", "val", "test"))

log = logging.getLogger(__name__)


def find_cameras(path: str | Path) -> Path | None:
    """The file or folder in which `read_cameras` finds cameras; None where `path` has none.

    `path` is a camera file, or a folder. Of a folder, in this order: its transforms.json; its
    cameras.json, if it is ours; a COLMAP model, in the folder itself or in sparse/0, sparse or
    colmap/sparse/0; INRIA's cameras.json, which knows less of the same cameras than the model;
    poses_bounds.npy; transforms_train.json of a Blender set (a warning names its other splits);
    poses of a capture app or data set; RealEstate10K's text. Raises UserError for several scenes.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (".json", ".r3d"):
        return path
    if path.is_file():
        known = path.name == llff.FILE or (suffix == ".txt" and re10k.is_cameras(path))
        return path if known else record3d.find(path.parent) if path.name == "metadata" else None
    if (path / "transforms.json").is_file():
        return path / "transforms.json"
    listed, model = path / "cameras.json", colmap.find_model(path)
    if listed.is_file() and (model is None or not inria.is_inria(listed)):
        return listed
    if model is not None:
        return model
    finders = (llff.find, _find_blender, *(kind.find for kind in _FOLDERS), re10k.find)
    return next((found for find in finders if (found := find(path)) is not None), None)


def is_model(cameras: Path) -> bool:
    """Whether what `find_cameras` found is a COLMAP model, whose photos lie in images/."""
    return any((cameras / f"cameras{kind}").is_file() for kind in (".bin", ".txt"))


def read_cameras(path: str | Path, images_folder: str | None = None) -> Survey:
    """The cameras that `find_cameras` found, in capture order.

    Photographs need not be there, where the file names them.

    `images_folder` has the photos of formats that do not name them (LLFF, RealEstate10K). Raises
    UserError for what is missing, damaged, or of no format that is known.
    """
    return in_capture_order(_read(Path(path), images_folder))


def _read(path: Path, images_folder: str | None) -> Survey:
    if path.is_dir():
        places = () if is_model(path) else ((kind, kind.find(path)) for kind in _FOLDERS)
        found = next(((kind, place) for kind, place in places if place is not None), None)
        return colmap.read(path) if found is None else found[0].read(found[1])
    readers = {".npy": llff.read, ".txt": re10k.read}
    if path.suffix.lower() in readers:
        return readers[path.suffix.lower()](path, images_folder)
    if path.suffix.lower() == ".r3d":
        raise record3d.refuse_archive(path)
    return _read_json(path)


def _find_blender(folder: Path) -> Path | None:
    """The first split of a Blender set; a warning names the others."""
    splits = [folder / name for name in _BLENDER if (folder / name).is_file()]
    if len(splits) > 1:
        others = ", ".join(path.name for path in splits[1:])
        log.warning(
            "%s: the photos of %s; those of %s are left out", folder, splits[0].name, others
        )
    return splits[0] if splits else None


def _read_json(path: Path) -> Survey:
    content = read_json(path)
    if isinstance(content, list):
        return inria.read(path)
    frames = content.get("frames") if isinstance(content, dict) else None
    first = frames[0] if isinstance(frames, list) and frames else None
    if isinstance(first, dict):
        if "c2w" in first:
            return ours.read(path)
        if "R" in first and "t" in first:
            return inria.read_world_to_camera(path)
        if {"file_path", "transform_matrix"} & set(first):
            return transforms.read(path)
    raise UserError(
        f"{path} holds no cameras that are known here", KINDS, "export the cameras as one of these"
    )
