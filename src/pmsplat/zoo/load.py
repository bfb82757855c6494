"""Published models by name, and any checkpoint of ours: one call to a ready encoder."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import registry
from ..errors import UserError
from ..io import weights as files
from ..nn.maps import store
from ._shapes import likeness
from .convert import convert
from .published import MARCH_2025, MARCH_SETTINGS, ZOO, Published, recognised

WEIGHTS = "model.safetensors"  # what a training writes

__all__ = ["ZOO", "Published", "load", "save"]


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
        if weights is None:
            path, settings = files.fetch(ZOO[name].source), ZOO[name].settings
        else:
            path = Path(weights)
            if files.read_header(path) is not None:
                raise UserError(
                    f"{path}, a checkpoint of pmsplat, as the weights of {name}",
                    "an official file",
                    "leave the name out: the checkpoint says itself what it is",
                )
            settings = ZOO[name].settings | _of_its_release(name, path)
        return _published(name, settings, path)
    path = Path(name_or_path)
    if (path / WEIGHTS).is_file():
        raise UserError(
            f"{path}, the folder of a training", "its weights", f"give {path / WEIGHTS}"
        )
    if not path.is_file():
        raise UserError(
            f"{name!r}, which is neither a published model nor a file",
            "a checkpoint, or a name that `pmsplat models` lists",
            registry.suggest(name, list(ZOO)),
        )
    if weights is not None:
        raise UserError(
            f"two checkpoints, {path} and {weights}", "one", "drop weights, or give a model's name"
        )
    header = files.read_header(path)
    if header is None:
        found = recognised(files.sha256(path))
        if found is None:
            raise _unrecognised(path)
        return _published(*found, path)
    model = registry.build("models", header.model, header.settings)
    state = files.read_checkpoint(path)
    remedy = "load it with the version of pmsplat that wrote it"
    files.check_same(state, model.state_dict(), str(path), remedy)
    model.load_state_dict(state)
    store(model)
    return model.eval()


def save(model: nn.Module, path: str | Path, name: str) -> None:
    """Writes a model of ours, built by component `name` from `model.cfg`, for `load` to read."""
    settings: Any = model.cfg
    files.save_checkpoint(path, model.state_dict(), files.Header(name, asdict(settings)))


def _published(name: str, settings: dict[str, Any], path: Path) -> nn.Module:
    with torch.device("meta"):  # nothing is filled, since every parameter is about to be assigned
        model = registry.build("models", ZOO[name].model, settings | {"published": True})
    official = files.read_checkpoint(path)
    try:
        state = convert(official, model)
    except UserError as error:
        like = likeness(official)
        if name in like.names:
            remedy = f"{path} was damaged or changed: fetch it again (pmsplat models fetch {name})"
        else:
            others = f": load it as {' or '.join(like.names)}" if like.names else ""
            remedy = f"{path} looks like {like.text}{others}"
        raise UserError(error.got, f"{error.wanted}, as {name} has it", remedy) from error
    model.load_state_dict(state, assign=True)
    store(model)
    return model.eval()


def _of_its_release(name: str, path: Path) -> dict[str, Any]:
    """The settings that only the hash of a file of that name can tell."""
    if name in MARCH_2025.values() and path.is_file() and files.sha256(path)[:8] in MARCH_2025:
        return MARCH_SETTINGS
    return {}


def _unrecognised(path: Path) -> UserError:
    content = files.read_checkpoint(path)
    beside = path.with_name(WEIGHTS)
    if all(name.startswith("model.") for name in content) and beside.is_file():
        return UserError(f"{path}, of a training that goes on", "its weights", f"give {beside}")
    like = likeness(content)
    got = f"{path} is no checkpoint of ours, and its hash is of no published file"
    if not like.names:
        wanted = "a checkpoint of ours, or of DepthSplat, PM-Loss or MVSplat"
        return UserError(got, wanted, f"it looks like {like.text}: check which file it is")
    return UserError(
        f"{got}; it looks like {like.text}",
        "the name of its model, since shapes do not tell its settings",
        f"say which model it is, {' or '.join(like.names)}: load(NAME, weights={str(path)!r}), on "
        f"the command line --model NAME --weights {path}",
    )
