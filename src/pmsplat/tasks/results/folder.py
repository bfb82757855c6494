"""A folder of results that appears whole: made beside its place, moved there when it is done."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ...errors import UserError
from ...io.files import named

MARK = "metrics.json"  # a folder with this file is a result of ours
# What else a result of ours may hold, whichever verb made it: a new result takes it away
FOLDERS = (
    "alpha",
    "attributes",
    "color",
    "confidence",
    "depth",
    "depth_color",
    "depth_median",
    "normals",
    "render",
)
FILES = ("cameras.json", "gaussians.ply", "psnr.png", "sheet.png", "video.mp4")


@contextmanager
def make_whole(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder to write into; what is in it is moved to `path` when the block ends well.

    After an exception (Ctrl-C included) nothing is left of it and `path` is as it was. An earlier
    result, known by its file MARK, is replaced, whatever of ours made it; a folder that holds
    anything else is refused unless `overwrite`, and then what is foreign in it stays. Raises
    UserError. Errors and warnings in the block name `path`.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise UserError(f"{path} is a file", "a folder for the results", "choose another `output`")
    earlier = (target / MARK).is_file()
    foreign = target.is_dir() and any(target.iterdir()) and not earlier
    if foreign and not overwrite:
        raise UserError(
            f"{path} holds other files",
            "a new or empty folder, or an earlier result",
            "choose another `output`, or write among them with `overwrite=True`",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with named(staged, target):
            yield staged
        target.mkdir(exist_ok=True)
        for name in FOLDERS + FILES if earlier else ():
            if not (staged / name).exists():
                _remove(target / name)
        for entry in sorted(staged.iterdir(), key=lambda entry: entry.name == MARK):  # mark last
            place = target / entry.name
            if place.is_dir():
                _remove(place)
            os.replace(entry, place)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _remove(path: Path) -> None:
    """A file or folder of an earlier result, if it is there; of a link, the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def name_files(photos: list[str]) -> list[str]:
    """A file name without suffix for each photo, unique, from its own."""
    stems = [str(PurePosixPath(photo).with_suffix("")).replace("/", "_") for photo in photos]
    return [stem if stems.count(stem) == 1 else f"{stem}_{i}" for i, stem in enumerate(stems)]
