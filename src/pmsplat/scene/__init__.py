"""Photographs of one place: what a path holds, opened as a scene, and its views for a network."""

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from ..io.cameras import KINDS, find_cameras, read_cameras
from ..io.chunks import INDEX, read_chunk, read_split
from ..types import Views
from .photos import PHOTO_SUFFIXES, Scene, chunk_scene, find_photos, make_photo, make_scene
from .posing import VIDEO_SUFFIXES, pose_photos, pose_video

__all__ = ["Scene", "chunk_scene", "open_scene", "read_views"]

_PHOTOS = "images"  # the folder of photos beside cameras, where nobody names another

log = logging.getLogger(__name__)


def read_views(
    path: str | Path,
    size: tuple[int, int] | None = None,
    indices: Iterable[int] | None = None,
) -> Views:
    """Posed photographs as a network wants them, batch axis 1; `path` as for `open_scene`.

    `size` is the (height, width) to which photos are scaled and cut; None keeps theirs. `indices`
    choose photos; None takes all.
    """
    return open_scene(path).views(indices, size)


def open_scene(
    path: str | Path,
    images_folder: str | None = None,
    cache: str | Path | None = None,
    tell: Callable[[str], None] = log.info,
) -> Scene:
    """A scene from whatever holds one; no photo is decoded yet.

    `path` is one of these, tried in this order:

    * a camera file, or a folder that has one, as `find_cameras` finds it: transforms.json
      (nerfstudio, instant-ngp), our cameras.json, a COLMAP model, INRIA's cameras.json. Photos are
      where the file says, or in images/ beside it;
    * `SPLIT/000000.torch`, a split folder, or either with `:KEY`: a scene of a chunk;
    * a video file, or a folder of bare photos (in it, or in images/): posed by pycolmap, in a
      process of its own. The result is kept in `cache` (default: the user's cache folder) and found
      again.

    `images_folder` is where the photos are when not where the camera file says ("images_4").
    `tell` gets a sentence before photos are posed, which takes long. Raises UserError for
    everything that is missing, damaged, or does not fit together.
    """
    cameras = find_cameras(path)
    if cameras is not None and cameras.exists():
        return _open_cameras(cameras, Path(path), images_folder)
    chunk = _open_chunk(path)
    if chunk is not None:
        return chunk
    path = Path(path)
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return _open_posed(pose_video(path, _cache(cache), tell), path.stem)
    if not path.is_dir():
        raise UserError(
            f"there is no scene at {path}" if not path.exists() else f"{path} is no scene",
            "a camera file, a folder of photos, a video, or a chunk of scenes",
            "check the path",
        )
    photos = _list_photos(path, images_folder)
    if not photos:
        raise UserError(
            f"{path} has neither a camera file ({KINDS}) nor photos",
            "a folder of photos, posed or bare",
            "check the path, and the folder of photos if you named one",
        )
    return _open_posed(pose_photos(photos, _cache(cache), tell), path.resolve().name)


def _open_cameras(cameras: Path, path: Path, images_folder: str | None) -> Scene:
    """The scene of a camera file or model that was found in `path`, or is `path`."""
    survey = read_cameras(cameras)
    files = [shot.file for shot in survey.shots]
    folder = images_folder or _PHOTOS

    # Where photos are: a .json file names them as seen from itself, COLMAP as seen from images/.
    if cameras.is_dir():
        home = _home(cameras, path, folder)
        places = [home / folder, home]
    else:
        home = cameras.parent
        places = [home, home / folder]
        if images_folder is not None:
            files = [Path(file).name for file in files]
    if images_folder is not None:
        places = [home / images_folder]

    # Each photo with its lens, and its depth map if the file names one.
    photos = []
    for image, shot in zip(find_photos(files, home, places), survey.shots, strict=True):
        photo = make_photo(image, shot, survey)
        if not cameras.is_dir():
            photo = replace(photo, name=image.name)
        if shot.depth_file is not None:
            depth = home / shot.depth_file
            scale = 1.0 if depth.suffix == ".npy" else survey.depth_scale
            photo = replace(photo, depth_source=depth, depth_scale=scale)
        photos.append(photo)
    return make_scene(home.resolve().name, survey, photos)


def _open_posed(folder: Path, name: str) -> Scene:
    """The scene of photos that pycolmap posed; `folder` is one of the cache."""
    return replace(_open_cameras(folder / "sparse" / "0", folder, None), name=name)


def _home(model: Path, path: Path, folder: str) -> Path:
    """The folder whose subfolder `folder` has the photos of a COLMAP model found in `path`."""
    around = [model.absolute()]
    while around[-1].name in ("sparse", "colmap") or around[-1].name.isdecimal():
        around.append(around[-1].parent)
    homes = [path, *around]
    otherwise = around[-1] if path == model else path
    return next((home for home in homes if (home / folder).is_dir()), otherwise)


def _open_chunk(path: str | Path) -> Scene | None:
    """The scene of a chunk file or split folder, with or without ":KEY"; None for other paths."""
    place, _, key = str(path).rpartition(":")
    if not place or Path(path).exists():
        place, key = str(path), ""
    folder = Path(place)
    if folder.is_dir() and (folder / INDEX).is_file():
        split = read_split(folder)
        key = _choose(key, list(split.chunk_of), place)
        chunk = split.chunk(split.chunk_of[key])
    elif folder.suffix == ".torch":
        chunk = read_chunk(folder)
        key = _choose(key, [*chunk.scenes, *chunk.faults], place)
    else:
        return None
    if key in chunk.faults:
        raise UserError(
            f"scene {key!r} of {place} has {chunk.faults[key]}",
            "a whole scene, as datasets/README.md describes it",
            "choose another scene, or convert this one again",
        )
    return chunk_scene(chunk.scenes[key])


def _choose(key: str, keys: list[str], place: str) -> str:
    if key in keys:
        return key
    if not key and len(keys) == 1:
        return keys[0]
    some = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    raise UserError(
        f"{place} has no scene {key!r}" if key else f"{place} has {len(keys)} scenes",
        f"one of {some}",
        f"name it: {place}:{keys[0] if keys else 'KEY'}",
    )


def _list_photos(folder: Path, images_folder: str | None) -> list[Path]:
    """The photos in a folder without cameras, by name; if there are none, those in its images/."""
    places = [folder / images_folder] if images_folder else [folder, folder / _PHOTOS]
    for place in places:
        found = place.iterdir() if place.is_dir() else ()
        photos = sorted(path for path in found if path.suffix.lower() in PHOTO_SUFFIXES)
        if photos:
            return photos
    return []


def _cache(given: str | Path | None) -> Path:
    if given is not None:
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "pmsplat" / "posed"
