"""3D Gaussians as .ksplat files: sections of rows, in three levels of compression; read only.

A header of 4096 bytes, one of 1024 bytes for each section, then the sections. A row holds position,
linear scales, rotation w x y z, 8-bit r g b of the colour 0.5 + C0·dc and opacity, and harmonics up
to degree 2, channel by channel within each degree. Level 0 is float32. Levels 1 and 2 hold scales
and rotation in half precision, and positions as 16-bit offsets from the centre of a bucket, a cube
of the scene: a section begins with the sizes of its buckets that are not full, then the centres of
all; the rows of the full ones come first. Harmonics are half precision in level 1, bytes over one
range in level 2. Format and names: Kellogg, GaussianSplats3D 0.4 (`SplatBuffer`). The format
defines no axes: means stay in the frame of the file. The `sceneCenter` of the header is a hint for
cameras; it is not read.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...errors import UserError
from ...geometry import sh
from ...types import Gaussians
from ._blocks import damage_error, read_blocks

HEADER = struct.Struct("<BB2xIIIIH2x3f2f")
SECTION = struct.Struct("<IIIIfH2xIIIIH")
HEADER_SIZE, SECTION_SIZE = 4096, 1024
CENTER_SIZE = 12  # bytes of the centre of a bucket
TYPES = (("<f4", "<f4", "<f4"), ("<u2", "<f2", "<f2"), ("<u2", "<f2", "u1"))  # of each level:
# position, then scale and rotation, then harmonics
STEPS = (1, 32767, 32767)  # from the centre of a bucket to its side, where a section has 0
HALF_RANGE = 1.5  # of harmonics in level 2, where the header has 0
DEGREE = 2


@dataclass(frozen=True)
class _Header:
    """What all sections share; `low`, `high`: the range of harmonics as bytes."""

    level: int
    low: float
    high: float


@dataclass(frozen=True)
class _Section:
    """Views into the file; `ends` are the rows after each bucket that is not full."""

    rows: np.ndarray
    degree: int
    centers: np.ndarray
    step: float
    steps: int
    capacity: int
    full: int
    ends: np.ndarray

    def find_centers(self, start: int, stop: int) -> np.ndarray:
        """Returns the centres [row, 3] of the buckets of rows [start, stop)."""
        rows = np.arange(start, stop)
        in_full = rows // max(self.capacity, 1)
        behind = self.full + np.searchsorted(self.ends, rows, side="right")
        return self.centers[np.where(rows < self.full * self.capacity, in_full, behind)]


def read(path: str | Path) -> Gaussians:
    """Reads the Gaussians of a .ksplat file as batch 1 on the CPU, of degree 0 to 2.

    The file is mapped into memory; beside it the result takes 152 bytes for each Gaussian of degree
    2. Gaussians with values that are not finite are left out; a warning counts them. Raises
    UserError for a file that is missing, damaged or of another version, before it allocates memory
    for what the header claims.
    """
    source = Path(path)
    if not source.is_file():
        raise UserError(f"no file {path}", "a .ksplat file of Gaussians", "check the path")
    if source.stat().st_size < HEADER_SIZE:
        raise damage_error(path, "its .ksplat header is cut short")
    data = np.memmap(source, np.uint8, "r")
    major, minor, slots, _, _, count, level, *_, low, high = HEADER.unpack(
        data[: HEADER.size].tobytes()
    )
    if major != 0 or minor < 1:
        raise damage_error(path, f"version {major}.{minor} of .ksplat; pmsplat reads 0.1")
    if level >= len(TYPES):
        raise damage_error(path, f"compression level {level} of .ksplat, which is not 0, 1 or 2")
    header = _Header(level, low or -HALF_RANGE, high or HALF_RANGE)
    if level == 2 and not (math.isfinite(low) and math.isfinite(high)):
        raise damage_error(path, f"harmonics from {low} to {high}")
    sections = _open_sections(path, data, slots, header)
    if sum(len(section.rows) for section in sections) != count:
        raise damage_error(path, f"its sections do not hold its {count} Gaussians")
    if not sections:
        raise damage_error(path, "it holds no Gaussians")
    return Gaussians.joined(
        [
            read_blocks(path, len(part.rows), (part.degree + 1) ** 2, _make_decoder(part, header))
            for part in sections
        ]
    )


def _open_sections(
    path: str | Path, data: np.ndarray, slots: int, header: _Header
) -> list[_Section]:
    """Returns the sections that hold Gaussians; all of them lie inside the file."""
    start = HEADER_SIZE + SECTION_SIZE * slots
    if start > len(data):
        raise damage_error(path, f"{slots} sections in {len(data)} bytes")
    sections = []
    for i in range(slots):
        head = HEADER_SIZE + SECTION_SIZE * i
        fields = SECTION.unpack(data[head : head + SECTION.size].tobytes())
        count, room, capacity, buckets, side, center, steps, _, full, partial, degree = fields
        # Check what the section claims.
        if degree > DEGREE:
            raise damage_error(path, f"harmonics of degree {degree}")
        dtype = _make_row(header.level, degree)
        lead = 4 * partial + center * buckets
        if count > room or start + lead + dtype.itemsize * room > len(data):
            raise damage_error(path, f"{count} Gaussians of section {i} in {len(data)} bytes")
        placed = min(full * capacity, count)
        ends = placed + np.cumsum(_view(data, start, "<u4", partial), dtype=np.int64)
        if header.level and count:
            placed = int(ends[-1]) if partial else placed
            if center != CENTER_SIZE or full + partial > buckets or placed < count:
                raise damage_error(path, f"{buckets} buckets for {count} Gaussians of section {i}")
            if not math.isfinite(side):
                raise damage_error(path, f"buckets of size {side}")
        # Map its parts.
        if count:
            centers = _view(data, start + 4 * partial, "<f4", 3 * buckets if header.level else 0)
            steps = steps or STEPS[header.level]
            rows = _view(data, start + lead, dtype, count)
            sections.append(
                _Section(rows, degree, centers.reshape(-1, 3), side / 2 / steps, steps, capacity,
                         full, ends)
            )  # fmt: skip
        start += lead + dtype.itemsize * room
    return sections


def _view(data: np.ndarray, start: int, dtype: str | np.dtype, count: int) -> np.ndarray:
    size = count * np.dtype(dtype).itemsize
    return data[start : start + size].view(dtype)


def _make_row(level: int, degree: int) -> np.dtype:
    """Returns the layout of a row."""
    place, shape, harmonic = TYPES[level]
    rest = 3 * ((degree + 1) ** 2 - 1)
    return np.dtype(
        [("mean", place, 3), ("scale", shape, 3), ("quat", shape, 4), ("color", "u1", 3),
         ("opacity", "u1"), ("sh", harmonic, rest)]
    )  # fmt: skip


def _make_decoder(section: _Section, header: _Header) -> Callable[[int, int], Gaussians]:
    def decode(start: int, stop: int) -> Gaussians:
        block = section.rows[start:stop]
        part = {name: block[name].astype(np.float64) for name in block.dtype.names or ()}
        if header.level:
            offsets = (part["mean"] - section.steps) * section.step
            part["mean"] = offsets + section.find_centers(start, stop)
        if header.level == 2:
            part["sh"] = header.low + part["sh"] / 255 * (header.high - header.low)
        dc = (part["color"] / 255 - 0.5) / sh.C0
        bands = [dc[:, None], *_split_bands(part["sh"], section.degree)]
        return Gaussians(
            means=torch.from_numpy(part["mean"])[None],
            scales=torch.from_numpy(part["scale"])[None],
            quats_wxyz=torch.from_numpy(part["quat"])[None],
            opacities=torch.from_numpy(part["opacity"] / 255)[None],
            sh=torch.from_numpy(np.concatenate(bands, axis=1))[None],
        )

    return decode


def _split_bands(rest: np.ndarray, degree: int) -> list[np.ndarray]:
    """Returns the harmonics of each degree from 1, [row, coefficient, channel]."""
    bands, start = [], 0
    for width in (2 * d + 1 for d in range(1, degree + 1)):
        band = rest[:, start : start + 3 * width].reshape(-1, 3, width)
        bands.append(band.transpose(0, 2, 1))
        start += 3 * width
    return bands
