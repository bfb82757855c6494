"""Scenes whose cameras are known: those of a camera file with its photographs, or of a chunk."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..contracts import PoseTeacher
from ..errors import UserError, name_some
from ..io import images
from ..io.cameras import is_model, read_cameras
from ..io.cameras.survey import LeftOut, Shot, Survey
from ..io.chunks import INDEX, read_chunk, read_split
from ..io.photo_files import file_beside, find_photos, photos_in, readable, why_not_found
from .photos import Photo, Scene, chunk_scene, is_upright, make_scene, report_left_out, with_depth

_SMALLER = ("images_2", "images_4", "images_8")  # copies of the photos, as nerfstudio names them
_PHOTO_FOLDERS = ("images", "input", *_SMALLER)  # beside cameras
_MODEL_FOLDERS = ("sparse", "colmap", "distorted", "dense", "undistorted")  # around a COLMAP model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhotoOptions:
    """How the photos of a camera file are found, and what finds the cameras of photos without.

    `folder` is where they are, when not where the file says: a path, or a name beside the cameras
    ("images_4"). `strict`: a photo that cannot be used is an error; else it is left out and named.
    `background`: RGB in [0, 1] of what is behind transparent photos. `poses`: "colmap" (pycolmap),
    a network ("da3", "da3-small", "vggt", the dotted name of a module, or a `PoseTeacher`), which
    also replaces the cameras that there are; or "auto", the first network that can be had, else
    pycolmap. None: pycolmap. "auto" and None leave cameras that there are.
    """

    folder: str | None = None
    strict: bool = False
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    poses: str | PoseTeacher | None = None

    @property
    def color(self) -> images.Color:
        """The background in 0..255."""
        red, green, blue = (round(255 * part) for part in self.background)
        return red, green, blue


def open_cameras(cameras: Path, path: Path, options: PhotoOptions) -> Scene:
    """The scene of a camera file or model that was found in `path`, or is `path`."""
    survey = read_cameras(cameras, options.folder)
    homes = _homes(cameras, path)
    paths, place = _find_photos([shot.file for shot in survey.shots], homes, options.folder)
    fitted = _fit_photos(survey, paths, place, options)
    shots, photos = fitted.shots, fitted.photos
    report_left_out(fitted.left_out, len(photos), cameras, options.strict)
    files = [photo.image for photo in photos if isinstance(photo.image, Path)]
    if not is_model(cameras):
        names = _name_photos(files, place)
        photos = [replace(p, name=name) for p, name in zip(photos, names, strict=True)]
    if repeated := len(files) - len(set(files)):
        log.warning("%s names %d photos again, with another camera", cameras, repeated)
    if fitted.either:
        log.warning(
            "EXIF turns %d photos by half or mirrors them, and their cameras fit both ways: they "
            "are taken as they are stored, as the tools do that pose photos",
            fitted.either,
        )
    photos = _with_depths(photos, shots, homes[0], survey, options)
    survey = replace(survey, shots=tuple(shots), left_out=tuple(fitted.left_out))
    return make_scene(homes[-1].resolve().name, survey, photos)


@dataclass(frozen=True)
class _Fitted:
    """Photos with their shots, and those that cannot be used.

    `either` counts the photos whose lens fits them as EXIF turns them and as they are stored.
    """

    shots: list[Shot]
    photos: list[Photo]
    left_out: list[LeftOut]
    either: int


def _fit_photos(
    survey: Survey, paths: Sequence[Path | None], place: Path, options: PhotoOptions
) -> _Fitted:
    """The photo of each shot, where it is in `place`, whole, and of its lens."""
    there = photos_in(place) if None in paths else {}
    shots, photos, left_out, either = [], [], list(survey.left_out), 0
    for shot, image in zip(survey.shots, paths, strict=True):
        try:
            if image is None:
                raise UserError(why_not_found(shot.file, place, there))
            upright = is_upright(image, shot.lens)
            photo = Photo(
                shot.file, image, shot.lens, upright=upright is True, background=options.color
            )
            photo.check()
        except UserError as error:
            left_out.append(LeftOut(shot.file, error.got))
            continue
        either += upright is None
        shots.append(shot)
        photos.append(photo)
    return _Fitted(shots, photos, left_out, either)


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


def _name_photos(paths: Sequence[Path], place: Path) -> list[str]:
    """The names of photos; where two in different folders have one, as seen from `place`."""
    count = Counter(path.name for path in set(paths))
    return [
        readable(
            path.name if count[path.name] == 1 else Path(os.path.relpath(path, place)).as_posix()
        )
        for path in paths
    ]


def _with_depths(
    photos: Sequence[Photo],
    shots: Sequence[Shot],
    home: Path,
    survey: Survey,
    options: PhotoOptions,
) -> list[Photo]:
    """The photos, each with the depth map that its camera file names.

    A warning counts maps that are not there or are not read, an error with `strict`.
    """
    found, lost = [], []
    for photo, shot in zip(photos, shots, strict=True):
        if shot.depth_file is not None:
            path = file_beside(home, shot.depth_file)
            try:
                if path is None:
                    raise UserError(f"{shot.depth_file} is not there")
                photo = with_depth(photo, path, survey)
            except UserError as error:
                lost.append(error.got)
        found.append(photo)
    if lost:
        named = sum(shot.depth_file is not None for shot in shots)
        text = f"{len(lost)} of {named} depth maps cannot be used: {lost[0]}"
        if options.strict:
            raise UserError(text, "all of them, with `strict=True`", "leave `strict` out")
        log.warning("%s; those photos have none", text)
    if survey.depth_stated and not any(photo.has_counts for photo in found):
        found = [replace(photo, depth_scale=survey.depth_scale) for photo in found]
    return found


def open_chunk(path: str | Path, strict: bool) -> Scene | None:
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
    return chunk_scene(chunk.scenes[key], strict)


def _choose(key: str, keys: list[str], place: str) -> str:
    if key in keys:
        return key
    if not key and len(keys) == 1:
        return keys[0]
    raise UserError(
        f"{place} has no scene {key!r}" if key else f"{place} has {len(keys)} scenes",
        f"one of {name_some(keys)}",
        f"name it: {place}:{keys[0] if keys else 'KEY'}",
    )
