"""Cameras from any file that holds them, recognized by content: the only judge of camera files.

One file a format: `transforms` (nerfstudio, instant-ngp, Blender; `dialects` knows their lenses),
`ours`, `colmap`, `inria` (and files of world-to-camera R and t), `llff`, `re10k`, and folders of
poses: `polycam`, `record3d`, `arkitscenes`, `scannet`, `tum`, `replica`, `seven_scenes` (all of
these use `tables`). `survey` is what all of them give, `export` writes for other trainers.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from .order import in_capture_order, without_strays
from .survey import Survey, read_json

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

    `path` is a camera file, a file of a COLMAP model, or a folder. Of a folder, in this order: its
    transforms.json; its cameras.json, if it is ours; a COLMAP model, in the folder itself or in
    sparse/0, sparse or colmap/sparse/0; INRIA's cameras.json, which knows less of the same cameras
    than the model; poses_bounds.npy; transforms_train.json of a Blender set (a warning names its
    other splits); poses of a capture app or data set; RealEstate10K's text; a .json file of any
    name that holds cameras; transforms.json one folder deeper. A warning names those of the first
    five that are not taken. Raises UserError for several scenes.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_file():
        return _find_file(path)
    if suffix in (".json", ".r3d"):
        return path
    named = _find_named(path)
    if named is not None:
        return named
    folders = (kind.find for kind in _FOLDERS)
    finders = (_find_blender, *folders, re10k.find, _find_json, _find_deeper)
    return next((found for find in finders if (found := find(path)) is not None), None)


def _find_file(path: Path) -> Path | None:
    """The cameras of which a file is a part, None for a file that has none."""
    suffix = path.suffix.lower()
    if suffix in (".json", ".r3d") or path.name == llff.FILE:
        return path
    if path.stem in ("cameras", "images", "points3D") and is_model(path.parent):
        return path.parent
    if suffix == ".txt" and re10k.is_cameras(path):
        return path
    return record3d.find(path.parent) if path.name == "metadata" else None


def _find_named(folder: Path) -> Path | None:
    """The cameras of a folder that are known by their name; a warning where others go unused."""
    own, listed = folder / "transforms.json", folder / "cameras.json"
    model, rows = colmap.find_model(folder, quiet=own.is_file()), llff.find(folder)
    found = [own] if own.is_file() else []
    if listed.is_file() and (model is None or not inria.is_inria(listed)):
        found.append(listed)
    # nerfstudio keeps the model that its transforms.json was made of in colmap/
    if model is not None and not (found and model.is_relative_to(folder / "colmap")):
        found.append(model)
    found += [] if rows is None else [rows]
    if found:
        found += [path for name in _BLENDER if (path := folder / name).is_file()]
    if len(found) > 1:
        others = ", ".join(str(path.relative_to(folder)) or "." for path in found[1:])
        log.warning(
            "%s has several files of cameras: those of %s are taken, not those of %s; name the one "
            "that you want",
            folder,
            found[0].relative_to(folder),
            others,
        )
    return found[0] if found else None


def _find_json(folder: Path) -> Path | None:
    """The only .json file of a folder that holds cameras, whatever its name."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() == ".json" and path.is_file() and not path.name.startswith("."):
            try:
                known = _reader(read_json(path)) is not None
            except UserError as error:
                log.warning("not looked at for cameras: %s", error.got)
                continue
            found += [path] if known else []
    return _only(folder, found)


def _find_deeper(folder: Path) -> Path | None:
    """The only transforms.json one folder deeper, as DL3DV keeps it in nerfstudio/."""
    return _only(folder, sorted(folder.glob("*/transforms.json")))


def _only(folder: Path, found: list[Path]) -> Path | None:
    if len(found) > 1:
        raise UserError(
            f"{folder} has {len(found)} files of cameras ("
            + ", ".join(str(path.relative_to(folder)) for path in found[:3])
            + (", …)" if len(found) > 3 else ")"),
            "one",
            f"name it: {found[0]}",
        )
    if found:
        log.warning("the cameras are those of %s", found[0])
    return found[0] if found else None


def is_model(cameras: Path) -> bool:
    """Whether what `find_cameras` found is a COLMAP model, whose photos lie in images/."""
    return any((cameras / f"cameras{kind}").is_file() for kind in (".bin", ".txt"))


def read_cameras(path: str | Path, images_folder: str | None = None) -> Survey:
    """The cameras that `find_cameras` found, in capture order.

    Photographs need not be there, where the file names them.

    `images_folder` has the photos of formats that do not name them (LLFF, RealEstate10K). Raises
    UserError for what is missing, damaged, or of no format that is known.
    """
    return in_capture_order(without_strays(_read(Path(path), images_folder)))


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
    reader = inria.read if isinstance(content, list) else _reader(content)
    if reader is None:
        raise UserError(
            f"{path} holds no cameras that are known here",
            KINDS,
            "export the cameras as one of these",
        )
    return reader(path)


def _reader(content: Any) -> Callable[[Path], Survey] | None:
    """What reads the cameras in a JSON file of such content, None where it has none."""
    entries = content.get("frames") if isinstance(content, dict) else content
    listed = entries if isinstance(entries, list) else []
    first = next((entry for entry in listed if isinstance(entry, dict)), {})
    if isinstance(content, list):
        return inria.read if {"position", "rotation"} <= set(first) else None
    if "c2w" in first:
        return ours.read
    if "R" in first and "t" in first:
        return inria.read_world_to_camera
    return transforms.read if {"file_path", "transform_matrix"} & set(first) else None
