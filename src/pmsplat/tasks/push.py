"""A training run, or a checkpoint of one, onto the Hugging Face hub, with a card that says all."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..evaluate.runs import Run, find_runs, read_run
from ..io.weights import sha256
from ..zoo import share
from ..zoo.load import CONFIG, ZOO, Loaded, open_model
from ..zoo.trained import TrainedOn, trained_on
from .fetch import HUB

TRAINING = "training.json"  # the settings of the training, in the repository
METRICS = ("psnr", "ssim", "lpips", "abs_rel", "rmse", "delta1")  # that a card shows
DATASETS = {"re10k": HUB["re10k"].repository, "dl3dv": HUB["dl3dv-480p"].repository}


@dataclass(frozen=True)
class Options:
    """`license`: an identifier of the hub, such as "mit"; None: the card names none.

    `results`: files of `pmsplat evaluate`, or folders with some; None: those in the folder of the
    weights. Results of other weights are left out, with a sentence.
    """

    license: str | None = None
    results: tuple[Path, ...] | None = None


@dataclass(frozen=True)
class Package:
    """What is pushed: the model, what it learned from, its card, and further files of text."""

    loaded: Loaded
    trained: TrainedOn | None
    about: share.About
    extra: dict[str, str]

    def write(self, folder: Path, name: str) -> list[Path]:
        """Writes the folder, and returns its files; `name`: of the repository, for examples."""
        share.write_folder(self.loaded, folder, self.trained, self.about, name, self.extra)
        return sorted(path for path in folder.iterdir() if path.is_file())

    def push(self, repository: share.Repository, private: bool = False) -> share.Pushed:
        """Uploads it, see `zoo.share.push`."""
        return share.push(self.loaded, repository, private, self.trained, self.about, self.extra)


def pack(
    source: str | Path, options: Options | None = None, tell: Callable[[str], None] = print
) -> Package:
    """Gathers what is pushed of the folder of a training run, or of a checkpoint.

    `tell` gets what a reader of the card would miss. UserError for a source that is no path, or no
    checkpoint, and for results that cannot be read.
    """
    chosen, source = options or Options(), Path(source)
    if not source.exists():
        named = str(source) in ZOO
        raise UserError(
            f"{source}, a published model" if named else f"no file or folder {source}",
            "the output folder of a training, or a checkpoint",
            "its authors have pushed it already" if named else "check the path",
        )
    loaded = open_model(source)
    path = loaded.path or source
    training = _read_training(path.parent / CONFIG) or _read_training(path.parent / TRAINING)
    trained = trained_on(path)
    runs = _own_runs(path, chosen, tell)
    if trained is None:
        tell(f"{path.parent} has no {CONFIG} of a training: the card does not say the data.")
    if not runs:
        tell("No results: the card has no table (`pmsplat evaluate` measures the model).")
    for name, terms in share.restrictions(loaded).items():
        tell(f"Training started from {name}, whose license is {terms}; the card says so.")
    if chosen.license is None:
        tell("No `license`: the card says that there is none, so others may not use the model.")
    dataset = None if training is None else training.get("dataset", {}).get("name")
    about = share.About(
        license=chosen.license,
        datasets=(DATASETS[dataset],) if dataset in DATASETS else (),
        training=() if training is None else _describe_training(training),
        scores=tuple(score for run in runs for score in _scores(run)),
        notes=tuple(note for run in runs for note in _describe_run(run)),
    )
    extra = {} if training is None else {TRAINING: json.dumps(training, indent=1) + "\n"}
    return Package(loaded, trained, about, extra)


def _read_training(path: Path) -> dict[str, Any] | None:
    """The settings of a training without paths of this machine; None where there are none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_training = isinstance(content, dict) and {"model", "dataset", "trainer"} <= content.keys()
    return share.without_folders(content) if is_training else None


def _own_runs(path: Path, options: Options, tell: Callable[[str], None]) -> list[Run]:
    """The results of these very weights."""
    if options.results is None:
        files = [file for file in path.parent.rglob("results.json") if file.is_file()]
    else:
        files = [f for place in options.results for f in _files_at(place)]
    digest, runs = sha256(path), []
    for file in sorted(files):
        try:
            run = read_run(file)
        except UserError as error:
            if options.results is not None:
                raise
            tell(f"Left out: {error.got}.")
            continue
        if run.identity.get("weights") == digest:
            runs.append(run)
        else:
            tell(f"Left out: {file}, which is of other weights.")
    return runs


def _files_at(place: Path) -> Sequence[Path]:
    return find_runs(place) if place.is_dir() else [place]


def _scores(run: Run) -> list[share.Score]:
    dataset = DATASETS.get(run.protocol.dataset or "", "")
    means = run.means
    return [
        share.Score(_title(run), name, round(means[name], 5), dataset)
        for name in METRICS
        if name in means
    ]


def _title(run: Run) -> str:
    """What a row of the table is of: index or data, scenes, size, and whose cameras."""
    size = "" if run.protocol.size is None else f", {run.protocol.size[0]}x{run.protocol.size[1]}"
    poses = "" if run.protocol.poses == "given" else f", cameras {run.protocol.poses}"
    return f"{run.protocol.title} ({len(run.rows)} scenes{size}{poses})"


def _describe_run(run: Run) -> list[str]:
    """How the numbers can be had again, in a sentence."""
    identity = run.identity
    if "command" not in identity:
        return []
    words = share.without_folders(shlex.split(identity["command"]))
    code = f"pmsplat {identity.get('version', '')}".strip()
    code += f", commit {identity['commit']}" if "commit" in identity else ""
    return [f"{_title(run)}: measured with `{shlex.join(words)}` ({code})."]


def _describe_training(training: dict[str, Any]) -> tuple[str, ...]:
    """Lines of the card; all settings are in TRAINING."""
    trainer, model = training["trainer"], training["model"].get("settings") or {}
    lines = [
        f"Experiment: `{training.get('name', 'run')}`; all settings are in {TRAINING}",
        f"Steps: {trainer['steps']:,}, of {trainer['batch_size']} scenes on each device, "
        f"precision {trainer['precision']}, seed {training.get('seed')}",
    ]
    losses = [f"{key} ({term['weight']:g})" for key, term in training.get("loss", {}).items()]
    lines += [f"Losses, with their weights: {', '.join(losses)}"] if losses else []
    if sources := [*(model.get("init_from") or ()), trainer.get("initial")]:
        named = ", ".join(str(source) for source in sources if source)
        lines += [f"Started from: {named}"] if named else []
    return tuple(lines)
