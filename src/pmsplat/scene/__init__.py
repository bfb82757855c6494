"""Photographs of one place: what a path holds, opened as a scene, and its views for a network."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..errors import UserError
from ..io import images
from ..io.cameras import KINDS, find_cameras
from ..io.cameras.survey import LeftOut
from ..io.cameras.unread import refuse_unread
from ..io.chunks import check_ended
from ..io.photo_files import list_photos, natural_key
from ..progress import Track, silently
from ..types import Views
from .known import PhotoOptions, open_cameras, open_chunk
from .photos import Photo, Scene, chunk_scene, report_left_out
from .pose_networks import COLMAP, PoseRun, check_choice, pick_teacher, pose_again, pose_scene
from .posing import (
    VIDEO_SUFFIXES,
    pose_photos,
    pose_video,
    refuse_panoramas,
    spread_frames,
    why_lost,
)

__all__ = [
    "PhotoOptions",
    "Scene",
    "chunk_scene",
    "open_scene",
    "read_views",
    "report_left_out",
]

_PHOTOS = "images"  # the folder of bare photos, where they are not in the folder itself
_NO_PHOTO = re.compile(r"(^|[._-])(depth|mask|normals?|conf|confidence|alpha)$", re.IGNORECASE)

log = logging.getLogger(__name__)


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
    device: torch.device | str | None = None,
    track: Track = silently,
) -> Scene:
    """A scene from whatever holds one; no photo is decoded yet.

    `path` is one of these, tried in this order:

    * a camera file, or a folder that has one, as `find_cameras` finds it. Photos are where the file
      says, or in images/ beside it, or in images_2/, images_4/, images_8/;
    * `SPLIT/000000.torch`, a split folder, or either with `:KEY`: a scene of a chunk;
    * a video file, or a folder of bare photos (in it, or in images/): posed by pycolmap, in a
      process of its own, or by a network (`PhotoOptions.poses`). The result is kept in `cache`
      (default: the user's cache folder) and found again.

    Photos are in the order in which they were taken: that of their times, of the numbers in their
    names, or of the file. Those that are missing or damaged, or have no usable camera, are left out
    with a warning. `tell` gets a sentence before photos are posed, which takes long, and what is
    doubtful about the cameras of a network, which runs on `device` (None: CUDA where torch can use
    it). `track` follows pycolmap. Raises UserError for what is missing, damaged, or does not fit
    together.
    """
    chosen = options or PhotoOptions()
    check_choice(chosen.poses)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    run = PoseRun(_cache(cache), tell, torch.device(default if device is None else device), track)
    given = _open_given(path, chosen)
    if given is None:
        return _open_bare(Path(path), chosen, run)
    return given if chosen.poses in (None, "auto") else _pose_given(given, chosen, run)


def _open_given(path: str | Path, options: PhotoOptions) -> Scene | None:
    """The scene of a path that has cameras, with those; None for another path."""
    cameras = find_cameras(path)
    if cameras is not None and cameras.exists():
        return open_cameras(cameras, Path(path), options)
    return open_chunk(path, options.strict)


def _open_bare(path: Path, options: PhotoOptions, run: PoseRun) -> Scene:
    """The scene of a video or of photos without cameras, posed as the options say."""
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        teacher = pick_teacher(options.poses, run.tell)
        if teacher is None:
            return _open_posed(pose_video(path, run.cache, run.tell, run.track), path.stem, options)
        frames = list_photos(spread_frames(path, run.cache))
        return pose_scene(path.stem, [_bare(frame, options) for frame in frames], teacher, run)
    if not path.is_dir():
        raise UserError(
            f"there is no scene at {path}" if not path.exists() else f"{path} is no scene",
            "a camera file, a folder of photos, a video, or a chunk of scenes",
            "check the path",
        )
    if options.poses in (None, "auto"):
        refuse_unread(path)
    photos, left_out = _whole(_list_photos(path, options.folder))
    if not photos:
        check_ended(path)
        raise UserError(
            f"{path} has neither a camera file ({KINDS}) nor photos",
            "a folder of photos, posed or bare",
            "check the path, and the folder of photos if you named one",
        )
    report_left_out(left_out, len(photos), path, options.strict)
    name, teacher = path.resolve().name, pick_teacher(options.poses, run.tell)
    if teacher is None:
        posed = _open_posed(pose_photos(photos, run.cache, run.tell, run.track), name, options)
    else:
        refuse_panoramas(photos, run.tell)
        posed = pose_scene(name, [_bare(photo, options) for photo in photos], teacher, run)
    return replace(posed, left_out=(*posed.left_out, *left_out))


def _pose_given(given: Scene, options: PhotoOptions, run: PoseRun) -> Scene:
    """The scene of photos that have cameras, posed as the user chose nevertheless."""
    teacher = pick_teacher(options.poses, run.tell)
    if teacher is not None:
        again = pose_scene(given.name, given.photos, teacher, run)
        again = replace(again, order=given.order)
    else:
        paths = [photo.image for photo in given.photos if isinstance(photo.image, Path)]
        if len(paths) < len(given):
            raise UserError(
                f"`poses={COLMAP}` for {given.name}, whose photos are in a chunk",
                "photos in files",
                "write them to a folder first, or choose a network, such as `poses=da3`",
            )
        again = _open_posed(pose_photos(paths, run.cache, run.tell, run.track), given.name, options)
    again = replace(again, left_out=(*given.left_out, *again.left_out))
    return pose_again(given, again, run.tell)


def _bare(photo: Path, options: PhotoOptions) -> Photo:
    """A photo without a lens, as EXIF turns it."""
    return Photo(photo.name, photo, None, background=options.color)


def _whole(photos: Sequence[Path]) -> tuple[list[Path], list[LeftOut]]:
    """The photos that are whole, and those that are not."""
    whole, left_out = [], []
    for photo in photos:
        try:
            images.check_whole(photo)
            whole.append(photo)
        except UserError as error:
            left_out.append(LeftOut(photo.name, error.got))
    return whole, left_out


def _open_posed(folder: Path, name: str, options: PhotoOptions) -> Scene:
    """The scene of photos that pycolmap posed; `folder` is one of the cache."""
    scene = open_cameras(folder / "sparse" / "0", folder, replace(options, folder=None))
    given = {photo.name for photo in (folder / _PHOTOS).iterdir()}
    lost = sorted(given - set(scene.names), key=natural_key)
    why = why_lost(folder)
    left_out = [LeftOut(photo, why.get(photo, "pycolmap could not pose it")) for photo in lost]
    report_left_out(left_out, len(scene), name, options.strict)
    left_out = (*scene.left_out, *left_out)
    return replace(scene, name=name, left_out=left_out, poses=COLMAP)


def _list_photos(folder: Path, name: str | None) -> list[Path]:
    """The photos in a folder without cameras, in order; if there are none, those in its images/.

    Pictures that are called depth, mask or the like are none; a warning counts them.
    """
    places = [folder / name, Path(name)] if name else [folder, folder / _PHOTOS]
    for place in places:
        pictures = list_photos(place)
        photos = [path for path in pictures if not _NO_PHOTO.search(path.stem)]
        if len(photos) < len(pictures):
            others = len(pictures) - len(photos)
            log.warning("%d pictures in %s are called depth, mask, …: left out", others, place)
        if photos:
            return photos
    return []


def _cache(given: str | Path | None) -> Path:
    if given is not None:
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "pmsplat" / "posed"
