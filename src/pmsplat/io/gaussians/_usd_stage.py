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
    fields = []
    for prim in stage.Traverse(Usd.TraverseInstanceProxies()):
        if not prim.IsA(Schema):
            continue
        field, path = Schema(prim), str(prim.GetPath())
        there = folder / str(len(fields))
        there.mkdir()
        try:
            for name, width in ARRAYS.items():
                np.save(there / f"{name}.npy", _get_array(field, name, width, when))
        except (TypeError, ValueError) as error:
            _write_stage(folder, {"error": f"{path} has attributes that are not numbers ({error})"})
            return
        motion = np.array(places.GetLocalToWorldTransform(prim)).T  # for column vectors, as ours
        degree = field.GetRadianceSphericalHarmonicsDegreeAttr().Get(when)
        degree = degree if isinstance(degree, int) else -1
        fields.append({"path": path, "motion": motion.tolist(), "degree": degree})
    _write_stage(folder, {"up": str(UsdGeom.GetStageUpAxis(stage)), "fields": fields})


def import_openusd(path: str | Path) -> Any:
    """Imports OpenUSD's package, which has no types.

    Raises UserError that names the file at `path`, if usd-core is not installed.
    """
    try:
        for name in ("Tf", "Usd", "UsdGeom", "UsdUtils", "UsdVol", "Vt"):
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
