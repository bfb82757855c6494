"""What an interrupted run left: its checkpoint, and how its settings differ from those of now."""

import json
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import registry
from ..errors import UserError, count_of
from ..io.weights import check_same
from ..zoo.load import WEIGHTS
from . import LAST, optim
from .settings import Experiment, Trainer, flatten

KEPT = "checkpoints"  # folder of the checkpoints of the last saves
OF_THE_START = ("trainer.initial", "model.init_from", "optimizer.parts")
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


@dataclass(frozen=True)
class _Saved:
    """What a checkpoint has: weights, steps that were done, and of how many rates were planned."""

    state: dict[str, Tensor]
    step: int
    planned: int


def check_resumed(path: Path, model: nn.Module, steps: int) -> None:
    """UserError where the checkpoint is damaged, of another model, or of a run of another length,
    for which its learning rates were planned."""
    saved = _read(path)
    if saved is None:
        kept = sorted((path.parent / KEPT).glob("step_*.ckpt"), reverse=True)
        newest = next((place for place in kept if _read(place) is not None), None)
        remedy = f"remove it and copy {newest}, the newest that can be read, to its place"
        raise UserError(
            f"{path} is not a readable checkpoint",
            "one that pmsplat wrote",
            "start a new run (output=...)" if newest is None else remedy,
        )
    if saved.planned != optim.total_steps(steps):
        raise UserError(
            f"{path} of a run whose learning rate was planned for other than {steps} steps",
            f"trainer.steps as before ({saved.planned - optim.total_steps(0)})",
            f"start a new run from its weights: {_name_new_run(path)}",
        )
    theirs = {name.removeprefix("model."): value for name, value in saved.state.items()}
    check_same(theirs, model.state_dict(), str(path), AS_WRITTEN)


def _read(path: Path) -> _Saved | None:
    """A checkpoint, its tensors left on the disk; None for what is none, or is damaged."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        planned = content["lr_schedulers"][0]["total_steps"]
        return _Saved(content["state_dict"], content["global_step"], planned)
    except (RuntimeError, OSError, KeyError, EOFError, pickle.UnpicklingError):
        return None


def is_finished(path: Path, steps: int, tell: Callable[[str], None]) -> bool:
    """Whether a checked checkpoint leaves nothing to do, which is told.

    All steps are done, and the model was written after it: a run may be killed between the two.
    """
    saved, model = _read(path), path.with_name(WEIGHTS)
    assert saved is not None
    if saved.step < steps or not model.is_file() or model.stat().st_mtime < path.stat().st_mtime:
        return False
    tell(
        f"All {count_of(steps, 'step')} (trainer.steps) were done before: {model}. More of them "
        "want a new run, since the learning rate has fallen to its end: "
        f"{_name_new_run(path)} trainer.steps=..."
    )
    return True


def _name_new_run(last: Path) -> str:
    return f"trainer.initial={last.with_name(WEIGHTS)} output=..."


def add_resume(problem: UserError, output: Path) -> UserError:
    """The problem with, in its remedy, how to go on from the checkpoint that is left, if any.

    It may be of an earlier step: several devices cannot agree to save where one has failed.
    """
    saved = _read(output / LAST)
    if saved is None:
        return problem
    left = f"{output / LAST}, which is of step {saved.step},"
    kept = f"{problem.remedy}, and go on from {left} by trainer.resume=true"
    return UserError(problem.got, problem.wanted, kept)


def tell_changes(before: Any, experiment: Experiment, tell: Callable[[str], None]) -> None:
    """Names the settings that a resumed run changes: the user means them, or forgot them.

    UserError for one that acts at the start of a run alone.
    """
    old, new = (flatten(_complete(run)) for run in (before, asdict(experiment)))
    for values in (old, new):
        values.pop("trainer.resume", None)
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    for name in names:
        if name in OF_THE_START:
            before_it, now = (json.dumps(values.get(name)) for values in (old, new))
            raise UserError(
                f"{name}={now} for a run that began with {before_it}",
                "the same when it goes on, since only a new run can take another",
                f"set {name}={before_it}, or start a new run (output=...)",
            )
    if names:
        changes = (f"{name}={new.get(name)} (was {old.get(name)})" for name in names)
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
