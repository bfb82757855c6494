"""Opens the `meta.json` of a SOG scene and the images that it names; every access is checked.

Files are untrusted. They lie in one zip archive, or beside `meta.json`.
"""

import json
import logging
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ...errors import UserError
from ._archives import ZIP, Archive, opened_zip, shorten
from ._blocks import damage_error, is_plausible

log = logging.getLogger(__name__)

META, META_LIMIT = "meta.json", 1 << 20  # name, and most bytes: codebooks and names
PACKED = 20  # bytes of a Gaussian in the images
CODES = 256  # numbers of a codebook
UNREADABLE = (
    UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError,
    EOFError, IndexError, KeyError, struct.error,
)  # what Pillow raises on damaged files  # fmt: skip


@dataclass(frozen=True)
class Files:
    """The files of a scene; methods raise UserError for bad content.

    `size` is what all files take on disk: it bounds what they may claim.
    """

    path: Path
    size: int
    load: Callable[[str], bytes]
    tree: dict[str, Any]

    def damage_error(self, fault: str) -> UserError:
        return damage_error(self.path, fault)

    def get_version(self) -> int:
        version = self.tree.get("version", 1)
        if version not in (1, 2):
            raise self.damage_error(f"version {str(version)[:40]} of SOG; pmsplat reads 1 and 2")
        return version

    def get_part(self, name: str) -> dict[str, Any]:
        part = self.tree.get(name)
        if not isinstance(part, dict):
            raise self.damage_error(f"its {META} has no {name}")
        return part

    def check_count(self, value: Any, what: str) -> int:
        """Returns a number of the JSON that must be an integer >= 0."""
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.damage_error(f"its {META} has {str(value)[:40]} {what}")
        return value

    def get_numbers(self, name: str, key: str, count: int) -> np.ndarray:
        """Returns `count` finite numbers of a part; one number need not be in a list."""
        values = self.get_part(name).get(key)
        values = values if isinstance(values, list) else [values]
        if len(values) != count or not all(_is_number(value) for value in values):
            raise self.damage_error(f"{key} of {name} are not {count} finite numbers")
        return np.array(values, np.float64)

    def get_codebook(self, name: str) -> np.ndarray:
        """Returns the numbers of a part for each byte; those that the file has not are NaN.

        Early writers left out the first number (null): it is extrapolated as PlayCanvas does.
        """
        values = self.get_part(name).get("codebook")
        if not isinstance(values, list) or not 0 < len(values) <= CODES:
            raise self.damage_error(f"the codebook of {name} is not a list of 1 to {CODES}")
        if not all(_is_number(value) for value in values[1:]):
            raise self.damage_error(f"the codebook of {name} holds more than finite numbers")
        book = np.full(CODES, np.nan)
        if _is_number(values[0]):
            book[: len(values)] = values
        elif len(values) == CODES and values[0] is None:
            book[1:] = values[1:]
            book[0] = book[1] + (book[1] - book[-1]) / (CODES - 1)
            log.warning("%s: the first of the numbers for %s is missing", self.path, name)
        else:
            raise self.damage_error(f"the codebook of {name} begins with {str(values[0])[:40]}")
        return book

    def load_pixels(self, name: str, index: int = 0) -> np.ndarray:
        """Returns an image of a part as bytes [height, width, 4]."""
        files = self.get_part(name).get("files")
        if not isinstance(files, list) or len(files) <= index or not isinstance(files[index], str):
            raise self.damage_error(f"its {META} names no image {index} of {name}")
        return _decode_image(self.path, files[index], self.load(files[index]))

    def load_rows(self, name: str, count: int, index: int = 0) -> np.ndarray:
        """Returns the pixels of the Gaussians in an image, [gaussian, 4]."""
        pixels = self.load_pixels(name, index).reshape(-1, 4)
        if len(pixels) < count:
            raise self.damage_error(f"{count} Gaussians in {len(pixels)} pixels of {name}")
        return pixels[:count]


@contextmanager
def opened_files(path: str | Path) -> Iterator[Files]:
    """Yields the files of a .sog archive, or those beside a `meta.json`."""
    source = Path(path)
    if not source.is_file():
        raise UserError(f"no file {path}", "a .sog file or a meta.json of SOG", "check the path")
    with source.open("rb") as file:
        text = file.read(META_LIMIT)
    if not text.startswith(ZIP):
        size = sum(entry.stat().st_size for entry in source.parent.iterdir() if entry.is_file())
        yield Files(source, size, lambda name: _load_beside(source, name), _parse(source, text))
        return
    with opened_zip(source) as archive:
        folder = _find_folder(archive)
        tree = _parse(source, archive.load(folder + META))
        yield Files(source, source.stat().st_size, lambda name: archive.load(folder + name), tree)


def _find_folder(archive: Archive) -> str:
    """Returns the folder of the only meta.json in the archive, "" for its top."""
    found = [name[: -len(META)] for name in archive.entries if name.split("/")[-1] == META]
    if "" in found:
        return ""
    if len(found) == 1:
        return found[0]
    names = sorted(name for name in archive.entries if not name.endswith("/"))
    inside = ", ".join(name[:60] for name in names[:3]) + (" …" if len(names) > 3 else "")
    raise UserError(
        f"{archive.path} is a zip archive with {len(found)} files {META}, so no .sog ({inside})",
        f"a .sog archive, with one {META} and its images, or a file of Gaussians",
        "unpack the archive and pass the file of Gaussians in it",
    )


def _load_beside(source: Path, name: str) -> bytes:
    """Returns the bytes of a file in the folder of `source` or below."""
    folder = source.parent.resolve()
    try:
        place = (folder / name).resolve()
        if place.is_relative_to(folder) and place.is_file():
            return place.read_bytes()
    except (OSError, ValueError) as error:  # names that no file can have
        raise damage_error(source, f"there is no {name[:80]!r} beside it") from error
    raise damage_error(source, f"there is no {name[:80]!r} beside it")


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damage_error(path, f"its {META} cannot be read ({type(error).__name__})") from error
    if isinstance(tree, dict) and "lodLevels" in tree:
        raise UserError(
            f"{path} lists the levels of detail of a scene in many SOG files",
            f"the {META} or .sog of one of them",
            "pass a file of the finest level, or export the scene as one .sog or .ply",
        )
    if not isinstance(tree, dict) or "means" not in tree:
        raise damage_error(path, f"its {META} is not that of SOG: it has no means")
    return tree


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -1e300 < value < 1e300


def _decode_image(path: Path, name: str, content: bytes) -> np.ndarray:
    """Returns an image of 8 bits for each channel, its size checked before it is decoded."""
    what = f"its image {name[:80]!r}"
    width, height = _read_webp_size(content) or (0, 0)
    try:
        if not is_plausible(4 * width * height, len(content)):  # Pillow allocates as it opens WebP
            raise OSError(f"{width}x{height} pixels in {len(content)} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked here
            image = Image.open(BytesIO(content))
        width, height = image.size
        if not is_plausible(4 * width * height, len(content)):
            raise OSError(f"{width}x{height} pixels in {len(content)} bytes")
        if image.mode not in ("RGB", "RGBA") or getattr(image, "n_frames", 1) != 1:
            raise OSError(f"one of mode {image.mode}, wanted RGB or RGBA, not animated")
        pixels = np.asarray(image.convert("RGBA"))
    except UNREADABLE as error:
        raise damage_error(path, f"{what} cannot be read ({shorten(error)})") from error
    if image.format == "JPEG" or (image.format == "WEBP" and b"VP8L" not in content[:4096]):
        log.warning("%s: %s is compressed with losses, which damages Gaussians", path, what)
    return pixels


def _read_webp_size(content: bytes) -> tuple[int, int] | None:
    """Returns (width, height) that the header of a WebP file claims; None for other files."""
    if content[:4] != b"RIFF" or len(content) < 30:
        return None
    if content[12:16] == b"VP8X":
        fields = int.from_bytes(content[24:30], "little")
        return (fields & 0xFFFFFF) + 1, (fields >> 24) + 1
    if content[12:16] == b"VP8L":
        fields = int.from_bytes(content[21:25], "little")
        return (fields & 0x3FFF) + 1, (fields >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", content, 26)
    return width & 0x3FFF, height & 0x3FFF
