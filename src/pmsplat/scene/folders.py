"""The scenes in a folder of many, as data sets are downloaded."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ..errors import UserError
from ..io.cameras import find_cameras
from ..io.chunks import INDEX, read_split
from ..io.photo_files import list_photos
from .posing import VIDEO_SUFFIXES

_DEEPEST = 4  # folders below the one that is searched
_PHOTOS = ("images", "frames", "rgb", "input", "color", "depth", "videos")  # of a scene, no scene
_DEEPER = "nerfstudio"  # in which DL3DV keeps the cameras and photographs of a scene


@dataclass(frozen=True)
class FoundScene:
    """A scene: its key, what `open_scene` takes, and whether it has cameras."""

    key: str
    path: str
    posed: bool


def is_scene(path: Path) -> bool:
    """Whether a path holds one scene: a file, cameras, photographs, or a split of one scene.

    Cameras in a folder below count where there is one such folder, as `open_scene` takes them;
    photographs beside folders that have cameras are none. A path that is not there is left to
    `open_scene`, which says so.
    """
    if not path.is_dir():
        return True
    if (path / INDEX).is_file():
        return len(read_split(path).chunk_of) == 1
    if _has_cameras(path, deeper=_DEEPER):
        return True
    posed = len(list(islice((scene for scene in _search(path, 0) if scene.posed), 2)))
    return posed == 1 if _has_cameras(path) else posed == 0 and _has_photos(path)


def find_scenes(folder: Path) -> list[FoundScene]:
    """All scenes in a folder and those below it; what is in a scene is not looked into.

    A scene is a folder with cameras or photographs, or with nothing at all, so that it can be named
    as empty; a camera text of RealEstate10K; a video; a scene of a split of chunks. Its key is the
    name of its folder or file, with the folders around it where two have the same name. Folders of
    photographs beside cameras (images, images_4, frames, …) are none.
    """
    found = sorted(_search(folder, 0), key=lambda scene: scene.path)
    count = Counter(scene.key for scene in found)
    return [scene if count[scene.key] == 1 else _full(scene, folder) for scene in found]


def _full(scene: FoundScene, folder: Path) -> FoundScene:
    """The same with a key that names the folders around it."""
    around = Path(scene.path).relative_to(folder).parent / scene.key
    return FoundScene(around.as_posix(), scene.path, scene.posed)


def _search(folder: Path, depth: int) -> Iterator[FoundScene]:
    if (folder / INDEX).is_file():
        yield from (FoundScene(key, f"{folder}:{key}", True) for key in _keys(folder))
        return
    texts = [path for path in sorted(folder.glob("*.txt")) if find_cameras(path) == path]
    if len(texts) != 1 and texts:
        yield from (FoundScene(path.stem, str(path), True) for path in texts)
        return
    posed = _has_cameras(folder, deeper=_DEEPER)
    if depth and (posed or _has_photos(folder)):
        yield FoundScene(folder.name, str(folder), posed)
        return
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    folders = [path for path in inside if path.is_dir() and not _is_photos(path)]
    videos = [path for path in inside if path.suffix.lower() in VIDEO_SUFFIXES]
    yield from (FoundScene(path.stem, str(path), False) for path in videos)
    if depth < _DEEPEST:
        for path in folders:
            yield from _search(path, depth + 1)
    if depth and not folders and not videos:
        yield FoundScene(folder.name, str(folder), False)


def _keys(folder: Path) -> list[str]:
    return list(read_split(folder).chunk_of)


def _has_cameras(folder: Path, deeper: str = "*") -> bool:
    """Whether a folder has cameras of one scene, in it or in one folder of it of such a name."""
    with suppress(UserError):  # cameras of several scenes, which are found one by one
        cameras = find_cameras(folder)
        if cameras is None or cameras.name != "transforms.json" or cameras.parent == folder:
            return cameras is not None
        return cameras.parent.match(deeper)
    return False


def _has_photos(folder: Path) -> bool:
    """Whether there are photographs, in the folder or in one of those that scenes keep them in."""
    homes = [home for home in (folder, folder / _DEEPER) if home.is_dir()]
    inside = [path for home in homes for path in home.iterdir() if _is_photos(path)]
    return any(list_photos(place) for place in (*homes, *inside))


def _is_photos(folder: Path) -> bool:
    return folder.name in _PHOTOS or folder.name.startswith("images_")
