"""Photographs as files: which of them a camera file means, and the order of their names."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from ..errors import UserError

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
PHOTO_SUFFIXES |= {".heic", ".heif", ".hif", ".avif"}


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts names as people count: frame_2 before frame_10."""
    parts = re.split(r"(\d+)", name)
    key = ((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part)
    return (*key, (-1, 0, name))  # frame_01 and frame_1 in an order that is always the same


def is_photo(path: Path) -> bool:
    """Whether a path is a file that is called like a photo, and not hidden.

    macOS leaves a hidden ._photo.jpg beside every photo on disks of other systems.
    """
    named = path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".")
    return named and path.is_file()


def names_count(names: Sequence[str]) -> bool:
    """Whether names differ in their numbers, as those of a capture do: each pattern has two names.

    "IMG_1.jpg", "IMG_2.jpg" do; "kitchen.jpg", "door.jpg", or hashes, do not.
    """
    patterns = {re.sub(r"\d+", "#", name) for name in names}
    return 2 * len(patterns) <= len(names) and all("#" in pattern for pattern in patterns)


def readable(name: str) -> str:
    """A name whose bytes are no UTF-8, as Python escapes them, read as Latin-1."""
    if not any("\udc80" <= c <= "\udcff" for c in name):
        return name
    return name.encode("utf-8", "surrogateescape").decode("latin-1")


def stem(file: str) -> str:
    """A photo's name whatever its format and folder; formats of cameras differ in both."""
    name = _name(file)
    return name.removesuffix(PurePosixPath(name).suffix) if _has_suffix(name) else name


def list_photos(folder: Path, start: str = "") -> list[Path]:
    """The photos in a folder whose names begin with `start`, in natural order; none without it."""
    found = _list(folder, deep=False) if folder.is_dir() else ()
    photos = [path for path in found if path.name.startswith(start)]
    return sorted(photos, key=lambda path: natural_key(path.name))


def photos_in(folder: Path, deep: bool = True) -> dict[str, Path]:
    """Photos of a folder, and of those below it if `deep`, by `stem`; the nearest to the top wins.

    Raises UserError where there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}", "a folder of photos", "check the path")
    found = sorted(_list(folder, deep), key=lambda path: (-len(path.parts), path))
    return {stem(path.name): path for path in found}


def find_photos(files: Sequence[str], place: Path, deep: bool = True) -> list[Path | None]:
    """The photos of a folder that a camera file calls `files`; None for those that are not there.

    All folders in it are searched, if `deep`, else those that `files` name. A file is meant by its
    exact path. Else, where only one photo fits, it is meant by a path that differs in what systems
    write differently (backslashes, case, Unicode forms, Latin-1, %20), by the end of its path
    (absolute paths of another machine, other folders), or by its name without suffix. A photo that
    several different files would mean so is none of them.
    """
    exact = [_exact(place, file) for file in files]
    if all(exact) or not place.is_dir():
        return exact
    paths = [path.relative_to(place).as_posix() for path in _list_named(files, place, deep)]
    by_path, by_name, by_stem = (_unique(paths, key) for key in (_plain, _name, stem))

    def search(file: str) -> Path | None:
        for name in _readings(file):
            hits = [by_path.get(tail) for tail in _tails(name)]
            hits += [by_name.get(_name(name)), by_stem.get(stem(name))]
            found = next(filter(None, hits), None)
            if found is not None:
                return place / found
        return None

    found = [path or search(file) for path, file in zip(exact, files, strict=True)]
    meant = Counter(path for path, _ in set(zip(found, map(_plain, files), strict=True)))
    return [
        path if path is None or path == same or meant[path] == 1 else None
        for path, same in zip(found, exact, strict=True)
    ]


def photo_beside(folder: Path, file: str) -> Path | None:
    """The photo that a file in `folder` calls `file`, with or without its suffix."""
    exact = _exact(folder, file)
    if exact is not None:
        return exact
    path = folder / PurePosixPath(_slashes(file))
    beside = find_photos([path.name], path.parent) if path.parent.is_dir() else [None]
    return beside[0]


def file_beside(folder: Path, file: str, alone: bool = False) -> Path | None:
    """The file that a camera file in `folder` calls `file`, None where it is not there.

    Backslashes are slashes, and folders of another machine are left out: all of them if `alone`,
    else the last one must be there.
    """
    tails = _tails(_slashes(file))
    named = [file, *(tails if alone or len(tails) == 1 else tails[:-1])]
    return next((found for tail in named if (found := _exact(folder, tail)) is not None), None)


def why_not_found(file: str, place: Path, there: Collection[str]) -> str:
    """Why `find_photos` gave no photo for `file`; `there` are the stems in `place`: `photos_in`."""
    if stem(file) in there:
        return f"it is not certain which photo in {place} is meant"
    return f"there is no such photo in {place}"


def _exact(place: Path, file: str) -> Path | None:
    try:
        return place / file if (place / file).is_file() else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def _list_named(files: Sequence[str], place: Path, deep: bool) -> list[Path]:
    """The photos of a folder in which `files` may be."""
    if deep:
        return sorted(_list(place, deep=True))
    named = {place, *(place / PurePosixPath(_slashes(file)).parent for file in files)}
    inside = [folder for folder in named if folder.is_dir() and folder.is_relative_to(place)]
    return sorted(path for folder in inside for path in _list(folder, deep=False))


def _list(folder: Path, deep: bool) -> Iterator[Path]:
    return filter(is_photo, folder.rglob("*") if deep else folder.iterdir())


def _unique(paths: list[str], key: Callable[[str], str]) -> dict[str, str]:
    """Paths by a key, those of which no other path has the same."""
    keys = [key(path) for path in paths]
    count = Counter(keys)
    return {k: path for k, path in zip(keys, paths, strict=True) if count[k] == 1}


def _readings(file: str) -> list[str]:
    """What a name may mean: as it is, unquoted, or as UTF-8 that was read as Latin-1."""
    found = [file, unquote(file)]
    with suppress(UnicodeDecodeError, UnicodeEncodeError):
        found.append(file.encode("latin-1").decode("utf-8"))
    return list(dict.fromkeys(map(_plain, found)))


def _tails(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]


def _slashes(path: str) -> str:
    return path.replace("\\", "/")


def _plain(path: str) -> str:
    """A path as every system would write it: slashes, small letters, composed characters."""
    path = readable(_slashes(path).removeprefix("./"))
    return unicodedata.normalize("NFC", path).casefold()


def _name(path: str) -> str:
    return _plain(path).rpartition("/")[2]


def _has_suffix(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in PHOTO_SUFFIXES
