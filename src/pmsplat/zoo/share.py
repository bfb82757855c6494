"""Models as folders and repositories of the Hugging Face hub: written, pushed, read back.

Such a folder has `model.safetensors`, a checkpoint of ours; `config.json` with the constructor's
arguments and what the model learned from; and `README.md`, the model card.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from torch import nn

from .. import registry
from ..errors import UserError
from ..io.files import write_bytes, write_text
from ..io.hub_models import CARD, LIBRARY, SETTINGS, Pushed, Repository, Score, push_folder
from ..io.weights import Header, read_header, save_checkpoint
from ._card import About, restrictions, write_card
from .load import WEIGHTS, Loaded, load
from .trained import TrainedOn

__all__ = [
    "About",
    "Pushed",
    "Repository",
    "Score",
    "from_pretrained",
    "parse_repository",
    "push",
    "push_to_hub",
    "restrictions",
    "save_pretrained",
    "without_folders",
    "write_folder",
]


def from_pretrained(name_or_folder: str | Path, revision: str | None = None) -> nn.Module:
    """What `load` gives: a ready encoder of a name, a folder, or a repository of the hub.

    `revision` is a branch, tag or commit of a repository, as in `load("owner/repo@revision")`.
    """
    if revision is None:
        return load(name_or_folder)
    repository = Repository.parse(str(name_or_folder))
    if repository is None or repository.revision is not None:
        raise UserError(
            f"`revision={revision}` of {name_or_folder}",
            "the name of a repository, OWNER/NAME, beside it",
            "leave `revision` out",
        )
    return load(f"hf://{repository.name}@{revision}")


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    trained: TrainedOn | None = None,
    about: "About | None" = None,
) -> Path:
    """Writes a model as a folder that `load` and `from_pretrained` read, and returns the folder.

    `trained` says what it learned from, and `about` what its card says besides. Other files of the
    folder stay. Raises UserError for a model that no component of pmsplat made.
    """
    return write_folder(Loaded(model, *_component_of(model)), folder, trained, about)


def push_to_hub(
    model: nn.Module,
    repository: str,
    private: bool = False,
    trained: TrainedOn | None = None,
    about: "About | None" = None,
) -> str:
    """Pushes a model to the hub, and returns its address for `load`, with the commit.

    `repository` is OWNER/NAME, or OWNER/NAME@BRANCH. It is made where it is missing. Raises
    UserError as `io.hub_models.push_folder`.
    """
    loaded = Loaded(model, *_component_of(model))
    return str(push(loaded, parse_repository(repository), private, trained, about).repository)


def push(
    loaded: Loaded,
    repository: Repository,
    private: bool = False,
    trained: TrainedOn | None = None,
    about: "About | None" = None,
    extra: Mapping[str, str] | None = None,
) -> Pushed:
    """Pushes what was loaded, with further files of text: their names and content."""
    with tempfile.TemporaryDirectory() as folder:
        write_folder(loaded, folder, trained, about, str(repository), extra)
        return push_folder(Path(folder), repository, private, f"Push {loaded.component}")


def write_folder(
    loaded: Loaded,
    folder: str | Path,
    trained: TrainedOn | None = None,
    about: "About | None" = None,
    name: str | None = None,
    extra: Mapping[str, str] | None = None,
) -> Path:
    """Writes the folder of a model; `name`: what examples of its card load, None: the folder.

    A checkpoint of ours is copied to the bit, unless its settings have paths of this machine: of
    those only the last part is kept.
    """
    folder = Path(folder)
    settings = without_folders(asdict(loaded.settings))
    header = Header(loaded.component, settings)
    config = {
        "model_type": LIBRARY,
        "library_name": LIBRARY,
        "model": header.model,
        "settings": settings,
        "trained_on": None if trained is None else asdict(trained),
        "version": _find_version(),
    }
    path = loaded.path
    if path is not None and path.suffix == ".safetensors" and read_header(path) == header:
        write_bytes(folder / WEIGHTS, path.read_bytes())
    else:
        save_checkpoint(folder / WEIGHTS, loaded.model.state_dict(), header)
    write_text(folder / SETTINGS, json.dumps(config, indent=1) + "\n")
    for file, text in (extra or {}).items():
        write_text(folder / file, text)
    card = write_card(loaded, name or str(folder), trained, about or About())
    write_text(folder / CARD, card)
    return folder


def parse_repository(text: str) -> Repository:
    """OWNER/NAME or OWNER/NAME@BRANCH; UserError for other text."""
    repository = Repository.parse(text)
    if repository is None:
        raise UserError(
            f"{text!r}, which names no repository of the hub",
            "OWNER/NAME, your name or that of an organization before the slash",
            "check the spelling",
        )
    return repository


def without_folders(value: Any) -> Any:
    """The same values, nested as they are, with the last part of every absolute path alone."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if isinstance(value, str):
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute():
                return kind(value).name
    return value


def _component_of(model: nn.Module) -> tuple[str, Any]:
    """The component that built a model, and its Config: the module in which the Config stands."""
    config: Any = getattr(model, "cfg", None)
    place = type(config).__module__
    name = place.removeprefix("pmsplat.models.")
    known = name in registry.names("models") or "." in name
    if config is None or not known or registry.module("models", name).Config is not type(config):
        raise UserError(
            f"a model of the class {type(model).__name__} without the Config of a component",
            "an encoder with its Config as `cfg`",
            "take one that `pmsplat.load` gave, or write its checkpoint with `zoo.load.save`",
        )
    return name, config


def _find_version() -> str | None:
    try:
        return version("pmsplat")
    except PackageNotFoundError:
        return None
