"""Photographs of one place: what a path holds, opened as a scene, and its views for a network."""

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError
from ..io import images
from ..io.cameras import colmap, ours, transforms
from ..io.cameras.survey import Lens, Shot, Survey
from ..io.chunks import INDEX, ChunkScene, read_chunk, read_split
from ..types import Views
from .photos import Photo, PhotoScene, surveyed
from .posing import PHOTO_SUFFIXES, VIDEO_SUFFIXES, pose_photos, pose_video

_PUBLISHED_RANGE = (0.5, 100.0)  # of RealEstate10K's unit, for chunk scenes that carry none
_CAMERA_FILES = "transforms.json, cameras.json or sparse/0"


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
    path: str | Path, images_folder: str | None = None, cache: str | Path | None = None
) -> PhotoScene:
    """A scene from whatever holds one; no photo is decoded yet.

    * a folder with transforms.json (nerfstudio, instant-ngp), our cameras.json, or a COLMAP model
      in sparse/0 with its photos in images/;
    * `SPLIT/000000.torch`, a split folder, or either with `:KEY`: a scene of a chunk;
    * a video file, or a folder of bare photos: posed by pycolmap, in a process of its own. The
      result is kept in `cache` (default: the user's cache folder) and found again.

    `images_folder` is where the photos are when not where the camera file says ("images_4").
    Raises UserError for everything that is missing, damaged, or does not fit together.
    """
    chunk = _as_chunk(path)
    if chunk is not None:
        return chunk
    path = Path(path)
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return _colmap(pose_video(path, _cache(cache)), path.stem, None)
    if path.is_file() and path.suffix == ".json":
        return _json_scene(path, images_folder)
    if not path.is_dir():
        raise UserError(
            f"there is no scene at {path}" if not path.exists() else f"{path} is no scene",
            "a folder of photos, a video, or a chunk of scenes",
            "check the path",
        )
    for name in ("transforms.json", "cameras.json"):
        if (path / name).is_file():
            return _json_scene(path / name, images_folder)
    if colmap.find_model(path) is not None:
        return _colmap(path, path.resolve().name, images_folder)
    photos = _photos_in(path, images_folder)
    if not photos:
        raise UserError(
            f"{path} has neither a camera file ({_CAMERA_FILES}) nor photos",
            "a folder of photos, posed or bare",
            "check the path",
        )
    return _colmap(pose_photos(photos, _cache(cache)), path.resolve().name, None)


def chunk_scene(scene: ChunkScene) -> PhotoScene:
    """A scene of a chunk as photographs."""
    photos, shots = [], []
    for i in range(len(scene)):
        name, image = f"{i:06d}", scene.images[i].numpy().tobytes()
        height, width = images.image_size(image)
        K = scene.K[i].double().numpy()
        lens = Lens(
            size=(height, width),
            focal=(K[0, 0] * width, K[1, 1] * height),
            center=(K[0, 2] * width, K[1, 2] * height),
        )
        depth = None if scene.depths is None else scene.depths[i].numpy().tobytes()
        photos.append(Photo(name, image, lens, depth, scene.depth_scale))
        near, far = _PUBLISHED_RANGE
        if scene.near is not None and scene.far is not None:
            near, far = float(scene.near[i]), float(scene.far[i])
        c2w = scene.c2w[i].double().numpy()
        shots.append(Shot(name, lens, c2w, near=near, far=far))
    return surveyed(scene.key, Survey(tuple(shots)), photos)


def _as_chunk(path: str | Path) -> PhotoScene | None:
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
            "finite, rigid poses",
            "choose another scene",
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


def _json_scene(path: Path, images_folder: str | None) -> PhotoScene:
    survey = (ours if path.name == "cameras.json" else transforms).read(path)
    photos = []
    for shot in survey.shots:
        image = _photo_path(path.parent, shot.file, images_folder)
        depth = path.parent / shot.depth_file if shot.depth_file else None
        scale = survey.depth_scale
        if depth is not None and depth.suffix == ".npy":
            scale = 1.0
        turned = _turned(image, shot.lens)
        photos.append(Photo(image.name, image, shot.lens, depth, scale, upright=not turned))
    return surveyed(path.resolve().parent.name, survey, photos)


def _colmap(folder: Path, name: str, images_folder: str | None) -> PhotoScene:
    model = colmap.find_model(folder)
    assert model is not None
    survey = colmap.read(model)
    files = [folder / (images_folder or "images") / shot.file for shot in survey.shots]
    photos = [  # COLMAP looks at pixels as they are stored, whatever EXIF says
        Photo(shot.file, file, shot.lens, upright=False)
        for shot, file in zip(survey.shots, files, strict=True)
    ]
    return surveyed(name, survey, photos)


def _photo_path(folder: Path, file: str, images_folder: str | None) -> Path:
    """Where a photo is; cameras.json names files that may be beside it or in images/."""
    if images_folder is not None:
        return folder / images_folder / Path(file).name
    beside, within = folder / file, folder / "images" / file
    return within if within.is_file() and not beside.is_file() else beside


def _turned(image: Path, lens: Lens) -> bool:
    """Whether the lens belongs to the pixels as stored, and EXIF would turn them."""
    upright, stored = images.image_size(image), images.image_size(image, upright=False)
    landscape = lens.size[1] > lens.size[0]
    return upright != stored and landscape == (stored[1] > stored[0])


def _photos_in(folder: Path, images_folder: str | None) -> list[Path]:
    places = [folder / images_folder] if images_folder else [folder, folder / "images"]
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
