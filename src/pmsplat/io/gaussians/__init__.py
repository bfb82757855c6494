"""The door of files of Gaussians: any known format in, any known format out.

A format is a module of this folder. It is recognised by how the file begins, and where the format
has no such mark (.splat), or its library asks for the suffix (USD), by that.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ...errors import UserError
from ...types import Gaussians
from . import compressed_ply, gltf, ply, splat, spz, usd

F = TypeVar("F")

Reader = Callable[[str | Path], Gaussians]
Writer = Callable[[Gaussians, str | Path], None]

BEGINNINGS: dict[bytes, Reader] = {
    b"ply\n": ply.load_ply,
    b"ply\r": ply.load_ply,
    spz.MAGIC: spz.read,
    spz.GZIP: spz.read,
    b"glTF": gltf.read,
}
READERS: dict[str, Reader] = {
    ".ply": ply.load_ply,
    ".splat": splat.read,
    ".spz": spz.read,
    **dict.fromkeys((".glb", ".gltf"), gltf.read),
    **dict.fromkeys((".usd", ".usda", ".usdc", ".usdz"), usd.read),
}
WRITERS: dict[str, Writer] = {
    ".ply": ply.save_ply,
    ".compressed.ply": compressed_ply.write,
    ".splat": splat.write,
    ".spz": spz.write,
    ".glb": gltf.write,
    **dict.fromkeys((".usd", ".usda", ".usdc", ".usdz"), usd.write),
}


def load_gaussians(path: str | Path) -> Gaussians:
    """The Gaussians of a file of any known format, as batch 1 on the CPU, float32.

    Standard 3DGS basis, linear scales, opacities in [0, 1], unit quaternions; in our axes where the
    format names its own (.spz, glTF, USD), else in those of the file (.ply, .splat). A .ply, .splat
    or .spz of no Gaussians gives none. Raises UserError for a file that is missing, damaged or of
    an unknown kind.
    """
    source = Path(path)
    if not source.is_file():
        if source.is_dir():
            raise UserError(
                f"{path} is a folder", _one_of(READERS), "name the file of Gaussians in it"
            )
        raise UserError(f"no file {path}", _one_of(READERS), "check the path")
    with source.open("rb") as file:
        head = file.read(16)
    marked = (reader for beginning, reader in BEGINNINGS.items() if head.startswith(beginning))
    reader = next(marked, None) or _of_suffix(READERS, source, "convert it with its own tool")
    return reader(source)


def save_gaussians(gaussians: Gaussians, path: str | Path) -> None:
    """Writes the Gaussians of one scene in the format that the suffix names, whole or not at all.

    What a format cannot hold (see its module) is lost, and said in the log. Raises UserError for an
    unknown suffix, for a batch of several scenes, or for values that are not finite.
    """
    if not isinstance(gaussians, Gaussians):
        raise UserError(
            f"{type(gaussians).__name__} to save", "Gaussians", "give what a model or a file gave"
        )
    _of_suffix(WRITERS, Path(path), "choose another name")(gaussians, path)


def _of_suffix(formats: dict[str, F], path: Path, remedy: str) -> F:
    """The entry of the longest known suffix that the name of the file ends with."""
    for suffix in sorted(formats, key=len, reverse=True):
        if path.name.lower().endswith(suffix):
            return formats[suffix]
    raise UserError(f"{path} is no known file of Gaussians", _one_of(formats), remedy)


def _one_of(formats: dict[str, F]) -> str:
    return f"a file that ends in one of {', '.join(sorted(formats))}"
