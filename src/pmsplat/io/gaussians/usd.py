"""3D Gaussians as OpenUSD (.usdc, .usda, .usdz): the prim ParticleField3DGaussianSplat of UsdVol.

https://openusd.org: since 26.03 the schema holds positions, linear scales, orientations, opacities
in [0, 1] and the harmonics of 3DGS, all coefficients of a particle together. `write` makes a stage
with +y up, like glTF, and so rotates means, quaternions and harmonics by half a turn about x;
`read` rotates them from the up axis of the stage. OpenUSD's own library (`usd-core`) reads the
files, references included, in a process of its own: see `_usd_stage`. Lengths become meters
(`metersPerUnit`). The origin is the translation of the field, in double precision. The schema has
no word for antialiased Gaussians: `customData` says `SplatRenderMode = "mip"`, as comments of .ply
do.
"""

import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...geometry import sh
from ...types import CLASSIC, NO_OFFSET, DrawingRules, Gaussians
from ..files import atomic
from ._blocks import check, damage_error, read_blocks
from ._facts import MODE, are_logarithms, are_logits, find_mode, into_axes, read_mode, tell_loss
from ._placing import join, place
from ._usd_stage import ARRAYS, import_openusd

log = logging.getLogger(__name__)

SRGB = {
    "srgb_rec709_display",
    "srgb_rec709_scene",
    "raw",
    "data",
    "unknown",
    "",
}  # by their numbers
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
    tell_loss(gaussians, path)
    one = into_axes(gaussians.detach().to("cpu").to(torch.float32), FROM_UP["Y"])
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
    # Where the origin lies, and hints for rendering.
    if gaussians.origin != NO_OFFSET:
        moved = UsdGeom.Xformable(field.GetPrim())
        precision = UsdGeom.XformOp.PrecisionDouble
        moved.AddTranslateOp(precision).Set(pxr.Gf.Vec3d(*gaussians.origin))
    if mode := find_mode(gaussians.rules):
        field.GetPrim().SetCustomDataByKey(MODE, mode)
    field.CreateProjectionModeHintAttr("perspective")
    field.CreateSortingModeHintAttr("zDepth")
    if len(coefficients):
        reach = EXTENT * gaussians.scales[0].amax(dim=-1, keepdim=True)
        corners = (gaussians.means[0] - reach).amin(0), (gaussians.means[0] + reach).amax(0)
        field.CreateExtentAttr(vectors(torch.stack(corners)))


def read(path: str | Path) -> Gaussians:
    """Reads the Gaussians of every field of a stage as batch 1 on the CPU, in OpenCV axes.

    Reads what is shown, in meters, at the earliest time, full or half precision, and applies the
    transforms of the fields (`_placing`). Harmonics that only some fields have are zero in the
    others. Gaussians that cannot be drawn are left out; a warning counts them. Prims and attributes
    that are not read are named in a warning. Raises UserError for a file that is not a stage, has
    no field, has colours that are not sRGB, lacks an attribute or contradicts itself, and if
    usd-core is not installed.
    """
    import_openusd(path)
    if not Path(path).is_file():
        raise UserError(f"no file {path}", "a .usd, .usda, .usdc or .usdz file", "check the path")
    with tempfile.TemporaryDirectory() as folder:
        stage = _extract(path, Path(folder))
        if stage["up"] not in FROM_UP:
            raise damage_error(path, f"its up axis is {stage['up']}, neither Y nor Z")
        to_ours = FROM_UP[stage["up"]] @ _scale_to_meters(path, stage["meters"])
        fields = stage["fields"]
        _tell_left_out(path, stage)
        parts = []
        for i, field in enumerate(fields):
            _check_colors(path, field)
            part = _read_field(path, Path(folder) / str(i), field)
            to_world = torch.tensor(field["motion"], dtype=torch.float64)
            placed = place(path, field["path"], part, to_ours @ to_world)
            parts.append(replace(placed, rules=_find_rules(path, field["mode"])))
    if not parts:
        hidden = " that are shown" if stage["others"].get("hidden Gaussians") else ""
        hidden = hidden or " in the parts that are there" * bool(stage["absent"])
        raise UserError(
            f"{path} has no Gaussians{hidden}",
            "a prim ParticleField3DGaussianSplat",
            "export the scene as Gaussian splats, not as a mesh or points",
        )
    return join(path, parts)


def _scale_to_meters(path: str | Path, meters: float | None) -> Tensor:
    """The transform [4, 4] from the unit of a stage to meters; a warning says what it is."""
    if meters is None:
        log.warning("%s: it says no unit (metersPerUnit), so its numbers are taken as meters", path)
        meters = 1.0
    if not (math.isfinite(meters) and meters > 0):
        raise damage_error(path, f"its metersPerUnit is {meters}")
    if meters != 1:
        log.warning("%s: its unit of %g m is converted to meters", path, meters)
    return torch.diag(torch.tensor([meters, meters, meters, 1.0], dtype=torch.float64))


def _tell_left_out(path: str | Path, stage: dict[str, Any]) -> None:
    told = [f"{count} {kind}" for kind, count in stage["others"].items()]
    told += sorted({what for field in stage["fields"] for what in field["left_out"]})
    if told:
        log.warning("%s: left out: %s", path, "; ".join(told)[:500])
    if stage["absent"]:
        log.warning("%s: parts of it are absent: %s", path, " ".join(stage["absent"])[:500])
    if stage["layers"]:
        log.warning(
            "%s: it uses %s, which OpenUSD does not convert: they count in the unit and axes of %s",
            *(path, ", ".join(stage["layers"])[:500], Path(path).name),
        )


def _check_colors(path: str | Path, field: dict[str, Any]) -> None:
    """Raises UserError for colours that are named and are not those of 3DGS."""
    if field["space"] is not None and field["space"] not in SRGB:
        raise UserError(
            f"{path}: {field['path']} has colours in the space {field['space'][:40]!r}",
            "srgb_rec709_display, in which Gaussians are blended",
            "export it again with sRGB colours, or correct colorSpace:name if they are",
        )


def _find_rules(path: str | Path, mode: str | None) -> DrawingRules:
    rules = CLASSIC if mode is None else read_mode(mode)
    if rules is None and mode is not None:
        log.warning("%s: %s %r is not known and left out", path, MODE, mode[:80])
    return rules or CLASSIC


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


def _read_field(path: str | Path, folder: Path, field: dict[str, Any]) -> Gaussians:
    """Reads the Gaussians of one field from its arrays."""
    arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in ARRAYS
    }
    means, scales, quats_xyzw, opacities, radiance = arrays.values()
    count = len(means)
    with np.errstate(all="ignore"):  # a NaN may be one that signals
        balls = not len(quats_xyzw) and count == len(scales) and (scales == scales[:, :1]).all()
    if balls:  # which have no direction
        quats_xyzw = np.tile(np.array([0, 0, 0, 1], np.float32), (count, 1))
    # Check that they fit together.
    degree = field["degree"]
    if degree is None:
        degree = next((d for d in range(sh.MAX_DEGREE + 1)
                       if len(radiance) == count * (d + 1) ** 2), 3)  # fmt: skip
    if not 0 <= degree <= sh.MAX_DEGREE:
        raise damage_error(path, f"harmonics of degree {degree}")
    bands = (degree + 1) ** 2
    longest = max(count, len(scales), len(opacities))
    for name, found in zip(ARRAYS, (means, scales, quats_xyzw, opacities, radiance), strict=True):
        attribute = (name[0].lower() + name[1:]).replace("radianceS", "radiance:s")
        wanted = longest * (bands if found is radiance else 1)
        if len(found) != wanted:
            raise UserError(
                f"{path}: {field['path']} has "
                + (f"{len(found)} {attribute}" if len(found) else f"no {attribute}")
                + f" for {longest} Gaussians of degree {degree}",
                f"{wanted} of them",
                "export it again with all attributes of ParticleField3DGaussianSplat",
            )
    logarithms = are_logarithms(scales)
    if logarithms:
        log.warning("%s: the scales of %s are logarithms", path, field["path"])
    logits = are_logits(opacities)
    if logits:
        log.warning("%s: the opacities of %s are logits, not in [0, 1]", path, field["path"])

    def decode(start: int, stop: int) -> Gaussians:
        chosen = slice(start, stop)
        coefficients = torch.from_numpy(radiance[bands * start : bands * stop])
        sizes = torch.from_numpy(scales[chosen])[None].double()
        shares = torch.from_numpy(opacities[chosen])[None, :, 0].double()
        return Gaussians(
            means=torch.from_numpy(means[chosen])[None],
            scales=sizes.exp() if logarithms else sizes,
            quats_wxyz=torch.from_numpy(quats_xyzw[chosen]).roll(1, dims=-1)[None],
            opacities=shares.sigmoid() if logits else shares,
            sh=coefficients.unflatten(0, (-1, bands))[None],
        )

    return read_blocks(path, count, bands, decode, placed=False)
