"""3D Gaussians as .splat files: 32 bytes each, without view dependence.

Each Gaussian is x y z and three linear scales as little-endian float32, then bytes: r g b of the
colour 0.5 + C0·dc in [0, 1], opacity, and w x y z of the rotation as (byte - 128) / 128. There is
no header. The layout is that of antimatter15/splat (2023). The format defines no axes: means are
written in the frame of the Gaussians, unchanged.

Precision: means and scales are exact in float32; errors of colour and opacity are at most 1/510,
those of a component of a unit quaternion 1/128 before it is normalised again. Of the two
quaternions of a rotation the one with w <= 0 is written, because a byte can hold -1 but not 1, only
127/128: viewers that do not normalise (Spark 2.2) would rotate the identity by 14 degrees.
Harmonics beyond degree 0 are lost, and colours are clamped to [0, 1]; so are the rules by which
Gaussians are drawn, their origin and what is up. Warnings say so.
"""

import logging
from pathlib import Path

import numpy as np
import torch

from ...errors import UserError
from ...geometry import sh
from ...types import Gaussians
from ..files import atomic
from ._blocks import damage_error, read_blocks, write_blocks
from ._facts import tell_loss

log = logging.getLogger(__name__)

ROW = np.dtype(
    [("mean", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 3), ("opacity", "u1"),
     ("quat", "u1", 4)]
)  # fmt: skip


def read(path: str | Path) -> Gaussians:
    """Reads the Gaussians of a .splat file as batch 1 on the CPU, of degree 0.

    The file is mapped into memory; beside it the result takes 56 bytes for each Gaussian. Gaussians
    with values that are not finite are left out; a warning counts them. Raises UserError for
    a file that is missing or not a multiple of 32 bytes.
    """
    source = Path(path)
    if not source.is_file():
        raise UserError(f"no file {path}", "a .splat file of Gaussians", "check the path")
    size = source.stat().st_size
    if size % ROW.itemsize:
        raise damage_error(path, f"its size of {size} bytes is not a multiple of {ROW.itemsize}")
    rows = np.memmap(source, ROW, "r") if size else np.empty(0, ROW)

    def decode(start: int, stop: int) -> Gaussians:
        block = rows[start:stop]

        def column(name: str) -> torch.Tensor:
            return torch.from_numpy(block[name].astype(np.float64))[None]

        return Gaussians(
            means=column("mean"),
            scales=column("scale"),
            quats_wxyz=(column("quat") - 128) / 128,
            opacities=column("opacity") / 255,
            sh=((column("color") / 255 - 0.5) / sh.C0)[:, :, None],
        )

    return read_blocks(source, len(rows), 1, decode)


def write(gaussians: Gaussians, path: str | Path) -> None:
    """Writes the Gaussians of one scene in their order; the file is complete or absent.

    Warns in the log of what is lost. Raises UserError for a batch of several scenes or for
    values that are not finite.
    """
    blocks = write_blocks(gaussians, path)
    tell_loss(gaussians, path, rules=False, origin=False, up=False)
    if gaussians.sh.shape[-2] > 1:
        log.warning("%s: a .splat file has no harmonics beyond degree 0; they are left out", path)
    with atomic(path) as temporary, temporary.open("wb") as file:
        for block in blocks:
            rows = np.empty(block.means.shape[1], ROW)
            rows["mean"] = block.means[0]
            rows["scale"] = block.scales[0]
            rows["color"] = _to_bytes(255 * (0.5 + sh.C0 * block.sh[0, :, 0]))
            rows["opacity"] = _to_bytes(255 * block.opacities[0])
            quats = block.quats_wxyz[0]
            quats = torch.where(quats[:, :1] > 0, -quats, quats)
            rows["quat"] = _to_bytes(128 + 128 * quats)
            file.write(rows.tobytes())


def _to_bytes(values: torch.Tensor) -> np.ndarray:
    return values.round().clamp(0, 255).to(torch.uint8).numpy()
