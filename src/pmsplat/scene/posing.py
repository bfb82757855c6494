"""Cameras for bare photographs and videos, by pycolmap (structure from motion).

pycolmap runs in a process of its own, `python -m pmsplat.scene.posing`: encoding PNG with Pillow in
a process that has imported pycolmap can corrupt the heap. The result is a folder as COLMAP users
keep it, images/ and sparse/0, cached under a name made from the input files.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from ..errors import UserError, count_of
from ..io import images, video
from ..io.cameras.survey import unknown_lens
from ..progress import Track, silently

VIDEO_SUFFIXES = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"}

_VIDEO_FRAMES = 60
_FEWEST = 2
_FEWEST_SHARE = 0.5  # of the photos; with fewer registered, most would be lost
_FEW_DETAILS = 100  # features of a photo; sharp ones have thousands, and 30 must fit to pose it
_PAIR = 2147483647  # number of a pair in COLMAP: this times the one photo's, plus the other's
_TURNED = (5, 6)  # COLMAP's PANORAMIC, PLANAR_OR_PANORAMIC
_REASONS = "left_out.json"  # in a folder that was posed: why photos were not


@dataclass(frozen=True)
class Posed:
    """What became of all photos: `pairs` of them match, `turned` as by a mere rotation."""

    registered: int
    pairs: int
    turned: int


def pose_photos(
    photos: list[Path], cache: Path, tell: Callable[[str], None], track: Track = silently
) -> Path:
    """A COLMAP folder of the photos, turned upright, in `cache`; found again if it is there.

    `tell` gets a sentence before the work begins, `track` follows its steps: an exception that it
    raises ends pycolmap. Raises UserError for panoramas, where pycolmap is missing, or where it
    registers fewer than half of the photos.
    """
    refuse_panoramas(photos, tell)

    def collect(folder: Path) -> None:
        for photo in photos:
            copy_upright(photo, folder)

    return _pose(photos[0].parent, photos, cache, collect, tell, track)


def refuse_panoramas(photos: list[Path], tell: Callable[[str], None]) -> None:
    """Raises UserError for panoramas; `tell` gets a sentence about photos of their shape."""
    sizes = [images.image_size(photo) for photo in photos]
    spherical = next((photo for photo in photos if images.is_panorama(photo)), None)
    if spherical is not None:
        raise unknown_lens(spherical.parent, "equirectangular")
    if all(width == 2 * height for height, width in sizes):
        tell(
            f"The photos of {photos[0].parent} are twice as wide as high, as panoramas are. If "
            "they are some, they cannot be posed like this: cut them into perspective views."
        )


def copy_upright(photo: Path, folder: Path) -> None:
    """A copy for pycolmap: turned upright, and as JPEG where pycolmap would not read the pixels."""
    if images.is_common(photo) and not images.is_turned(photo):
        shutil.copyfile(photo, folder / photo.name)
        return
    name = photo.name if images.is_common(photo) else f"{photo.name}.jpg"
    (folder / name).write_bytes(images.encode_image(images.read_image(photo), "jpeg"))


def pose_video(
    path: Path, cache: Path, tell: Callable[[str], None], track: Track = silently
) -> Path:
    """A COLMAP folder of frames spread over a video, in `cache`; the rest as `pose_photos`."""

    def collect(folder: Path) -> None:
        _write_frames(path, folder)

    return _pose(path, [path], cache, collect, tell, track)


def spread_frames(path: Path, cache: Path) -> Path:
    """A folder of the same frames of a video, without cameras, in `cache`."""
    done = cache / f"{_fingerprint([path])}-frames"
    if not done.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".frames-", dir=cache) as working:
            folder = Path(working) / "frames"
            folder.mkdir()
            _write_frames(path, folder)
            if not done.exists():
                os.replace(folder, done)
    return done


def _write_frames(path: Path, folder: Path) -> None:
    for i, frame in enumerate(video.read_frames(path, _VIDEO_FRAMES)):
        (folder / f"{i:04d}.jpg").write_bytes(images.encode_image(frame, "jpeg"))


def _pose(
    place: Path,
    sources: list[Path],
    cache: Path,
    collect: Callable[[Path], None],
    tell: Callable[[str], None],
    track: Track,
) -> Path:
    """`collect` puts photos into a folder; messages call them by `place`."""
    done = cache / _fingerprint(sources)
    if (done / "sparse" / "0").is_dir():
        return done
    if importlib.util.find_spec("pycolmap") is None:
        raise UserError(
            f"{place} has no camera file, and pycolmap, which would pose it, is not installed",
            "transforms.json, cameras.json or a COLMAP model in sparse/0",
            'pose the photos, or install it: `pip install "pmsplat[pose]"`; or choose a network '
            "that finds cameras: `poses=da3`",
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".posing-", dir=cache) as working:
        folder = Path(working) / "scene"
        (folder / "images").mkdir(parents=True)
        collect(folder / "images")
        count = len(list((folder / "images").iterdir()))
        if count < _FEWEST:
            raise UserError(
                f"{count_of(count, 'photo')} of {place}, and no camera file",
                f"at least {_FEWEST}, which show the same from different places",
                "take more photos, a step apart",
            )
        tell(f"Posing {count} photos of {place} with pycolmap: this takes seconds to minutes.")
        posed = _run(folder, count, place.is_file(), track)
        if posed.registered < max(_FEWEST, _FEWEST_SHARE * count):
            raise _too_few(posed, count, place)
        if not done.exists():
            os.replace(folder, done)
    return done


def why_lost(folder: Path) -> dict[str, str]:
    """Why photos of a folder that was posed have no camera, by their names, as far as is known."""
    known = folder / _REASONS
    return json.loads(known.read_text()) if known.is_file() else {}


def _too_few(posed: Posed, count: int, place: Path) -> UserError:
    """The error for photos most of which could not be posed, with what they have in common."""
    why = ""
    remedy = "take photos that overlap by two thirds, sharp, of a scene that stands still"
    if posed.pairs == 0:
        why = ": no two of them show the same"
    elif 2 * posed.turned > posed.pairs:
        why = (
            f": {posed.turned} of {posed.pairs} pairs that match look as if the camera only turned "
            "on the spot, or as if the scene were flat"
        )
        remedy = "take photos from different places, a step apart: turning alone shows no depth"
    return UserError(
        f"pycolmap could pose {posed.registered} of {count} photos of {place}{why}",
        f"at least {max(_FEWEST, round(_FEWEST_SHARE * count))}",
        remedy,
    )


def _run(folder: Path, count: int, sequential: bool, track: Track) -> Posed:
    """Poses the `count` photos of FOLDER/images into FOLDER/sparse/0."""
    pairs = "sequential" if sequential else "all"
    command = [sys.executable, "-m", "pmsplat.scene.posing", str(folder), pairs]
    with tempfile.TemporaryFile("w+") as log:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            assert process.stdout is not None
            try:
                said = list(track(process.stdout, "finding the cameras", 2 + count))
            except BaseException:  # Ctrl-C too: pycolmap must not outlive us
                process.kill()
                raise
        log.seek(0)
        lines = (log.read().strip() or "".join(said).strip()).splitlines() or ["no message"]
    if process.returncode != 0:
        raise UserError(
            f"pycolmap failed on {folder / 'images'} ({lines[-1]})",
            "photos that it can read",
            "check that the photos are sharp and overlap, or pose them with another tool",
        )
    return Posed(**json.loads(said[-1]))


def _fingerprint(sources: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=10)
    for path in sources:
        status = path.stat()
        digest.update(f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def main(folder: Path, pairs: str) -> int:
    """What the process with pycolmap does: features, matches, mapping; keeps the largest model.

    Prints a line after each step, and at the end what became of the photos.
    """
    import pycolmap

    pycolmap.set_random_seed(0)
    database, photos = folder / "database.db", folder / "images"
    sizes = {images.image_size(photo) for photo in photos.iterdir()}
    one_camera = len(sizes) == 1
    pycolmap.extract_features(
        database,
        photos,
        camera_mode=pycolmap.CameraMode.SINGLE if one_camera else pycolmap.CameraMode.AUTO,
    )
    say = partial(print, flush=True)
    say("points found in every photo")
    (pycolmap.match_sequential if pairs == "sequential" else pycolmap.match_exhaustive)(database)
    say("pairs of photos matched")
    (folder / "models").mkdir()
    models = pycolmap.incremental_mapping(
        database,
        photos,
        folder / "models",
        next_image_callback=partial(say, "a photo placed"),
    )
    best = max(models.values(), key=lambda model: model.num_reg_images(), default=None)
    if best is not None:
        (folder / "sparse" / "0").mkdir(parents=True)
        best.write(folder / "sparse" / "0")
    shutil.rmtree(folder / "models")
    groups = [
        {model.images[number].name for number in model.reg_image_ids()}
        for model in sorted(models.values(), key=lambda model: model is not best)
    ]
    posed, why = explain(database, groups)
    (folder / _REASONS).write_text(json.dumps(why, indent=1))
    database.unlink()
    print(json.dumps(asdict(posed)))  # noqa: T201
    return 0


def explain(database: Path, groups: list[set[str]]) -> tuple[Posed, dict[str, str]]:
    """What became of the photos in a database of COLMAP, and why those that are not used are not.

    `groups`: names of the photos of each model, first those of the one that is used.
    https://colmap.github.io/database.html
    """
    with closing(sqlite3.connect(database)) as tables:
        photos = tables.execute("SELECT image_id, name FROM images").fetchall()
        details = dict(tables.execute("SELECT image_id, rows FROM keypoints"))
        pairs = tables.execute(
            "SELECT pair_id, config FROM two_view_geometries WHERE rows > 0"
        ).fetchall()
    friends = {number for pair, _ in pairs for number in divmod(pair, _PAIR)}
    used = groups[0] if groups else set()
    why = {}
    for number, name in photos:
        group = next((group for group in groups if name in group), set())
        if name in used:
            continue
        if (found := details.get(number, 0)) < _FEW_DETAILS:
            why[name] = f"it has hardly any detail: {found} points that can be matched"
        elif number not in friends:
            why[name] = "no other photo shows the same"
        elif group:
            why[name] = f"it is one of {len(group)} photos that fit each other, but not the rest"
        else:
            why[name] = "it shares too little with the other photos"
    turned = sum(config in _TURNED for _, config in pairs)
    return Posed(len(used), len(pairs), turned), why


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
