"""3D Gaussians as OpenUSD (.usdc, .usda, .usdz): the prim ParticleField3DGaussianSplat of UsdVol.

https://openusd.org: since 26.03 the schema holds positions, linear scales, orientations, opacities
in [0, 1] and the harmonics of 3DGS, all coefficients of a particle together. `write` makes a stage
with +y up, like glTF, and so rotates means, quaternions and harmonics by half a turn about x;
`read` rotates them from the up axis of the stage. OpenUSD's own library (`usd-core`) reads the
files, references included, in a process of its own: see `_usd_stage`.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...geometry import se3, sh
from ...types import Gaussians
from ..files import atomic
from ._blocks import check, damage_error, read_blocks
from ._usd_stage import ARRAYS, import_openusd

BINARY, TEXT = b"PXR-USDC", b"#usda"  # first bytes of files that are not packages
EXTENT = 3.0  # standard deviations around the means that the extent of the field covers
TIMEOUT = 60.0  # seconds to read any file
BYTES_PER_SECOND = 1e6  # of the file: time added to the timeout
PRIM, ROOT = "/Scene/Gaussians", "/Scene"

FROM_UP = {
    "Y": torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]).double(),
    "Z": torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]).double(),
}  # to OpenCV axes: x stays, up becomes -y


def write(gaussians: Gaussians, path: str | Path) -> None:
    """Writes the Gaussians of one scene, exact in float32, every degree, +y up, in metres.

    .usda is text, .usdz a package of one .usdc, .usd and .usdc are binary. Raises UserError for
    several scenes, for values that are not finite, and where usd-core is not installed. The file is
    complete or absent.
    """
    pxr = import_openusd(path)
    check(gaussians, path)
    suffix = Path(path).suffix.lower()
    one = gaussians.detach().to("cpu").to(torch.float32).transformed(FROM_UP["Y"])
    with atomic(path) as temporary, tempfile.TemporaryDirectory(dir=temporary.parent) as folder:
        made = Path(folder) / ("scene.usda" if suffix == ".usda" else "scene.usdc")
        stage = pxr.Usd.Stage.CreateNew(str(made))
        _define_field(pxr, stage, one)
        stage.Save()
        del stage
        if suffix == ".usdz":
            package = made.with_suffix(".usdz")
            if not pxr.UsdUtils.CreateNewUsdzPackage(str(made), str(package)):
                raise OSError(f"OpenUSD could not make the package {path}")
            made = package
        os.replace(made, temporary)


def _define_field(pxr: Any, stage: Any, gaussians: Gaussians) -> None:
    """Adds one field of particles under one root, with the metadata that validators require."""
    UsdGeom, Vt = pxr.UsdGeom, pxr.Vt
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, ROOT).GetPrim())
    field = pxr.UsdVol.ParticleField3DGaussianSplat.Define(stage, PRIM)

    def vectors(tensor: Tensor) -> Any:
        return Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(tensor.numpy()))

    # Positions, scales, rotations and opacities.
    coefficients = gaussians.sh[0]
    quats_xyzw = gaussians.quats_wxyz[0].roll(-1, dims=-1).contiguous()  # as Vt lays them out
    field.CreatePositionsAttr(vectors(gaussians.means[0]))
    field.CreateScalesAttr(vectors(gaussians.scales[0]))
    field.CreateOrientationsAttr(Vt.QuatfArray.FromNumpy(quats_xyzw.numpy()))
    field.CreateOpacitiesAttr(Vt.FloatArray.FromNumpy(gaussians.opacities[0].contiguous().numpy()))
    # Harmonics, and the colour for viewers without them.
    field.CreateRadianceSphericalHarmonicsDegreeAttr(gaussians.sh_degree)
    radiance = field.CreateRadianceSphericalHarmonicsCoefficientsAttr(
        vectors(coefficients.flatten(0, 1))
    )
    interpolated = UsdGeom.Primvar(radiance)
    interpolated.SetElementSize(coefficients.shape[1])
    interpolated.SetInterpolation(UsdGeom.Tokens.vertex)
    field.CreateDisplayColorAttr(vectors((0.5 + sh.C0 * coefficients[:, 0]).clamp(0, 1)))
    UsdGeom.Primvar(field.GetDisplayColorAttr()).SetInterpolation(UsdGeom.Tokens.vertex)
    # Hints for rendering.
    field.CreateProjectionModeHintAttr("perspective")
    field.CreateSortingModeHintAttr("zDepth")
    if len(coefficients):
        reach = EXTENT * gaussians.scales[0].amax(dim=-1, keepdim=True)
        corners = (gaussians.means[0] - reach).amin(0), (gaussians.means[0] + reach).amax(0)
        field.CreateExtentAttr(vectors(torch.stack(corners)))


def read(path: str | Path) -> Gaussians:
    """Reads the Gaussians of every field of a stage as batch 1 on the CPU, in OpenCV axes.

    Applies the transforms of the fields (similarities only) at the earliest time; reads full or
    half precision. Harmonics that only some fields have are zero in the others. Gaussians that
    cannot be drawn are left out; a warning counts them. Raises UserError for a file that is not a
    stage, has no field or contradicts itself, and if usd-core is not installed.
    """
    import_openusd(path)
    if not Path(path).is_file():
        raise UserError(f"no file {path}", "a .usd, .usda, .usdc or .usdz file", "check the path")
    with tempfile.TemporaryDirectory() as folder:
        stage = _extract(path, Path(folder))
        up = FROM_UP.get(stage["up"])
        if up is None:
            raise damage_error(path, f"its up axis is {stage['up']}, neither Y nor Z")
        parts = []
        for i, field in enumerate(stage["fields"]):
            to_world = torch.tensor(field["motion"], dtype=torch.float64)
            if not bool(se3.is_similarity(to_world)):
                raise damage_error(path, f"{field['path']} is mirrored, sheared or stretched")
            part = _read_field(path, Path(folder) / str(i), field["degree"])
            parts.append(part.transformed(up @ to_world))
    if not parts:
        raise UserError(
            f"{path} has no Gaussians",
            "a prim ParticleField3DGaussianSplat",
            "export the scene as Gaussian splats, not as a mesh or points",
        )
    return Gaussians.joined(parts)


def _extract(path: str | Path, folder: Path) -> dict[str, Any]:
    """Runs `_usd_stage`, which saves arrays in `folder`; returns its description of the stage."""
    script = Path(__file__).with_name("_usd_stage.py")  # by path: `-m` would import torch first
    command = [sys.executable, "-P", str(script), str(path), str(folder)]
    timeout = TIMEOUT + os.path.getsize(path) / BYTES_PER_SECOND
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise damage_error(path, f"OpenUSD has not read it after {timeout:.0f} s") from error
    if done.returncode:
        raise damage_error(path, "OpenUSD fails on it")
    stage = json.loads((folder / "stage.json").read_text())
    if "error" in stage:
        raise damage_error(path, stage["error"])
    return stage


def _read_field(path: str | Path, folder: Path, degree: int) -> Gaussians:
    """Reads the Gaussians of one field from its arrays."""
    means, scales, quats_xyzw, opacities, radiance = (
        np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in ARRAYS
    )
    if not 0 <= degree <= sh.MAX_DEGREE:
        raise damage_error(path, f"harmonics of degree {degree}")
    count, bands = len(means), (degree + 1) ** 2
    lengths = (len(scales), len(quats_xyzw), len(opacities), len(radiance))
    if lengths != (count, count, count, count * bands):
        raise damage_error(
            path, f"{count} positions, but {lengths} of the rest, at degree {degree}"
        )

    def decode(start: int, stop: int) -> Gaussians:
        chosen = slice(start, stop)
        coefficients = torch.from_numpy(radiance[bands * start : bands * stop])
        return Gaussians(
            means=torch.from_numpy(means[chosen])[None],
            scales=torch.from_numpy(scales[chosen])[None],
            quats_wxyz=torch.from_numpy(quats_xyzw[chosen]).roll(1, dims=-1)[None],
            opacities=torch.from_numpy(opacities[chosen])[None, :, 0],
            sh=coefficients.unflatten(0, (-1, bands))[None],
        )

    return read_blocks(path, count, bands, decode)
