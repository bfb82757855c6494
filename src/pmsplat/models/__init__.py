"""Encoders, one file each: Views in, Prediction out.

Here is also, by name and lazily, what other packages need of them: `Deviations` of the released
networks; `predict_padded` for encoders that want image sides to be multiples of a number;
`require_two_views` for those that match views.
"""

import importlib
from typing import Any

_OFFERED = {
    "Deviations": "_deviations",
    "predict_padded": "_padding",
    "require_two_views": "_padding",
}


def __getattr__(name: str) -> Any:
    if name not in _OFFERED:
        raise AttributeError(f"module 'pmsplat.models' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_OFFERED[name]}", __name__), name)
