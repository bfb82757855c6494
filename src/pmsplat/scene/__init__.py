"""Photographs of one place: what a path holds, opened as a scene, and its views for a network."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UserError
from ..io.cameras import KINDS, find_cameras, is_model, read_cameras
from ..io.cameras.survey import LeftOut, Shot, Survey
from ..io.cameras.unread import refuse_unread
from ..io.chunks import INDEX, read_chunk, read_split
from ..io.photo_files import PHOTO_SUFFIXES, find_photos, natural_key, readable
from ..types import Views
from .photos import Photo, Scene, chunk_scene, is_upright, make_photo, make_scene
from .posing import VIDEO_SUFFIXES, pose_photos, pose_video, why_lost

__all__ = ["PhotoOptions", "Scene", "chunk_scene", "open_scene", "read_views"]

_PHOTOS = "images"  # the folder of bare photos, where they are not in the folder itself
_SMALLER = ("images_2", "images_4", "images_8")  # copies of the photos, as nerfstudio names them
_PHOTO_FOLDERS = ("images", "input", *_SMALLER)  # beside cameras
_MODEL_FOLDERS = ("sparse", "colmap", "distorted", "dense", "undistorted")  # around a COLMAP model
_NO_PHOTO = re.compile(r"(^|[._-])(depth|mask|normals?|conf|confidence|alpha)$", re.IGNORECASE)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhotoOptions:
    """How the photos of a camera file are found.

    `folder` is where they are, when not where the file says: a path, or a name beside the cameras
    ("images_4"). `strict`: a photo that cannot be used is an error; else it is left out and named.
    `background`: RGB in [0, 1] of what is behind transparent photos.
    """

    folder: str | None = None
    strict: bool = False
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)


def read_views(
    path: str | Path,
    size: tuple[int, int] | None = None,
    indices: Iterable[int] | None = None,
    options: PhotoOptions | None = None,
) -> Views:
    """Posed photographs as a network wants them, batch axis 1; `path` as for `open_scene`.

    `size` is the (height, width) to which photos are scaled and cut; None keeps theirs. `indices`
    choose photos, in capture order; None takes all.
    """
    return open_scene(path, options).views(indices, size)


def open_scene(
    path: str | Path,
    options: PhotoOptions | None = None,
    cache: str | Path | None = None,
    tell: Callable[[str], None] = log.info,
) -> Scene:
    """A scene from whatever holds one; no photo is decoded yet.

    `path` is one of these, tried in this order:

    * a camera file, or a folder that has one, as `find_cameras` finds it. Photos are where the file
      says, or in images/ beside it, or in images_2/, images_4/, images_8/;
    * `SPLIT/000000.torch`, a split folder, or either with `:KEY`: a scene of a chunk;
    * a video file, or a folder of bare photos (in it, or in images/): posed by pycolmap, in a
      process of its own. The result is kept in `cache` (default: the user's cache folder) and found
      again.

    Photos are in the order in which they were taken: that of their times, of the numbers in their
    names, or of the file. Those that are missing or damaged, or have no usable camera, are left out
    with a warning. `tell` gets a sentence before photos are posed, which takes long. Raises
    UserError for what is missing, damaged, or does not fit together.
    """
    chosen = options or PhotoOptions()
    cameras = find_cameras(path)
    if cameras is not None and cameras.exists():
        return _open_cameras(cameras, Path(path), chosen)
    chunk = _open_chunk(path)
    if chunk is not None:
        return chunk
    path = Path(path)
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return _open_posed(pose_video(path, _cache(cache), tell), path.stem, chosen)
    if not path.is_dir():
        raise UserError(
            f"there is no scene at {path}" if not path.exists() else f"{path} is no scene",
            "a camera file, a folder of photos, a video, or a chunk of scenes",
            "check the path",
        )
    refuse_unread(path)
    photos = _list_photos(path, chosen.folder)
    if not photos:
        raise UserError(
            f"{path} has neither a camera file ({KINDS}) nor photos",
            "a folder of photos, posed or bare",
            "check the path, and the folder of photos if you named one",
        )
    return _open_posed(pose_photos(photos, _cache(cache), tell), path.resolve().name, chosen)


def _open_cameras(cameras: Path, path: Path, options: PhotoOptions) -> Scene:
    """The scene of a camera file or model that was found in `path`, or is `path`."""
    survey = read_cameras(cameras, options.folder)
    homes = _homes(cameras, path)
    paths, place = _find_photos([shot.file for shot in survey.shots], homes, options.folder)

    # Each photo with its lens, and its depth map if the file names one.
    red, green, blue = (round(255 * part) for part in options.background)
    background = (red, green, blue)
    found, left_out, either = [], list(survey.left_out), 0
    for shot, image in zip(survey.shots, paths, strict=True):
        try:
            if image is None:
                raise UserError(f"there is no such photo in {place}")
            photo = replace(make_photo(image, shot), background=background)
            photo.check()
        except UserError as error:
            left_out.append(LeftOut(shot.file, error.got))
            continue
        either += is_upright(image, shot.lens) is None
        photo = photo if is_model(cameras) else replace(photo, name=readable(image.name))
        found.append((shot, _with_depth(photo, shot, homes[0], survey)))
    lost = [shot for shot, photo in found if shot.depth_file and photo.depth_source is None]
    if lost:
        text = f"{len(lost)} of {len(found)} depth maps are missing, the first {lost[0].depth_file}"
        if options.strict:
            raise UserError(text, "all of them, with `strict=True`", "leave `strict` out")
        log.warning("%s: those photos have none", text)
    _report(left_out, len(found), options.strict, cameras)
    if either:
        log.warning(
            "EXIF turns %d photos by half or mirrors them, and their cameras fit both ways: they "
            "are taken as they are stored, as the tools do that pose photos",
            either,
        )
    survey = replace(survey, shots=tuple(s for s, _ in found), left_out=tuple(left_out))
    return make_scene(homes[-1].resolve().name, survey, [photo for _, photo in found])


def _report(left_out: Sequence[LeftOut], used: int, strict: bool, source: object) -> None:
    """Warns of photos that are left out; UserError where none is used, or with `strict`."""
    if not left_out:
        return
    some = "; ".join(f"{photo.name}: {photo.reason}" for photo in left_out[:3])
    more = f"; and {len(left_out) - 3} more" if len(left_out) > 3 else ""
    text = f"{len(left_out)} of {used + len(left_out)} photos of {source} cannot be used: "
    text += some + more
    if not used:
        raise UserError(
            text, "photos beside their cameras", "check the paths, or name the folder of photos"
        )
    if strict:
        raise UserError(text, "all photos, with `strict=True`", "leave `strict` out to go without")
    log.warning("%s; the rest is used", text)


def _homes(cameras: Path, path: Path) -> list[Path]:
    """The folders beside or below which photos of cameras that were found in `path` may lie.

    Those of a COLMAP model from the inside out; the last is the folder of the whole scene.
    """
    if not is_model(cameras):
        return [cameras if cameras.is_dir() else cameras.parent]
    around = [cameras.absolute()]
    while path == cameras or around[-1] != path.absolute():
        place = around[-1]
        numbered = place.name.isdecimal() and place.parent.name in _MODEL_FOLDERS
        if place.name not in _MODEL_FOLDERS and not numbered:
            break
        around.append(place.parent)
    return around


def _find_photos(
    files: Sequence[str], homes: list[Path], folder: str | None
) -> tuple[list[Path | None], Path]:
    """The photos that a camera file calls `files`, all of one place.

    It is the first that has half as many as any other: where somebody deleted photos, those of the
    next place may be other pictures of the same names, smaller or with distortion. Raises UserError
    where there is no folder of the name that was given, or no photo at all.
    """
    if folder is not None:
        named = [place for place in (*(home / folder for home in homes), Path(folder))]
        places = [place for place in named if place.is_dir()][:1]
        if not places:
            raise UserError(
                f"there is no folder {named[0]}", "the folder of the photos", "check its path"
            )
        return find_photos(files, places[0]), places[0]
    folders = _PHOTO_FOLDERS
    if any(home.name == "distorted" for home in homes):  # images/ has photos without distortion
        folders = ("input", *folders)
    looked = [*(home / name for home in homes for name in folders), *homes]
    if len(homes) == 1:  # a camera file, which names photos as seen from itself
        looked = [*homes, *looked]
    tried: list[tuple[int, Path, list[Path | None]]] = []
    for place in looked:
        found = find_photos(files, place, deep=place not in homes) if place.is_dir() else []
        if any(found):
            tried.append((len(files) - found.count(None), place, found))
        if found and None not in found:
            break
    if not tried:
        raise UserError(
            f"none of the {len(files)} photos was found: looked for {files[0]} in "
            f"{', '.join(dict.fromkeys(str(place) for place in looked))}",
            "photos beside their cameras",
            "check the paths, or name the folder of the photos with `images`",
        )
    most = max(count for count, _, _ in tried)
    count, place, found = next(entry for entry in tried if 2 * entry[0] >= most)
    fewer, first, _ = tried[0]
    if first != place:
        log.warning(
            "%s has only %d of %d photos: those of %s are used, which has %d",
            *(first, fewer, len(files), place, count),
        )
    elif place.name in _SMALLER:
        log.warning("the photos are those of %s: there are none where the cameras name them", place)
    return found, place


def _with_depth(photo: Photo, shot: Shot, home: Path, survey: Survey) -> Photo:
    """The photo with the depth map that its camera file names, if that is there."""
    if shot.depth_file is None:
        return photo
    named = (home / file for file in (shot.depth_file, shot.depth_file.replace("\\", "/")))
    depth = next((path for path in named if path.is_file()), None)
    if depth is None:
        return photo
    scale = 1.0 if depth.suffix == ".npy" else survey.depth_scale
    return replace(photo, depth_source=depth, depth_scale=scale, no_depth=survey.no_depth)


def _open_posed(folder: Path, name: str, options: PhotoOptions) -> Scene:
    """The scene of photos that pycolmap posed; `folder` is one of the cache."""
    scene = _open_cameras(folder / "sparse" / "0", folder, replace(options, folder=None))
    given = {photo.name for photo in (folder / _PHOTOS).iterdir()}
    lost = sorted(given - set(scene.names), key=natural_key)
    why = why_lost(folder)
    left_out = [LeftOut(photo, why.get(photo, "pycolmap could not pose it")) for photo in lost]
    _report(left_out, len(scene), options.strict, name)
    return replace(scene, name=name, left_out=(*scene.left_out, *left_out))


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


def _list_photos(folder: Path, name: str | None) -> list[Path]:
    """The photos in a folder without cameras, in order; if there are none, those in its images/.

    Pictures that are called depth, mask or the like are none; a warning counts them.
    """
    places = [folder / name, Path(name)] if name else [folder, folder / _PHOTOS]
    for place in places:
        found = place.iterdir() if place.is_dir() else ()
        pictures = [path for path in found if path.suffix.lower() in PHOTO_SUFFIXES]
        photos = [path for path in pictures if not _NO_PHOTO.search(path.stem)]
        if len(photos) < len(pictures):
            others = len(pictures) - len(photos)
            log.warning("%d pictures in %s are called depth, mask, …: left out", others, place)
        if photos:
            return sorted(photos, key=lambda path: natural_key(path.name))
    return []


def _cache(given: str | Path | None) -> Path:
    if given is not None:
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "pmsplat" / "posed"
