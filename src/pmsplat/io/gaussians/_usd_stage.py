"""What a USD stage holds of Gaussians, as plain arrays: `python _usd_stage.py FILE DIR`.

OpenUSD's parser is no guard against damaged files: a few flipped bytes of a .usdc can end the
process or claim any amount of memory. So it works here, in a process of its own, within bounds, and
leaves in DIR stage.json and, for each field of particles, a folder of .npy. Needs no torch.
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
MEMORY = 4 << 30  # bytes of address space, and so many for each byte of the file:
PER_BYTE = 16


def extract(file: Path, folder: Path) -> None:
    """Writes what is there; a stage that cannot be opened is said in stage.json."""
    pxr = openusd(file)
    Usd, UsdGeom, Schema = pxr.Usd, pxr.UsdGeom, pxr.UsdVol.ParticleField3DGaussianSplat
    try:
        stage = Usd.Stage.Open(str(file))
    except pxr.Tf.ErrorException:
        _tell(folder, {"error": "OpenUSD cannot open it"})
        return
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
                np.save(there / f"{name}.npy", _array(field, name, width, when))
        except (TypeError, ValueError) as error:
            _tell(folder, {"error": f"{path} has attributes that are no numbers ({error})"})
            return
        motion = np.array(places.GetLocalToWorldTransform(prim)).T  # of columns, as ours
        degree = field.GetRadianceSphericalHarmonicsDegreeAttr().Get(when)
        degree = degree if isinstance(degree, int) else -1
        fields.append({"path": path, "motion": motion.tolist(), "degree": degree})
    _tell(folder, {"up": str(UsdGeom.GetStageUpAxis(stage)), "fields": fields})


def openusd(path: str | Path) -> Any:
    """The package of OpenUSD, which is loaded only here; Any, since it has no types.

    Raises UserError, of a file at `path`, where it is not installed.
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


def _array(field: Any, name: str, width: int, when: Any) -> np.ndarray:
    """float32 [particle, width], of the full precision or else of the halves."""
    full = getattr(field, f"Get{name}Attr")().Get(when)
    given = full if full else getattr(field, f"Get{name}hAttr")().Get(when)
    return np.asarray(given if given else (), dtype=np.float32).reshape(-1, width)


def _tell(folder: Path, content: dict[str, Any]) -> None:
    (folder / "stage.json").write_text(json.dumps(content))


def _bound_memory(file: Path) -> None:
    """What a file claims beyond this fails here, where the system has such limits."""
    with contextlib.suppress(ImportError):
        import resource

        limit = MEMORY + PER_BYTE * file.stat().st_size
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _bound_memory(Path(sys.argv[1]))
    extract(Path(sys.argv[1]), Path(sys.argv[2]))
