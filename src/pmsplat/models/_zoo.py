"""Published models by name, and any checkpoint of ours: one call to a ready encoder."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import registry
from ..errors import UserError
from ..io import weights as files
from ..io.weights import Source
from ..nn.maps import store
from . import _convert

DEPTHSPLAT = "haofeixu/depthsplat"  # on huggingface.co
DEPTHSPLAT_REVISION = "main"
PMLOSS = "dc-walker/PM-Loss"
PMLOSS_REVISION = "main"
MVSPLAT = "donydchen/mvsplat"


@dataclass(frozen=True)
class Published:
    """A released model: the component that computes it, the settings that the shapes of its
    parameters do not all tell, its file, and what its authors say of it."""

    model: str
    settings: dict[str, Any]
    source: Source
    parameters: int
    data: str
    license: str = "MIT"


def _depthsplat(
    name: str, sha256: str, parameters: int, data: str, model: str = "depthsplat", **settings: Any
) -> tuple[str, Published]:
    """A file whose name ends in the start of its SHA-256."""
    source = Source(DEPTHSPLAT, DEPTHSPLAT_REVISION, f"{name}-{sha256}.pth", sha256)
    return name, Published(model, settings, source, parameters, data)


RE10K, DL3DV, BOTH = "RealEstate10K", "RealEstate10K, DL3DV", "RealEstate10K and DL3DV"
DEPTH = "synthetic and real depth"
BASE: dict[str, Any] = {"vit": "vitb", "scales": 2}
LARGE: dict[str, Any] = {"vit": "vitl", "scales": 2}
BASE_2024 = {"model": "depthsplat2024", **BASE, "features": 128, "unet_width": 32}
DL3DV_2024 = {**BASE_2024, "lowest": 8, "neighbors": 2}

ZOO: dict[str, Published] = dict(
    (
        _depthsplat("depthsplat-gs-small-re10k-256x256-view2", "cfeab6b1", 38_346_416, RE10K),
        _depthsplat(
            "depthsplat-gs-base-re10k-256x256-view2", "ca7b6795", 120_747_896, RE10K, **BASE
        ),
        _depthsplat(
            "depthsplat-gs-large-re10k-256x256-view2", "e0f0f27a", 354_337_760, RE10K, **LARGE
        ),
        _depthsplat(
            "depthsplat-gs-base-re10k-256x448-view2",
            "fea94f65",
            120_877_016,
            RE10K,
            **BASE,
            lowest=8,
        ),
        _depthsplat(
            "depthsplat-gs-base-dl3dv-256x448-randview2-6",
            "02c7b19d",
            120_877_016,
            DL3DV,
            **BASE,
            lowest=8,
        ),
        _depthsplat(
            "depthsplat-gs-small-re10kdl3dv-448x768-randview4-10",
            "c08188db",
            38_404_880,
            BOTH,
            lowest=8,
            scale_max=0.1,
        ),
        _depthsplat(
            "depthsplat-gs-base-re10kdl3dv-448x768-randview2-6",
            "f8ddd845",
            120_877_016,
            BOTH,
            **BASE,
            lowest=8,
            scale_max=0.1,
        ),
        _depthsplat(
            "depthsplat-depth-small-352x640-randview2-8",
            "e807bd82",
            35_534_721,
            DEPTH,
            lowest=8,
            gaussians=False,
        ),
        _depthsplat(
            "depthsplat-depth-base-352x640-randview2-8",
            "65a892c5",
            111_229_753,
            DEPTH,
            **BASE,
            lowest=8,
            gaussians=False,
        ),
        _depthsplat(
            "depthsplat-gs-small-re10k-256x256", "49b2d15c", 37_252_272, RE10K, "depthsplat2024"
        ),
        _depthsplat(
            "depthsplat-gs-base-re10k-256x256", "044fdb17", 117_612_418, RE10K, **BASE_2024
        ),
        _depthsplat(
            "depthsplat-gs-large-re10k-256x256",
            "288d9b26",
            360_910_058,
            RE10K,
            **BASE_2024 | {"vit": "vitl", "unet_width": 64},
        ),
        _depthsplat(
            "depthsplat-gs-base-dl3dv-256x448", "75cc0183", 118_140_194, DL3DV, **DL3DV_2024
        ),
        _depthsplat(
            "depthsplat-depth-small",
            "3d79dd5e",
            35_534_721,
            DEPTH,
            "depthsplat2024",
            lowest=8,
            gaussians=False,
        ),
        _depthsplat(
            "depthsplat-depth-base",
            "f57113bd",
            111_229_753,
            DEPTH,
            "depthsplat2024",
            **BASE,
            lowest=8,
            gaussians=False,
        ),
        _depthsplat(
            "depthsplat-depth-large",
            "50d3d7cf",
            337_518_529,
            DEPTH,
            "depthsplat2024",
            **LARGE,
            lowest=8,
            gaussians=False,
        ),
    )
)
_PM = {key: value for key, value in DL3DV_2024.items() if key != "model"}
ZOO["pmloss"] = Published(
    "depthsplat2024",
    _PM | {"offsets": "free"},
    Source(PMLOSS, PMLOSS_REVISION, "pmloss.ckpt", ""),
    118_140_194,
    DL3DV,
)
ZOO["ori_depthsplat_tuned"] = Published(
    "depthsplat2024",
    _PM,
    Source(PMLOSS, PMLOSS_REVISION, "ori_depthsplat_tuned.ckpt", ""),
    118_140_194,
    DL3DV,
)
ZOO["mvsplat-re10k"] = Published(
    "mvsplat", {}, Source(MVSPLAT, "main", "re10k.ckpt", ""), 11_955_734, RE10K
)


def load(name_or_path: str | Path, weights: str | Path | None = None) -> nn.Module:
    """A ready encoder in eval mode: `model(views) -> Prediction`.

    `name_or_path` is a published name (the official file's, without its hash), a checkpoint of
    ours, or an official file. With a published name, `weights` is the file to use; without it the
    file is taken from `pretrained/`, or downloaded there. Raises UserError for an unknown name, for
    a file that is damaged or of another model, and for an official file that is not recognised by
    its hash (files of one shape can differ in settings): give its name then.
    """
    name = str(name_or_path)
    if name in ZOO:
        path = Path(weights) if weights else files.fetch(ZOO[name].source)
        return _published(name, path)
    path = Path(name_or_path)
    if not path.is_file():
        raise UserError(
            f"{name!r}, which is neither a published model nor a file",
            f"a checkpoint, or one of {', '.join(ZOO)}",
            registry.suggest(name, list(ZOO)),
        )
    if weights is not None:
        raise UserError(
            f"two checkpoints, {path} and {weights}", "one", "drop weights, or give a model's name"
        )
    header = files.read_header(path)
    if header is None:
        return _published(_recognise(path), path)
    model = registry.build("models", header.model, header.settings)
    model.load_state_dict(_strict(files.read_checkpoint(path), model, path))
    store(model)
    return model.eval()


def save(model: nn.Module, path: str | Path, name: str) -> None:
    """Writes a model of ours, built by component `name` from `model.cfg`, for `load` to read."""
    settings: Any = model.cfg
    files.save_checkpoint(path, model.state_dict(), files.Header(name, asdict(settings)))


def _published(name: str, path: Path) -> nn.Module:
    published = ZOO[name]
    with torch.device("meta"):  # nothing is filled, since every parameter is about to be assigned
        model = registry.build("models", published.model, published.settings | {"published": True})
    model.load_state_dict(_convert.convert(files.read_checkpoint(path), model), assign=True)
    return model.eval()


def _strict(state: dict[str, Tensor], model: nn.Module, path: Path) -> dict[str, Tensor]:
    """The state as it is, if it is exactly the model's."""
    wanted = model.state_dict()
    for key in [*wanted, *state]:
        if key not in state or key not in wanted or state[key].shape != wanted[key].shape:
            raise UserError(
                f"{path} does not fit the model that it names, at {key!r}",
                "the parameters that its own settings describe",
                "load it with the version of pmsplat that wrote it",
            )
    return state


def _recognise(path: Path) -> str:
    """The published name of an official file, by its hash."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    for name, published in ZOO.items():
        if published.source.sha256 and digest.startswith(published.source.sha256):
            return name
    raise UserError(
        f"{path} is no checkpoint of ours and no published file",
        "one that is recognised by its hash, since several models share their shapes",
        f"say which model it is: load(NAME, weights={str(path)!r})",
    )
