"""What a model learned from, to set beside what it is given: views, size, data, baseline."""

import json
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..io.hub_models import LIBRARY, Repository, find_cached, is_address
from .load import CONFIG
from .published import RE10K, ZOO, ZPRESSOR


@dataclass(frozen=True)
class TrainedOn:
    """What a model learned from; None where nobody says.

    `views`: fewest and most context views; `size`: (height, width); `data`: data sets; `baseline`:
    the usual distances, least and largest, of two context views in the unit of the model.
    """

    views: tuple[int, int] | None
    size: tuple[int, int] | None
    data: str
    baseline: tuple[float, float] | None = None


SHIPPED = {
    "pmsplat-small-v1": TrainedOn((2, 3), (144, 192), "procedural scenes, and five real ones"),
}

# Distances of published RealEstate10K cameras, in its unit, that are as many frames apart as the
# context views in training: 5th and 95th percentile over ten sequences of its test split (those in
# assets/pose_files of hehao13/CameraCtrl at af45a7a), each of the same weight.
_FAR_APART = (0.32, 2.2)  # 45 to 135 frames: DepthSplat
_CLOSE = (0.17, 1.05)  # 40 to 50 frames: MVSplat, whose training always takes 45
# Of the models whose names do not say their views: settings of their training.
_VIEWS = {RE10K: (2, 2), "RE10K, DL3DV": (2, 6)}
_GATHERED = (12, 12)  # ZPressor's; of the models that it is compared with, nobody says
_SIZES = {"pmloss": (256, 448), "ori_depthsplat_tuned": (256, 448), "mvsplat-re10k": (256, 256)}


def trained_on(model: str | Path) -> TrainedOn | None:
    """What a published model, or one of ours with the settings of its training beside it, learned
    from; `model` as for `load`, which has fetched it. None where that is not known."""
    if str(model) in ZOO:
        return _published(str(model))
    if str(model) in SHIPPED:
        return SHIPPED[str(model)]
    path, repository = Path(model), Repository.parse(str(model))
    if repository is not None and (is_address(str(model)) or not path.exists()):
        path = find_cached(repository) or path
    folder = path if path.is_dir() else path.parent
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if content.get("model_type") == LIBRARY:
            return _shared(content["trained_on"])
        settings = content["dataset"]
        return _ours(settings["name"], settings["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # moved away from its settings, or of a data set that has no such facts


def _shared(facts: dict[str, Any]) -> TrainedOn:
    """From the settings of a model that was shared (`share.write_folder`)."""
    pairs = {name: facts[name] for name in ("views", "size", "baseline")}
    pairs = {name: pair and (pair[0], pair[1]) for name, pair in pairs.items()}
    return TrainedOn(**pairs, data=str(facts["data"]))


def _published(name: str) -> TrainedOn:
    """The names of the models say size and views: depthsplat-gs-base-dl3dv-256x448-randview2-6."""
    published = ZOO[name]
    size = re.search(r"-(\d+)x(\d+)", name)
    views = re.search(r"view(\d+)(?:-(\d+))?$", name)
    baseline, usual = None, _VIEWS.get(published.data)
    if published.source.repository == ZPRESSOR[0]:
        usual = _GATHERED if published.settings.get("anchors") else None
    elif published.data == RE10K:
        baseline = _CLOSE if published.model == "mvsplat" else _FAR_APART
    return TrainedOn(
        views=(int(views[1]), int(views[2] or views[1])) if views else usual,
        size=(int(size[1]), int(size[2])) if size else _SIZES.get(name),
        data=published.data,
        baseline=baseline,
    )


def _ours(name: str, settings: dict[str, Any]) -> TrainedOn:
    """From the settings of a data set, of its largest size; those of one path have two context
    views."""
    if name == "mix":
        parts = [part for part in settings["parts"].values() if part.get("share", 1)]
        return _join([_ours(part["name"], part) for part in parts])
    least, most = settings.get("views", (2, 2))
    sizes = settings["sizes"] if "sizes" in settings else [settings["size"]]
    height, width = max(sizes, key=prod)
    data = f"the scenes of {Path(settings['root']).name}" if name == "folder" else str(name)
    return TrainedOn((int(least), int(most)), (int(height), int(width)), data)


def _join(parts: list[TrainedOn]) -> TrainedOn:
    """What a model learned from that saw all of these."""
    views = [number for part in parts for number in part.views or ()]
    sizes = [part.size for part in parts if part.size]
    return TrainedOn(
        (min(views), max(views)), max(sizes, key=prod), " and ".join(part.data for part in parts)
    )
