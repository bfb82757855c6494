"""Weights that training starts from: parts of other networks, as in the official recipes.

DepthSplat starts from the ViT of Depth Anything V2 (Yang et al., NeurIPS 2024; itself DINOv2's) and
the CNN and transformer of GMFlow (Xu et al., CVPR 2022), MVSplat from the latter two as UniMatch
(Xu et al., PAMI 2023) trained them for depth; ReSplat from a depth network of DepthSplat's kind,
and its update compares pictures in the features of ResNet-18 (He et al., CVPR 2016). Other tensors
of these files are ignored.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import registry
from ..contracts import is_within
from ..errors import UserError
from ..foundation import resnet
from ..io.weights import Source, fetch, read_checkpoint, read_header
from ..models.depthsplat import DepthSplat
from ..models.mvsplat import MVSplat
from ..models.resplat import ReSplat
from ..models.updated import Updated
from .convert import join_parts, names_of, official_keys, place_names, reorder_inputs
from .load import open_model
from .published import ZOO

log = logging.getLogger(__name__)

DINOV2, RESNET = "dinov2", "resnet18"
SOURCES = {
    "depth-anything-v2-small": Source(  # Apache 2.0
        "depth-anything/Depth-Anything-V2-Small",
        "03876f8651c73a60fe4c2c48294e09fcb6838fcf",
        "depth_anything_v2_vits.pth",
        "715fade13be8f229f8a70cc02066f656f2423a59effd0579197bbf57860e1378",
    ),
    "depth-anything-v2-base": Source(
        "depth-anything/Depth-Anything-V2-Base",
        "a4e71a6c2ce52fe50df0f212066b0d4a87be9b5e",
        "depth_anything_v2_vitb.pth",
        "0d2b7002e62d39d655571c371333340bd88f67ab95050c03591555aa05645328",
    ),
    "depth-anything-v2-large": Source(
        "depth-anything/Depth-Anything-V2-Large",
        "cbbb86a30ce19b5684b7a05155dc7e6cbc7685b9",
        "depth_anything_v2_vitl.pth",
        "a7ea19fa0ed99244e67b624c72b8580b7e9553043245905be58796a608eb9345",
    ),
    # A copy of the file that UniMatch's MODEL_ZOO.md has on a server of its own; MIT.
    "gmflow": Source(
        "pranay-ar/unimatch",
        "4cbb8c73a0f6d821f38fcbc300afc643c552f0db",
        "gmflow-scale1-things-e9887eda.pth",
        "e9887eda6165e0813c03f35998d6af86e265aafce2e3349af93d691a59696088",
    ),
}
NON_COMMERCIAL = {name: "CC-BY-NC-4.0" for name in SOURCES if name.endswith(("-base", "-large"))}


def initialize(
    model: nn.Module, names: Sequence[str], tell: Callable[[str], None] = log.info
) -> None:
    """Fills the parts of an encoder that other networks were trained for, from each name in turn.

    A name is "dinov2" (the ViT as its authors released it), "resnet18" (torchvision's, for
    ReSplat's update), one of SOURCES, a published model, or the path of such a file or of a
    checkpoint of ours. Of every part (ViT, CNN, transformer, head, …) that a file has, all
    parameters are copied; other parts stay as they are, and other tensors of the file are ignored.
    "NAME:PART", such as "resplat-base-dl3dv-256x448-view8:update", takes of that part what fits,
    tensor by tensor, and leaves the rest as it is. Of a model on a base only the update is filled,
    see `open_base`. `tell` gets one sentence per file. Raises
    UserError for an unknown name, for a file that cannot be had, that has no part of the model, or
    that has a part only in part where none was named.
    """
    chosen = [_Choice.of(name) for name in names]
    for choice in chosen:
        _check(model, choice)
    for choice in chosen:
        name = choice.name
        if name in NON_COMMERCIAL:
            tell(f"{name} may not be used commercially: its license is {NON_COMMERCIAL[name]}")
        keys, tensors = _read(model, name)
        keys = {parameter: keys[parameter] for parameter in keys if choice.has(parameter)}
        fitting = _fitting(model, keys, tensors, choice)
        model.load_state_dict(fitting, strict=False)
        counts = Counter(_part(parameter) for parameter in fitting)
        taken = ", ".join(f"{n} parameters of {part}" for part, n in counts.items())
        left = len(keys) - len(fitting) if choice.part else 0
        rest = (
            f"; {left} of {choice.part} stay, which it has not or in other shapes" if left else ""
        )
        tell(f"{name}: {taken}{rest}")


def open_base(
    settings: Any, tell: Callable[[str], None] = log.info
) -> tuple[Any, nn.Module | None]:
    """The settings of a model on a base with those that the base's weights have, and the base.

    Both come from `settings.base_weights`, as for `load`; None: settings as they are, no base.
    `tell` gets one sentence where settings of the base change. Raises UserError for weights of
    another component.
    """
    weights = settings.base_weights
    if weights is None:
        return settings, None
    loaded = open_model(weights)
    name, given = registry.split_name(settings.base)
    if loaded.component != name:
        raise UserError(
            f"model.base_weights={weights}, of a model {loaded.component}",
            f"weights of {name}, as model.base says",
            f"set model.base={loaded.component}",
        )
    theirs = asdict(loaded.settings)
    ours = asdict(registry.make_config("models", name, given))
    changed = [key for key in theirs if theirs[key] != ours[key] and key != "init_from"]
    if changed:
        tell(f"The base has the settings of {weights}, which differ in {', '.join(changed)}.")
    return replace(settings, base={"name": name, **theirs}), loaded.model


@dataclass(frozen=True)
class _Choice:
    """Where weights come from, and the part of the model that they are for; "": all that fit."""

    name: str
    part: str = ""

    @classmethod
    def of(cls, text: str) -> "_Choice":
        found = re.fullmatch(r"(.+):([a-z][a-z0-9_.]*)", text)
        return cls(text) if found is None or Path(text).is_file() else cls(found[1], found[2])

    def has(self, parameter: str) -> bool:
        return not self.part or is_within(parameter, self.part)


def _check(model: nn.Module, choice: _Choice) -> None:
    """UserError for a name or model that has no such weights, before any file is fetched."""
    name = choice.name
    if not isinstance(model, (DepthSplat, MVSplat, ReSplat, Updated)):
        raise UserError(
            f"model.init_from for a {type(model).__name__}",
            "an encoder of pmsplat's own, whose parts others have trained",
            "start from a checkpoint of the same model instead (trainer.initial=...)",
        )
    if name == DINOV2:
        if isinstance(model, MVSplat | Updated) or model.depth.vit is None:
            raise UserError(
                f"{name!r} in model.init_from", "a model with a ViT", "take it out of the list"
            )
    elif name == RESNET:
        if not isinstance(model, ReSplat | Updated) or model.update is None:
            raise UserError(
                f"{name!r} in model.init_from", "a model with an update", "take it out of the list"
            )
    elif name not in SOURCES and name not in ZOO and not Path(name).is_file():
        known = [DINOV2, RESNET, *SOURCES]
        raise UserError(
            f"{name!r} in model.init_from, which is neither a name nor a file",
            f"{', '.join(known)}, a published model, or the path of a checkpoint",
            registry.suggest(name, [*known, *ZOO]),
        )
    if not any(map(choice.has, _fillable(model))):
        parts = list(dict.fromkeys(parameter.partition(".")[0] for parameter in _fillable(model)))
        raise UserError(
            f"{choice.part!r} of {name} in model.init_from, a part that this model has not",
            f"{', '.join(parts)}, or parts of these",
            registry.suggest(choice.part, parts),
        )


def _fillable(model: nn.Module) -> list[str]:
    """The parameters that weights may fill: all but those of a base."""
    names = list(model.state_dict())
    if isinstance(model, Updated):
        return [name for name in names if not name.startswith("base.")]
    return names


def _read(model: nn.Module, name: str) -> tuple[dict[str, list[str]], dict[str, Tensor]]:
    """The official keys of each of our parameters, and the tensors of a file by their keys."""
    ours = _fillable(model)
    if name == DINOV2:
        from ..foundation import dinov2  # late: timm takes a second to import

        assert isinstance(model, DepthSplat | ReSplat)
        released = dinov2.released(model.layout.vit)
        tensors = {f"pretrained.{key}": value for key, value in released.items()}
    elif name == RESNET:
        tensors = {f"update.features.{key}": value for key, value in resnet.released().items()}
        return {parameter: [parameter] for parameter in ours}, tensors
    else:
        sources = SOURCES | {model_name: published.source for model_name, published in ZOO.items()}
        path = fetch(sources[name]) if name in sources else Path(name)
        tensors = read_checkpoint(path)
        if read_header(path) is not None:
            return {parameter: [parameter] for parameter in ours}, tensors
    names = names_of(model)
    keys = {parameter: official_keys(parameter, names) for parameter in ours}
    return keys, place_names(tensors, {key for parts in keys.values() for key in parts})


def _fitting(
    model: nn.Module, keys: dict[str, list[str]], tensors: dict[str, Tensor], choice: _Choice
) -> dict[str, Tensor]:
    """The parameters that the file has: of every part all or none, of a chosen part what fits."""
    where = choice.name
    known = {_part(name) for name in keys if any(key in tensors for key in keys[name])}
    fitting = {}
    for name, wanted in model.state_dict().items():
        if name not in keys or _part(name) not in known:
            continue
        parts = [tensors[key] for key in keys[name] if key in tensors]
        whole = len(parts) == len(keys[name]) and len({part.shape for part in parts}) == 1
        value = join_parts(parts, wanted) if whole and parts[0].ndim else None
        if value is None or value.shape != wanted.shape:
            if choice.part:
                continue
            there = " and ".join(str(list(part.shape)) for part in parts) or "nothing"
            raise UserError(
                f"{where} fits {_part(name)} only in part: it has {there} at {keys[name][0]!r}",
                f"{list(wanted.shape)} for {name}",
                "give a file of a network as large as the model, or take it out of model.init_from",
            )
        fitting[name] = value if keys[name] == [name] else reorder_inputs(name, value, model)
    if not fitting:
        raise UserError(
            f"{where} has no part of this model (its keys are like {next(iter(tensors), '')!r})",
            "parameters of Depth Anything V2, GMFlow, UniMatch, DepthSplat, MVSplat or ReSplat",
            "take it out of model.init_from, or give the authors' own file",
        )
    return fitting


def _part(name: str) -> str:
    """The part of an encoder that a parameter belongs to, such as depth.vit, head, transformer."""
    first, second, *_ = name.split(".")
    return f"{first}.{second}" if first in ("depth", "update") else first
