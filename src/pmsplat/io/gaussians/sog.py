"""3D Gaussians as SOG (Spatially Ordered Gaussians): `meta.json` and images; read only.

The images lie in one zip archive with `meta.json` (.sog), or beside it. A pixel of each, row by
row, holds one Gaussian: 16 bits of sign(x)·ln(1 + |x|) of each coordinate between two bounds, split
into two images; the rotation as the index of its largest component (alpha - 252, of w x y z) and
the three others in ±√½; logarithms of scales; the first harmonic and the opacity; and the number of
its further harmonics in a shared palette, 64 entries side by side. Version 2 looks up scales and
harmonics in codebooks; version 1, whose `version` is missing, interpolates between bounds, and
holds opacities as logits. https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/
sog and PlayCanvas' splat-transform (format and names).

The documentation names axes (right, up, back), but the writers store the numbers of the .ply that
they are given, and viewers turn both alike: so means stay in the frame of the file.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from ...types import CLASSIC, MIP, Gaussians
from . import _quaternions
from ._blocks import is_plausible, read_blocks
from ._sog_files import META, PACKED, Files, opened_files

log = logging.getLogger(__name__)

TAG = 252  # alpha of a rotation whose w is the largest component
PER_ROW = 64  # entries of the palette side by side
REST = (0, 3, 8, 15)  # coefficients beyond the first, by degree
KNOWN = {
    "version",
    "count",
    "asset",
    "antialias",
    "model",
    "means",
    "scales",
    "quats",
    "sh0",
    "shN",
}

Lookup = Callable[[np.ndarray], np.ndarray]  # from bytes [row, channel] to values


@dataclass(frozen=True)
class _Images:
    """The bytes of all Gaussians, [gaussian, channel], and the values of those bytes."""

    low: np.ndarray
    high: np.ndarray
    bounds: np.ndarray
    scales: np.ndarray
    quats: np.ndarray
    colors: np.ndarray
    labels: np.ndarray
    palette: np.ndarray
    find_scales: Lookup
    find_colors: Lookup


def read(path: str | Path) -> Gaussians:
    """Reads a .sog archive, or a `meta.json` with images beside it, as batch 1 on the CPU.

    Beside the images (20 bytes for each Gaussian) the result takes 236 bytes for each Gaussian of
    degree 3. Gaussians with values that are not finite are left out; a warning counts them. Raises
    UserError for files that are missing, damaged or of another version, for a zip archive that is
    no .sog, and for counts or images that claim more than 64 MiB and more than 100 times the bytes
    that they come from.
    """
    with opened_files(path) as files:
        version = files.get_version()
        _warn_about_fields(files)
        # Check the count before memory is allocated for it.
        shape = files.get_part("means").get("shape")
        first = shape[0] if isinstance(shape, list) and shape else None
        count = files.check_count(files.tree.get("count") if version == 2 else first, "Gaussians")
        if not is_plausible(PACKED * count, files.size):
            raise files.damage_error(f"{count} Gaussians in {files.size} bytes")
        images = _load_images(files, count, version)
    coefficients = 1 + images.palette.shape[1]
    mip = files.tree.get("antialias") in (True, 1) or files.tree.get("model") == "antialiased"

    def decode(start: int, stop: int) -> Gaussians:
        return replace(_decode(images, start, stop, version), rules=MIP if mip else CLASSIC)

    return read_blocks(path, count, coefficients, decode)


def _warn_about_fields(files: Files) -> None:
    """Names what `meta.json` says and pmsplat does not follow."""
    model = files.tree.get("model", "default")
    if model == "2dgs":
        log.warning("%s holds 2D Gaussians (2DGS), which are drawn as thin 3D ones", files.path)
    elif model not in ("default", "antialiased"):
        log.warning("%s: its model %s is left out", files.path, str(model)[:40])
    if (antialias := files.tree.get("antialias", False)) not in (True, False, None):
        log.warning("%s: its antialias %s is left out", files.path, str(antialias)[:40])
    if unknown := sorted(set(files.tree) - KNOWN):
        log.warning("%s: %s of its %s are left out", files.path, unknown[:8], META)


def _load_images(files: Files, count: int, version: int) -> _Images:
    bounds = [files.get_numbers("means", key, 3) for key in ("mins", "maxs")]
    quats, colors = files.load_rows("quats", count), files.load_rows("sh0", count)
    if (quats[:, 3] < TAG).any():
        raise files.damage_error(f"rotations without one of the tags {TAG} to 255")
    labels, palette = _load_palette(files, count, version)
    return _Images(
        low=files.load_rows("means", count, 0),
        high=files.load_rows("means", count, 1),
        bounds=np.stack(bounds),
        scales=files.load_rows("scales", count)[:, :3],
        quats=quats,
        colors=colors,
        labels=labels,
        palette=palette,
        find_scales=_make_lookup(files, "scales", version, 3),
        find_colors=_make_lookup(files, "sh0", version, 4),
    )


def _make_lookup(files: Files, name: str, version: int, channels: int) -> Lookup:
    """Returns the function from the bytes of a part to its values."""
    if version == 2:
        book = files.get_codebook(name)
        return lambda codes: book[codes]
    low, high = (files.get_numbers(name, key, channels) for key in ("mins", "maxs"))
    return lambda codes: low + codes / 255 * (high - low)


def _load_palette(files: Files, count: int, version: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the entry of each Gaussian, and all entries [entry, coefficient, channel]."""
    if files.tree.get("shN") is None:
        return np.zeros(count, np.int64), np.zeros((1, 0, 3), np.float32)
    # Find the degree, and the entries in the image.
    pixels = files.load_pixels("shN", 0)
    height, width, _ = pixels.shape
    entries = PER_ROW * height
    degree = {PER_ROW * rest: d for d, rest in enumerate(REST)}.get(width, 0)
    if version == 2:
        part = files.get_part("shN")
        bands = files.check_count(part.get("bands"), "bands of shN")
        entries = files.check_count(part.get("count"), "entries of shN")
        degree = degree if bands == degree and entries <= PER_ROW * height else 0
    if not degree:
        raise files.damage_error(f"a palette of harmonics of {width}x{height} pixels")
    # Look up its values.
    lookup = _make_lookup(files, "shN", version, 1)
    palette = rearrange(lookup(pixels[:, :, :3]), "h (p k) c -> (h p) k c", p=PER_ROW)
    labels = files.load_rows("shN", count, 1)[:, :2] @ np.array([1, 256])
    if (labels >= entries).any():
        raise files.damage_error(f"entries beyond the {entries} of the palette of harmonics")
    return labels, palette.astype(np.float32)


def _decode(images: _Images, start: int, stop: int, version: int) -> Gaussians:
    """Decodes Gaussians [start, stop)."""
    block = slice(start, stop)
    # Positions: 16 bits between the bounds, as logarithms.
    digits = images.low[block, :3] + 256.0 * images.high[block, :3]
    logs = images.bounds[0] + digits / 65535 * (images.bounds[1] - images.bounds[0])
    # Rotations: the largest component is positive.
    quats = images.quats[block]
    others = (quats[:, :3] / 255 * 2 - 1) * 0.5**0.5
    quats_wxyz = _quaternions.restore(others, quats[:, 3].astype(np.int64) - TAG)
    # Colours and opacities.
    colors = images.find_colors(images.colors[block])
    opacities = torch.from_numpy(images.colors[block, 3] / 255)
    if version == 1:
        opacities = torch.from_numpy(colors[:, 3]).sigmoid()
    harmonics = np.concatenate([colors[:, None, :3], images.palette[images.labels[block]]], axis=1)
    return Gaussians(
        means=torch.from_numpy(np.sign(logs) * np.expm1(np.abs(logs)))[None],
        scales=torch.from_numpy(images.find_scales(images.scales[block])).exp()[None],
        quats_wxyz=torch.from_numpy(quats_wxyz)[None],
        opacities=opacities[None],
        sh=torch.from_numpy(harmonics)[None],
    )
