"""Extracts the Gaussians of a USD stage as plain arrays: `python _usd_stage.py FILE DIR`.

OpenUSD's parser does not survive damaged files: a few flipped bytes of a .usdc can crash the
process or claim any amount of memory. So it runs here, in a process of its own with limited memory.
The script writes to DIR a stage.json and, for each field of particles, a folder of .npy files. It
does not need torch.
"""

import contextlib
import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pmsplat.errors import UserError  # absolute: this file runs as a script

ARRAYS = {
    "Positions": 3,
    "Scales": 3,
    "Orientations": 4,  # x y z w, as OpenUSD's arrays lay them out
    "Opacities": 1,
    "RadianceSphericalHarmonicsCoefficients": 3,
}
MODE = "SplatRenderMode"  # as in `_facts`, which needs torch
UNSEEN = ("guide", "proxy")  # purposes of prims that a final picture does not show
STRUCTURE = ("", "Xform", "Scope", "Material", "Shader", "NodeGraph")  # types that show nothing
MEMORY = 4 << 30  # bytes of address space for any file
PER_BYTE = 16  # bytes of address space added for each byte of the file


def extract(file: Path, folder: Path) -> None:
    """Writes the arrays of a stage and its stage.json, or a stage.json with an `error`."""
    # Open the stage.
    pxr = import_openusd(file)
    Usd, UsdGeom, Schema = pxr.Usd, pxr.UsdGeom, pxr.UsdVol.ParticleField3DGaussianSplat
    try:
        stage = Usd.Stage.Open(str(file))
    except pxr.Tf.ErrorException:
        _write_stage(folder, {"error": "OpenUSD cannot open it"})
        return
    # Save the arrays of each field of Gaussians, instances included.
    when = Usd.TimeCode.EarliestTime()
    places = UsdGeom.XformCache(when)
    fields, others = [], Counter[str]()
    everything = Usd.PrimIsDefined & ~Usd.PrimIsAbstract
    for prim in stage.Traverse(Usd.TraverseInstanceProxies(everything)):
        if not prim.IsA(Schema):
            others[str(prim.GetTypeName()) if prim.IsActive() else "inactive prims"] += 1
            continue
        if _is_prototype(pxr, prim):
            others["Gaussians that a PointInstancer copies"] += 1
            continue
        seen = UsdGeom.Imageable(prim)
        if (
            not prim.IsActive()
            or seen.ComputeVisibility(when) == UsdGeom.Tokens.invisible
            or seen.ComputePurpose() in UNSEEN
        ):
            others["hidden Gaussians"] += 1
            continue
        field = Schema(prim)
        there = folder / str(len(fields))
        there.mkdir()
        try:
            for name, width in ARRAYS.items():
                np.save(there / f"{name}.npy", _get_array(field, name, width, when))
        except (TypeError, ValueError) as error:
            fault = f"{prim.GetPath()} has attributes that are not numbers ({error})"
            _write_stage(folder, {"error": fault})
            return
        fields.append(_describe_field(pxr, field, places, when))
    says_unit = UsdGeom.StageHasAuthoredMetersPerUnit(stage)
    content = {
        "up": str(UsdGeom.GetStageUpAxis(stage)),
        "meters": UsdGeom.GetStageMetersPerUnit(stage) if says_unit else None,
        "fields": fields,
        "others": {kind: count for kind, count in others.items() if kind not in STRUCTURE},
        "absent": [str(error)[:200] for error in stage.GetCompositionErrors()],
        "layers": _list_layers(pxr, stage),
    }
    _write_stage(folder, content)


def _describe_field(pxr: Any, field: Any, places: Any, when: Any) -> dict[str, Any]:
    """What a field says besides its arrays, as JSON can hold it; None where it says nothing."""
    prim = field.GetPrim()
    motion = np.array(places.GetLocalToWorldTransform(prim)).T  # for column vectors, as ours
    degree = field.GetRadianceSphericalHarmonicsDegreeAttr()
    mode = _find_mode(prim)
    return {
        "path": str(prim.GetPath()),
        "motion": motion.tolist(),
        "degree": _get_degree(degree, when) if degree.HasAuthoredValue() else None,
        "space": _find_color_space(field),
        "mode": None if mode is None else str(mode),
        "left_out": _list_left_out(pxr, field, when),
    }


def _is_prototype(pxr: Any, prim: Any) -> bool:
    """Whether a prim lies below a PointInstancer, which shows copies of it, not the prim."""
    while prim and not prim.IsA(pxr.UsdGeom.PointInstancer):
        prim = prim.GetParent()
    return bool(prim)


def _list_layers(pxr: Any, stage: Any) -> list[str]:
    """The other files of a stage that say another unit or up axis; OpenUSD does not follow it."""
    names = (pxr.UsdGeom.Tokens.metersPerUnit, pxr.UsdGeom.Tokens.upAxis)
    root = stage.GetRootLayer()
    return [
        f"{Path(layer.identifier).name} with {name} {layer.pseudoRoot.GetInfo(name)}"
        for layer in stage.GetUsedLayers()
        for name in names
        if layer != root
        and layer.pseudoRoot.HasInfo(name)
        and layer.pseudoRoot.GetInfo(name) != stage.GetMetadata(name)
    ]


def _find_mode(prim: Any) -> Any:
    """What customData of a prim, of the nearest one above or of the file says, if anything."""
    file = prim.GetStage().GetRootLayer().customLayerData
    while prim:
        mode = prim.GetCustomDataByKey(MODE)
        if mode is not None:
            return mode
        prim = prim.GetParent()
    return file.get(MODE)


def _get_degree(attribute: Any, when: Any) -> int:
    degree = attribute.Get(when)
    return degree if isinstance(degree, int) else -1


def _find_color_space(field: Any) -> str | None:
    """The colour space of the harmonics: of their attribute, of the prim or of one above it."""
    for name in ("Coefficients", "Coefficientsh"):
        attribute = getattr(field, f"GetRadianceSphericalHarmonics{name}Attr")()
        if attribute and attribute.HasColorSpace():
            return str(attribute.GetColorSpace())
    prim = field.GetPrim()
    while prim:
        attribute = prim.GetAttribute("colorSpace:name")
        value = attribute.Get() if attribute else None
        if value:
            return str(value)
        prim = prim.GetParent()
    return None


def _list_left_out(pxr: Any, field: Any, when: Any) -> list[str]:
    """What a field has that its Gaussians here have not."""
    prim, found = field.GetPrim(), []
    hints = {"projectionModeHint": "perspective", "sortingModeHint": "zDepth"}
    for name, ours in hints.items():
        value = str(prim.GetAttribute(name).Get(when))
        found += [f"{name} {value[:40]}"] if value != ours else []
    if prim.GetAttribute("primvars:displayOpacity").HasAuthoredValue():
        found.append("displayOpacity")
    known = set(pxr.Usd.SchemaRegistry().FindConcretePrimDefinition(prim.GetTypeName())
                .GetPropertyNames())  # fmt: skip
    own = [str(a.GetName()) for a in prim.GetAuthoredAttributes()]
    data = {key for key in prim.GetCustomData() if prim.HasAuthoredCustomDataKey(key)}
    data |= set(prim.GetStage().GetRootLayer().customLayerData)
    found += [f"customData {key}" for key in sorted(data - {MODE})]
    fixed = ("xformOp", "colorSpace:", "primvars:displayColor")
    found += [name for name in own if name not in known and not name.startswith(fixed)]
    moving = any(attribute.ValueMightBeTimeVarying() for attribute in prim.GetAuthoredAttributes())
    while prim and not moving:
        moving = pxr.UsdGeom.Xformable(prim).TransformMightBeTimeVarying()
        prim = prim.GetParent()
    return [*found, *(["times but the first"] if moving else [])]


def import_openusd(path: str | Path) -> Any:
    """Imports OpenUSD's package, which has no types.

    Raises UserError that names the file at `path`, if usd-core is not installed.
    """
    try:
        for name in ("Gf", "Tf", "Usd", "UsdGeom", "UsdUtils", "UsdVol", "Vt"):
            importlib.import_module(f"pxr.{name}")
    except ImportError as error:
        raise UserError(
            f"{path} is OpenUSD, and the package usd-core is not installed",
            "usd-core 26.3 or newer",
            "pip install 'usd-core==26.11'",
        ) from error
    return importlib.import_module("pxr")


def _get_array(field: Any, name: str, width: int, when: Any) -> np.ndarray:
    """Returns float32 [particle, width]: the attribute in full precision, else in half."""
    full = getattr(field, f"Get{name}Attr")().Get(when)
    given = full if full else getattr(field, f"Get{name}hAttr")().Get(when)
    return np.asarray(given if given else (), dtype=np.float32).reshape(-1, width)


def _write_stage(folder: Path, content: dict[str, Any]) -> None:
    (folder / "stage.json").write_text(json.dumps(content))


def _bound_memory(file: Path) -> None:
    """Limits the memory of this process, on systems that support it."""
    with contextlib.suppress(ImportError):
        import resource

        limit = MEMORY + PER_BYTE * file.stat().st_size
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _bound_memory(Path(sys.argv[1]))
    extract(Path(sys.argv[1]), Path(sys.argv[2]))
