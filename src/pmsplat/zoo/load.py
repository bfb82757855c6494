"""Published models by name, and any checkpoint: one call to a ready encoder."""

import json
import logging
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import registry
from ..errors import UserError
from ..io import weights as files
from ..io.hub_models import LIBRARY, SETTINGS, Repository, fetch_model, is_address
from ..nn.maps import set_memory_format
from ._shapes import recognize_shapes
from .convert import convert
from .published import (
    MARCH_2025,
    MARCH_SETTINGS,
    RESPLAT_FORMS,
    ZOO,
    Published,
    recognize_hash,
)
from .shipped import SHIPPED, shipped_file

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"  # the checkpoint that training writes into its folder
CONFIG = "config.json"  # the settings of the training, beside it

__all__ = [
    "CONFIG",
    "SHIPPED",
    "WEIGHTS",
    "ZOO",
    "Loaded",
    "Published",
    "load",
    "open_model",
    "save",
]


@dataclass(frozen=True)
class Loaded:
    """An encoder in eval mode, the name of its component, and the Config it was built from.

    `path` is the file of its weights, or the index of their files; None for one in memory.
    """

    model: nn.Module
    component: str
    settings: Any
    path: Path | None = None


def load(name_or_path: str | Path, weights: str | Path | None = None) -> nn.Module:
    """A ready encoder in eval mode: `model(views) -> Prediction`.

    `name_or_path` is a published name (the official file's, without its hash), a model that comes
    with pmsplat (`SHIPPED`), a checkpoint of ours, the folder of a training run, an official file,
    or OWNER/NAME[@REVISION], a model on the Hugging Face hub that `pmsplat models push` wrote: a
    path of that name goes first, unless hf:// stands before it (see `Repository`). With a published
    name, `weights` is the file to use, in any float type and wrapper, or the index or folder of one
    in parts; without it the file is taken from `pretrained/`, or downloaded there. Parameters are
    float32. Raises UserError for an unknown name, for a file that is damaged or of another model,
    and for an official file whose hash is not known (files of one shape can differ in settings):
    give its name then. A file of which no hash was published is known by its keys, where it alone
    has them.
    """
    return open_model(name_or_path, weights).model


def open_model(name_or_path: str | Path, weights: str | Path | None = None) -> Loaded:
    """What `load` loads, with the settings that it was built from."""
    name = str(name_or_path)
    if name in ZOO:
        return _open_published(name, weights)
    path = shipped_file(name) if name in SHIPPED else Path(name_or_path)
    repository = Repository.parse(name)
    is_remote = repository is not None and (is_address(name) or not path.exists())
    if not is_remote:
        path = files.find_checkpoint(path) or path
        if not path.is_file():
            raise _not_found(name, path, repository)
    if weights is not None:
        raise UserError(
            f"two checkpoints, {name} and {weights}", "one", "drop weights, or give a model's name"
        )
    if is_remote:
        assert repository is not None
        return _open_repository(repository, name)
    if repository is not None:
        log.info("%s is a path of this machine; hf://%s would be that of the hub", name, repository)
    header = files.read_header(path) or _read_settings(path)
    return _load_official(*_recognize(path), path) if header is None else _open_ours(path, header)


def _open_ours(path: Path, header: files.Header) -> Loaded:
    """The model of a checkpoint of ours, filled."""
    config = registry.make_config("models", header.model, header.settings)
    model = registry.build("models", header.model, config)
    state = files.read_checkpoint(path)
    _refuse_update(path, state)
    remedy = "load it with the version of pmsplat that wrote it"
    files.check_same(state, model.state_dict(), str(path), remedy)
    model.load_state_dict(state)
    set_memory_format(model)
    return Loaded(model.eval(), header.model, config, path)


def save(
    model: nn.Module,
    path: str | Path,
    component: str,
    settings: Any = None,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes a checkpoint for `load` to read: the model's weights, component and settings.

    `settings` is the Config that the component built the model from; None: `model.cfg`. `state`:
    the weights, where the model has them in parts, or others, such as in half precision.
    """
    config: Any = model.cfg if settings is None else settings
    weights = model.state_dict() if state is None else state
    files.save_checkpoint(path, weights, files.Header(component, asdict(config)))


def _open_repository(repository: Repository, name: str) -> Loaded:
    """A model on the hub, as `name` asks for it."""
    try:
        folder = fetch_model(repository)
    except UserError as error:
        if is_address(name):
            raise
        got = f"{name!r}, which is no path here and no published model, and {error.got}"
        raise UserError(got, error.wanted, error.remedy) from error
    return open_folder(folder, str(repository))


def open_folder(folder: Path, name: str) -> Loaded:
    """The model of a folder that `share.write_folder` wrote, wherever it came from.

    Code that is not of pmsplat is never imported. `name` is what errors call it. Raises UserError
    where the folder has no such model.
    """
    path = files.find_checkpoint(folder)
    header = None if path is None else files.read_header(path) or _read_settings(path)
    if path is None or header is None:
        raise UserError(
            f"{name}, whose weights do not say how to build their model",
            "a model that `pmsplat models push` wrote",
            "`pmsplat models` lists published models, which have names of their own",
        )
    _refuse_code(header, name)
    return _open_ours(path, header)


def _read_settings(path: Path) -> files.Header | None:
    """What builds the model of a checkpoint, from the settings beside it that we wrote, if any."""
    try:
        content = json.loads((path.parent / SETTINGS).read_text(encoding="utf-8"))
        if content["model_type"] != LIBRARY:
            return None
        return files.Header(str(content["model"]), dict(content["settings"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # of another program, or of a training, whose checkpoints have a header


def _refuse_code(header: files.Header, name: str) -> None:
    """UserError where a model from the hub names a module of somebody else, not yet imported."""
    named = [header.model, *_component_names(header.settings)]
    foreign = [name for name in named if "." in name and name not in sys.modules]
    if foreign:
        raise UserError(
            f"the model {name}, which is built by the module {foreign[0]!r}",
            "a component of pmsplat, since a repository does not choose which code runs here",
            f"import {foreign[0]} first if you trust it",
        )


def _component_names(settings: Any) -> list[str]:
    """The names of components that settings hold, however deep."""
    if not isinstance(settings, dict):
        return []
    own = [settings["name"]] if isinstance(settings.get("name"), str) else []
    return own + [name for value in settings.values() for name in _component_names(value)]


def _not_found(name: str, path: Path, repository: Repository | None) -> UserError:
    """What to raise for a path without a checkpoint."""
    if path.is_dir():
        remedy = f"a model of that name on the hub is hf://{repository}" if repository else ""
        return UserError(
            f"the folder {name} without a checkpoint",
            f"one with {WEIGHTS}, as training writes it",
            remedy or "check the path, or give the file itself",
        )
    return UserError(
        f"{name!r}, which is neither a published model nor a file",
        "a checkpoint, a name that `pmsplat models` lists, or OWNER/NAME of the hub",
        registry.suggest(name, [*SHIPPED, *ZOO]),
    )


def _open_published(name: str, weights: str | Path | None) -> Loaded:
    """A published model, of its own file or of one that the user names."""
    if weights is None:
        return _load_official(name, ZOO[name].settings, files.fetch(ZOO[name].source))
    path = files.find_checkpoint(Path(weights)) or Path(weights)
    if files.read_header(path) is not None:
        raise UserError(
            f"{path}, a checkpoint of pmsplat, as the weights of {name}",
            "an official file",
            "leave the name out: the checkpoint itself names its model",
        )
    return _load_official(name, ZOO[name].settings | _release_settings(name, path), path)


def _load_official(name: str, settings: dict[str, Any], path: Path) -> Loaded:
    """The published model `name`, filled from an official file."""
    official = files.read_checkpoint(path)
    _refuse_update(path, official)
    other = RESPLAT_FORMS.get(name)
    if other is not None and recognize_shapes(official).names == (other,):
        log.warning("%s has the form of %s, and is loaded as that", path, other)
        name, settings = other, ZOO[other].settings
    component = ZOO[name].model
    config = registry.make_config("models", component, settings | {"published": True})
    with torch.device("meta"):  # nothing is filled, since every parameter is about to be assigned
        model = registry.build("models", component, config)
    try:
        state = convert(official, model)
    except UserError as error:
        like = recognize_shapes(official)
        if name in like.names:
            remedy = f"{path} was damaged or changed: fetch it again (pmsplat models fetch {name})"
        else:
            others = f": load it as {' or '.join(like.names)}" if like.names else ""
            remedy = f"{path} looks like {like.text}{others}"
        raise UserError(error.got, f"{error.wanted}, as {name} has it", remedy) from error
    model.load_state_dict(state, assign=True)
    set_memory_format(model)
    return Loaded(model.eval(), component, config, path)


def _release_settings(name: str, path: Path) -> dict[str, Any]:
    """The settings of a published file that only its hash tells."""
    if name not in MARCH_2025.values() or not path.is_file():
        return {}
    digest = files.sha256(path)
    if digest[:8] in MARCH_2025:
        return MARCH_SETTINGS
    if recognize_hash(digest) is None:
        log.warning(
            "%s: its hash is not that of a released file, so it is taken for a copy of the %s of "
            "April 2025; of the file of March 2025, whose Gaussian sizes are in pixels, load the "
            "original", path, name,
        )  # fmt: skip
    return {}


def _refuse_update(path: Path, names: Iterable[str]) -> None:
    """UserError where a file has an update alone, by our names or by the official ones."""
    if all(re.match(r"(.+\.)?update[._]", name) for name in names):
        raise UserError(
            f"{path}, which holds an update without the encoder that it was trained on",
            "a checkpoint of both",
            "start a model from it: model.init_from=[PATH:update] in training",
        )


def _recognize(path: Path) -> tuple[str, dict[str, Any]]:
    """The published model of an official file, by its hash, else by its keys, and its settings."""
    found = recognize_hash(files.sha256(path))
    if found is not None:
        return found
    content = files.read_checkpoint(path)
    names = recognize_shapes(content).names
    if len(names) != 1 or ZOO[names[0]].source.sha256:
        raise _unrecognized(path, content)
    log.warning("%s is taken for %s, which alone has such keys and shapes", path, names[0])
    return names[0], ZOO[names[0]].settings


def _unrecognized(path: Path, content: dict[str, torch.Tensor]) -> UserError:
    """What to raise for an official file whose hash is not known."""
    _refuse_update(path, content)
    beside = path.with_name(WEIGHTS)
    is_training = all(name.startswith("model.") for name in content)
    if is_training and beside.is_file() and files.read_header(beside) is not None:
        return UserError(f"{path}, of a training that goes on", "its weights", f"give {beside}")
    like = recognize_shapes(content)
    got = (
        f"{path} is neither a pmsplat checkpoint nor a published file with a known hash (a copy "
        "that was cast, wrapped or saved again has another one)"
    )
    if not like.names:
        wanted = "a pmsplat checkpoint, or one of DepthSplat, PM-Loss or MVSplat"
        return UserError(got, wanted, f"it looks like {like.text}: check which file it is")
    return UserError(
        f"{got}; it looks like {like.text}",
        "the name of its model, since shapes do not tell its settings",
        f"name its model, {' or '.join(like.names)}, with `weights={path}`",
    )
