"""Feed-forward 3D Gaussian Splatting: posed photographs in, depth and 3D Gaussians out.

Everything public is here and arrives on first use, so `import pmsplat` is cheap and needs no
optional package.
"""

import importlib
from typing import Any

_PUBLIC = {
    "Batch": "types",
    "Cameras": "types",
    "DrawingRules": "types",
    "Gaussians": "types",
    "Pointmap": "types",
    "PointmapLoss": "pmloss",
    "Prediction": "types",
    "Rendering": "types",
    "StepOutput": "types",
    "UserError": "errors",
    "Views": "types",
    "compile": "zoo.compile",
    "from_pretrained": "zoo.share",
    "fuse": "zoo.fusion",
    "infer": "zoo.infer",
    "load": "zoo.load",
    "load_gaussians": "io.gaussians",
    "load_ply": "io.gaussians.ply",
    "pointmap_loss": "losses.pointmap",
    "push_to_hub": "zoo.share",
    "rasterize": "render",
    "read_views": "scene",
    "save_gaussians": "io.gaussians",
    "save_ply": "io.gaussians.ply",
    "save_pretrained": "zoo.share",
}

__all__ = sorted(_PUBLIC)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pmsplat' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
