"""What a visitor brings, checked and laid into a folder that `open_scene` opens.

Nothing is trusted: neither the number and size of files, nor their names, nor what a .zip says of
itself, nor the paths in a camera file.
"""

import shutil
import stat
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from ...errors import UserError, count_of, name_some
from ...io.files import in_bytes
from ...io.images import image_size
from ...io.photo_files import PHOTO_SUFFIXES
from ...io.video import describe_video
from ...scene import Scene
from ...scene.posing import VIDEO_SUFFIXES
from ._limits import Limits

ARCHIVE = ".zip"
CAMERAS = {".json", ".txt", ".bin", ".ply", ".npy", ".npz", ".csv", ".log", ".traj", ".pincam"}
DEPTH = {".pgm"}
ACCEPTED = sorted(PHOTO_SUFFIXES | VIDEO_SUFFIXES | {ARCHIVE, ".json"})
BLOCK = 1 << 20

_WANTED = "photos of one place, or one video, or one .zip"
_INSIDE = PHOTO_SUFFIXES | VIDEO_SUFFIXES | CAMERAS | DEPTH


def describe_uploads(files: Sequence[Path], limits: Limits) -> str:
    """What was brought, in a few words; UserError where it cannot be taken."""
    kinds = _sort(files)
    size = sum(path.stat().st_size for path in files)
    _check_bytes(size, limits)
    if kinds.photos:
        _check_photos(kinds.photos, limits)
        cameras = " and their cameras" if kinds.cameras else ""
        return f"{count_of(len(kinds.photos), 'photo')}{cameras}, {in_bytes(size)}"
    if kinds.video is not None:
        return f"a video of {_check_video(kinds.video, limits):.0f} s, {in_bytes(size)}"
    return f"a .zip, {in_bytes(size)}"


def take_in(
    files: Sequence[Path], folder: Path, limits: Limits, tell: Callable[[str], None]
) -> Path:
    """Lays the files into a new folder; what `open_scene` opens, the folder or something in it.

    `tell` hears of files in a .zip that are of no use. Raises UserError for what is too much, too
    large or dangerous, as `Limits` says.
    """
    kinds = _sort(files)
    _check_bytes(sum(path.stat().st_size for path in files), limits)
    folder.mkdir(parents=True)
    if kinds.archive is not None:
        _unpack(kinds.archive, folder, limits, tell)
        source = _find_top(folder)
        _check_unpacked(source, limits)
        return source
    for path, name in zip(files, _name_apart(files), strict=True):
        shutil.copyfile(path, folder / name)
    describe_uploads(files, limits)
    return folder / kinds.video.name if kinds.video is not None else folder


def check_inside(scene: Scene, folder: Path) -> None:
    """Raises UserError for a scene whose camera file means photos outside of the folder."""
    top = folder.resolve()
    sources = [s for photo in scene.photos for s in (photo.image, photo.depth_source)]
    paths = [source for source in sources if isinstance(source, Path)]
    outside = [path for path in paths if not path.resolve().is_relative_to(top)]
    if outside:
        raise UserError(
            f"the camera file names {count_of(len(outside), 'file')} that you did not bring",
            "photos beside their cameras",
            "put the photos into the .zip, and their names into the camera file",
        )


class _Kinds:
    """Files by what they are; UserError for what does not go together."""

    def __init__(self, files: Sequence[Path]) -> None:
        def of(suffixes: Iterable[str]) -> list[Path]:
            return [path for path in files if path.suffix.lower() in suffixes]

        self.photos, self.cameras = of(PHOTO_SUFFIXES), of({".json"})
        videos, archives = of(VIDEO_SUFFIXES), of({ARCHIVE})
        self.video = videos[0] if videos else None
        self.archive = archives[0] if archives else None
        known = [*self.photos, *self.cameras, *videos, *archives]
        strange = [path.name for path in files if path not in known]
        if strange:
            raise UserError(f"{name_some(strange)}", _WANTED, "leave out other files")
        alone = videos + archives
        if alone and len(files) > 1:
            raise UserError(
                f"{count_of(len(files), 'file')}, one of which is {alone[0].name}",
                _WANTED,
                "bring a video or a .zip by itself",
            )


def _sort(files: Sequence[Path]) -> _Kinds:
    if not files:
        raise UserError("no photos", "two photos of one place or more", "drop them here first")
    if not all(path.is_file() for path in files):
        raise UserError("files that are no longer here", "files of this visit", "drop them again")
    kinds = _Kinds(files)
    if kinds.archive is None and kinds.video is None and len(kinds.photos) < 2:
        raise UserError(
            count_of(len(kinds.photos), "photo"),
            "two or more of one place, from places a step apart",
            "add photos",
        )
    return kinds


def _check_bytes(size: int, limits: Limits) -> None:
    if size > 1e6 * limits.megabytes:
        raise UserError(
            f"{in_bytes(size)} in all",
            f"at most {limits.megabytes} MB",
            "bring fewer or smaller files",
        )


def _check_photos(photos: Sequence[Path], limits: Limits) -> None:
    """Their number and size, by their headers; those without a header are left out later."""
    if len(photos) > limits.photos:
        raise UserError(
            f"{len(photos)} photos",
            f"at most {limits.photos}",
            "choose those that show most from places a step apart; `pmsplat predict` has no limit",
        )
    for photo in photos:
        with suppress(UserError):
            height, width = image_size(photo)
            if height * width > 1e6 * limits.megapixels:
                break
    else:
        return
    raise UserError(
        f"{photo.name} of {height * width / 1e6:.0f} megapixels",
        f"at most {limits.megapixels}",
        "make it smaller first: no more than 1000 pixels a side are used",
    )


def _check_video(path: Path, limits: Limits) -> float:
    """Its seconds."""
    found = describe_video(path)
    if found.seconds > limits.seconds:
        raise UserError(
            f"a video of {found.seconds:.0f} seconds",
            f"at most {limits.seconds}",
            "cut it to the part that shows the place once",
        )
    if found.size[0] * found.size[1] > 1e6 * limits.megapixels:
        raise UserError(
            f"a video of {found.size[1]} x {found.size[0]} pixels",
            f"at most {limits.megapixels} megapixels",
            "make it smaller first",
        )
    return found.seconds


def _name_apart(files: Sequence[Path]) -> list[str]:
    """Their names without folders, a number added where two have the same."""
    names: list[str] = []
    for path in files:
        name, number = path.name, 2
        while name.lower() in {other.lower() for other in names}:
            name, number = f"{path.stem}-{number}{path.suffix}", number + 1
        names.append(name)
    return names


def _unpack(archive: Path, folder: Path, limits: Limits, tell: Callable[[str], None]) -> None:
    """The useful files of a .zip, under names inside of the folder; their sizes are counted."""
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            _check_entries(entries, limits)
            wanted = [entry for entry in entries if _is_useful(entry.filename)]
            if strange := [e.filename for e in entries if not _is_useful(e.filename)]:
                tell(f"Not taken from the .zip: {name_some(strange)} ({len(strange)} in all).")
            room = round(1e6 * limits.megabytes)
            for entry in wanted:
                target = folder.joinpath(*PurePosixPath(entry.filename).parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as source, target.open("xb") as written:
                    while block := source.read(BLOCK):
                        room -= len(block)
                        if room < 0:
                            raise _make_size_error(limits)
                        written.write(block)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError) as error:
        raise _make_damage_error() from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(
            "a .zip that holds one name twice", "files with different names", "make it again"
        ) from error


def _check_entries(entries: Sequence[zipfile.ZipInfo], limits: Limits) -> None:
    """Raises UserError for too many, for too much, for links and for names that lead out of it."""
    if len(entries) > limits.files:
        raise UserError(
            f"a .zip of {len(entries)} files", f"at most {limits.files}", "put less into it"
        )
    if sum(entry.file_size for entry in entries) > 1e6 * limits.megabytes:
        raise _make_size_error(limits)
    for entry in entries:
        path = PurePosixPath(entry.filename)
        if (
            not path.parts
            or path.is_absolute()
            or ".." in path.parts
            or set(":\\") & set(str(path))
        ):
            raise UserError(
                f"a .zip with {entry.filename!r} in it",
                "names inside of its folder",
                "make it again from one folder",
            )
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise UserError(
                f"a .zip in which {entry.filename} is a link",
                "files",
                "put the file itself into it",
            )
        if entry.flag_bits & 1:
            raise UserError("a .zip with a password", "one without", "make it again without")


def _is_useful(name: str) -> bool:
    """Whether an entry may belong to a scene; what systems add of their own does not."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in _INSIDE and not hidden


def _find_top(folder: Path) -> Path:
    """The folder below, as long as there is nothing beside it; a video that is alone."""
    inside = list(folder.iterdir())
    if len(inside) != 1:
        return folder
    if inside[0].is_file():
        return inside[0] if inside[0].suffix.lower() in VIDEO_SUFFIXES else folder
    return _find_top(inside[0])


def _check_unpacked(source: Path, limits: Limits) -> None:
    if source.is_file():
        _check_video(source, limits)
        return
    files = [path for path in source.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES]
    if not files:
        raise UserError(
            "a .zip without photos", "photos, with or without cameras", "put them into it"
        )
    depth = [path for path in files if "depth" in path.parent.name.lower()]
    _check_photos([path for path in files if path not in depth], limits)


def _make_size_error(limits: Limits) -> UserError:
    return UserError(
        "a .zip that unpacks to more than it may",
        f"at most {limits.megabytes} MB",
        "put fewer or smaller files into it",
    )


def _make_damage_error() -> UserError:
    return UserError("a .zip that is damaged", "a whole one", "make it again")
