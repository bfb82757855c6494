"""What an interrupted run left: its checkpoint, and how its settings differ from those of now."""

import json
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import registry
from ..errors import UserError
from ..io.weights import check_same
from ..zoo.load import WEIGHTS
from . import optim
from .checkpoints import LAST
from .settings import Experiment, Trainer

AS_WRITTEN = "give the settings that it was written with (config.json beside it)"


def find_checkpoint(output: Path, cfg: Trainer) -> Path | None:
    """The checkpoint to resume from, if any."""
    last = output / LAST
    if cfg.resume is True and not last.is_file():
        raise UserError(
            f"nothing to resume: there is no {last}",
            "an interrupted run",
            "leave trainer.resume out, or set it to auto",
        )
    if not cfg.resume and last.exists():
        raise UserError(
            f"{output} already holds a run",
            "a folder without one",
            "resume it (trainer.resume=true), or choose another folder (output=...)",
        )
    return last if last.is_file() else None


def check_resumed(path: Path, model: nn.Module, steps: int) -> None:
    """UserError where the checkpoint is damaged, of another model, or of a run of another length,
    for which its learning rates were planned."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        saved, planned = content["state_dict"], content["lr_schedulers"][0]["total_steps"]
    except (RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} is not a readable checkpoint", "one that pmsplat wrote", "start a new run"
        ) from error
    if planned != optim.total_steps(steps):
        raise UserError(
            f"{path} of a run whose learning rate was planned for other than {steps} steps",
            f"trainer.steps as before ({planned - optim.total_steps(0)})",
            "start a new run from its weights: "
            f"trainer.initial={path.with_name(WEIGHTS)} output=...",
        )
    theirs = {name.removeprefix("model."): value for name, value in saved.items()}
    check_same(theirs, model.state_dict(), str(path), AS_WRITTEN)


def tell_changes(before: Any, experiment: Experiment, tell: Callable[[str], None]) -> None:
    """Names the settings that a resumed run changes: the user means them, or forgot them."""
    old, new = (_flatten(_complete(run)) for run in (before, asdict(experiment)))
    for values in (old, new):
        values.pop("trainer.resume", None)
    changes = [
        f"{name}={new.get(name)} (was {old.get(name)})"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    if changes:
        tell(f"Goes on with other settings than before: {', '.join(changes)}")


def _complete(run: dict[str, Any]) -> Any:
    """An experiment as JSON has it, with every setting that its components have in this version.

    Older versions wrote others. Settings of which none can be made in this one stay as they are.
    """

    def complete(package: str, component: dict[str, Any]) -> dict[str, Any]:
        try:
            settings = registry.make_config(package, component["name"], component["settings"])
        except (UserError, TypeError):  # one too many, or one without a default is missing
            return component
        return component | {"settings": asdict(settings)}

    packages = {"model": "models", "dataset": "data"}
    parts = {part: complete(package, run[part]) for part, package in packages.items()}
    loss = {name: complete("losses", term) for name, term in run["loss"].items()}
    return json.loads(json.dumps(run | parts | {"loss": loss}))


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names, the components' own beside their common ones."""
    if not isinstance(value, dict):
        return {path: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flatten(inner, path if key == "settings" else f"{path}.{key}".lstrip("."))
    return found
