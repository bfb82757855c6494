"""Published models by name, and any checkpoint of ours: one call to a ready encoder."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import registry
from ..errors import UserError
from ..io import weights as files
from . import _convert
from .depthsplat import DepthSplat

REPOSITORY = "haofeixu/depthsplat"  # on huggingface.co


@dataclass(frozen=True)
class Published:
    """A released checkpoint: its file (whose name ends in the start of its SHA-256), and the
    settings that its parameters' shapes do not all tell."""

    digest: str
    settings: dict[str, Any] = field(default_factory=dict)

    def file(self, name: str) -> str:
        return f"{name}-{self.digest}.pth"


def _base(**settings: Any) -> dict[str, Any]:
    return {"vit": "vitb", "scales": 2, **settings}


ZOO = {
    "depthsplat-gs-small-re10k-256x256-view2": Published("cfeab6b1"),
    "depthsplat-gs-base-re10k-256x256-view2": Published("ca7b6795", _base()),
    "depthsplat-gs-large-re10k-256x256-view2": Published("e0f0f27a", _base(vit="vitl")),
    "depthsplat-gs-base-re10k-256x448-view2": Published("fea94f65", _base(lowest=8)),
    "depthsplat-gs-base-dl3dv-256x448-randview2-6": Published("02c7b19d", _base(lowest=8)),
    "depthsplat-gs-small-re10kdl3dv-448x768-randview4-10": Published(
        "c08188db", {"lowest": 8, "scale_max": 0.1}
    ),
    "depthsplat-gs-base-re10kdl3dv-448x768-randview2-6": Published(
        "f8ddd845", _base(lowest=8, scale_max=0.1)
    ),
    "depthsplat-depth-base-352x640-randview2-8": Published(
        "65a892c5", _base(lowest=8, gaussians=False)
    ),
    "depthsplat-depth-small-352x640-randview2-8": Published(
        "e807bd82", {"lowest": 8, "gaussians": False}
    ),
}


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
        path = Path(weights) if weights else files.fetch(REPOSITORY, ZOO[name].file(name))
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
    return model.to(memory_format=torch.channels_last).eval()


def save(model: nn.Module, path: str | Path, name: str) -> None:
    """Writes a model of ours, built by component `name` from `model.cfg`, for `load` to read."""
    settings: Any = model.cfg
    files.save_checkpoint(path, model.state_dict(), files.Header(name, asdict(settings)))


def _published(name: str, path: Path) -> nn.Module:
    settings = {**ZOO[name].settings, "published": True}
    with torch.device("meta"):  # nothing is filled, since every parameter is about to be assigned
        model = registry.build("models", "depthsplat", settings)
    assert isinstance(model, DepthSplat)
    names = _convert.depthsplat(model.layout)
    state = _convert.convert(files.read_checkpoint(path), model, names, model.layout)
    model.load_state_dict(state, assign=True)
    return model.to(memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]


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
        if digest.startswith(published.digest):
            return name
    raise UserError(
        f"{path} is no checkpoint of ours and no published file",
        "one that is recognised by its hash, since several models share their shapes",
        f"say which model it is: load(NAME, weights={str(path)!r})",
    )
