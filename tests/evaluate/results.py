"""Files of results as `pmsplat evaluate` writes them, of runs that were never made."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Values = Mapping[str, float | None]

HASH = "ab" * 32


def write_results(
    folder: Path,
    scenes: Mapping[str, Values],
    model: str = "small",
    views: Sequence[Mapping[str, Any]] = (),
    size: Sequence[int] = (32, 48),
    index: str | None = HASH,
    **more: Any,
) -> Path:
    """A results.json of scenes of three targets each, by name with their metrics; its path."""
    settings = {"root": "/data", "index": "/data/index_2v.json", "size": list(size)}
    means = {name: 0.0 for values in scenes.values() for name in values}
    content = {
        "model": model,
        "experiment": {"dataset": {"name": "re10k", "settings": settings}},
        "seconds": {"encode": 0.25, "render": 0.01},
        "means": means,
        "scenes": len(scenes),
        "notes": [],
        "per_scene": [{"scene": name, "targets": 3, **values} for name, values in scenes.items()],
        "per_view": list(views),
        "identity": {"weights": None, "index": index, "commit": "c0ffee" * 6},
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    path.write_text(json.dumps(content))
    return path


def gains(*psnrs: float) -> dict[str, Values]:
    """Scenes a, b, c, … of these PSNRs, and of an LPIPS that falls as they rise."""
    return {chr(97 + i): {"psnr": psnr, "lpips": 10 / psnr} for i, psnr in enumerate(psnrs)}
