"""Reads and writes files of Gaussians in every format that pmsplat supports.

Each module of this folder holds one format. `load_gaussians` recognises a format by the first bytes
of the file. Where a format has no such mark (.splat, .ksplat), or its library needs the suffix
(USD), the suffix decides. A gzip stream is unpacked first, unless it is a .spz.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from ...errors import UserError
from ...geometry.origin import local_origin
from ...types import Gaussians, as_triple
from . import compressed_ply, gltf, ksplat, ply, sog, splat, spz, usd
from ._archives import GZIP, ZIP, opened_zip, peek_gzip, unpacked_gzip
from ._blocks import damage_error
from ._sog_files import META

F = TypeVar("F")

Reader = Callable[[str | Path], Gaussians]
Writer = Callable[[Gaussians, str | Path], None]

LINKED = (".gltf", META)  # formats whose numbers lie in files beside them
FOREIGN = {  # first bytes of what people have in place of a file
    b"version https://git-lfs": "is a git-LFS pointer, not the file itself",
    b"<!doctype html": "is a web page",
    b"<html": "is a web page",
}
USD = (".usd", ".usda", ".usdc", ".usdz")


def _read_gzip(path: str | Path) -> Gaussians:
    """Reads a .spz, or any other file inside a gzip stream: its name without .gz has its suffix."""
    source = Path(path)
    if source.suffix.lower() == ".spz" or peek_gzip(path, len(spz.MAGIC)) == spz.MAGIC:
        return spz.read(path)
    with unpacked_gzip(path) as plain:
        with plain.open("rb") as file:
            again = file.read(len(GZIP)) == GZIP
        if again and peek_gzip(plain, len(spz.MAGIC)) != spz.MAGIC:
            raise damage_error(plain, "a gzip stream inside a gzip stream")
        try:
            return load_gaussians(plain)
        except UserError as error:
            if not plain.name.lower().endswith(LINKED):
                raise
            remedy = f"unpack {source.name}: files beside it are not looked for from inside it"
            raise UserError(error.got, error.wanted, remedy) from error


def _read_zip(path: str | Path) -> Gaussians:
    """Reads a zip archive: a .usdz by its name or by what is in it, else a .sog."""
    if Path(path).suffix.lower() in USD:
        return usd.read(path)
    with opened_zip(path) as archive:
        stages = [name for name in archive.entries if name.lower().endswith(USD)]
        scenes = [name for name in archive.entries if name.endswith(META)]
    return _read_usd(path, ".usdz") if stages and not scenes else sog.read(path)


def _read_usd(path: str | Path, kind: str) -> Gaussians:
    """Reads a stage; OpenUSD tells its kinds apart by their suffixes, so those must be right."""
    right = (kind,) if kind == ".usdz" else (kind, ".usd")
    if Path(path).suffix.lower() not in right:
        raise UserError(
            f"{path} holds OpenUSD of the kind {kind}",
            f"a name that ends in {kind}, by which OpenUSD knows it",
            f"rename it to {Path(path).with_suffix(kind).name}",
        )
    return usd.read(path)


BEGINNINGS: dict[bytes, Reader] = {
    b"ply\n": ply.load_ply,
    b"ply\r": ply.load_ply,
    spz.MAGIC: spz.read,
    GZIP: _read_gzip,
    ZIP: _read_zip,
    b"glTF": gltf.read,
    b"#usda": partial(_read_usd, kind=".usda"),
    b"PXR-USDC": partial(_read_usd, kind=".usdc"),
}
READERS: dict[str, Reader] = {
    ".ply": ply.load_ply,
    ".splat": splat.read,
    ".ksplat": ksplat.read,
    ".spz": spz.read,
    **dict.fromkeys((".sog", META), sog.read),
    **dict.fromkeys((".glb", ".gltf"), gltf.read),
    **dict.fromkeys(USD, usd.read),
}
WRITERS: dict[str, Writer] = {
    ".ply": ply.save_ply,
    ".compressed.ply": compressed_ply.write,
    ".splat": splat.write,
    ".spz": spz.write,
    ".glb": gltf.write,
    **dict.fromkeys(USD, usd.write),
}


def load_gaussians(path: str | Path) -> Gaussians:
    """Reads the Gaussians of a file of any supported format, as batch 1 on the CPU, float32.

    Harmonics are in the standard 3DGS basis, scales are linear, opacities in [0, 1], quaternions of
    length 1. Formats with defined axes (.spz, glTF, USD) are converted to OpenCV axes; in .ply,
    .splat, .ksplat and .sog the axes stay, and `up` has what a .ply says is up. `rules` are those
    that the file says; `origin` is where means are counted from, if they lie far off; `confidence`
    is that of a .ply that has it. An empty .ply, .splat or .spz gives no Gaussians. Any of them may
    be gzipped (.ply.gz), and a folder with the meta.json of SOG is one too. Raises UserError for a
    file that is missing, damaged or of an unknown format.
    """
    source = Path(path)
    if source.is_dir() and (source / META).is_file():
        source = source / META
    if not source.is_file():
        if source.is_dir():
            raise UserError(
                f"{path} is a folder", _list_suffixes(READERS), "pass a file of Gaussians inside it"
            )
        raise UserError(f"no file {path}", _list_suffixes(READERS), "check the path")
    with source.open("rb") as file:
        head = file.read(64)
    for beginning, what in FOREIGN.items():
        if head.lstrip().lower().startswith(beginning):
            raise UserError(f"{path} {what}", "a file of Gaussians", "download it again")
    readers = (reader for beginning, reader in BEGINNINGS.items() if head.startswith(beginning))
    reader = next(readers, None) or _find_by_suffix(
        READERS, source, "convert it to .ply with the program that wrote it"
    )
    return reader(source)


def save_gaussians(gaussians: Gaussians, path: str | Path) -> None:
    """Writes the Gaussians of one scene in the format of the file's suffix, whole or not at all.

    What a format cannot hold (see its module) is lost, with a warning in the log: harmonics,
    confidence, or that they are antialiased, lie around an `origin` or have another `up`. Means of
    float64 far from zero get an origin, as most formats hold float32. Raises UserError for an
    unknown suffix, for a batch of several scenes, or for values that are not finite.
    """
    if not isinstance(gaussians, Gaussians):
        raise UserError(
            f"{type(gaussians).__name__} to save",
            "Gaussians",
            "pass the output of a model or of load_gaussians",
        )
    write = _find_by_suffix(WRITERS, Path(path), "choose another name")
    write(_count_from_near(gaussians), path)


def _count_from_near(gaussians: Gaussians) -> Gaussians:
    """Means of float64 counted from an origin in their midst, where float32 is too coarse."""
    if gaussians.means.dtype != torch.float64 or len(gaussians.means) != 1:
        return gaussians
    shift = local_origin(gaussians.means[0].detach().cpu())
    if not shift.any():
        return gaussians
    return gaussians.at_origin(as_triple(shift + shift.new_tensor(gaussians.origin)))


def _find_by_suffix(formats: dict[str, F], path: Path, remedy: str) -> F:
    """Returns the entry of the longest known suffix that the file name ends with."""
    for suffix in sorted(formats, key=len, reverse=True):
        if path.name.lower().endswith(suffix):
            return formats[suffix]
    raise UserError(f"{path} is no known file of Gaussians", _list_suffixes(formats), remedy)


def _list_suffixes(formats: dict[str, F]) -> str:
    return f"a file that ends in one of {', '.join(sorted(formats))}"
