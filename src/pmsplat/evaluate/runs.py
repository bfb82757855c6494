"""Evaluations that were written earlier: results.json back as values, and whether they compare."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from ..errors import UserError, count_of, name_some
from .baselines import BASELINES
from .coverage import Coverage
from .fitted import GIVEN
from .identity import name_precision
from .protocol import Result, Row
from .views import ViewRow

RESULTS = "results.json"
BASELINE_NAMES = {run.__name__: label for label, run in BASELINES.items()}
APART = "make a report of each, or join them with `pmsplat leaderboard`"
DIGITS = 12  # of a hash, where people read it
LARGE = 1e300  # numbers beyond are none


@dataclass(frozen=True)
class Protocol:
    """What must be equal for numbers to compare; None: the file does not say.

    `index` is a file's name and `index_hash` the SHA-256 of its content, `size` (height, width) of
    the pictures, `poses` whose cameras were used (see `fitted`). `named` is the name of the
    protocol, `official` whether the frames are its authors', and `frames` the hash of these.
    """

    dataset: str | None = None
    index: str | None = None
    index_hash: str | None = None
    size: tuple[int, int] | None = None
    poses: str = GIVEN
    named: str | None = None
    official: bool | None = None
    frames: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Equal for results that may share a table: data by index, size, poses."""
        index = self.frames or self.index_hash
        data = index or f"{self.dataset or 'unknown'}/{self.index or ''}"
        return data, str(self.size), self.poses

    @property
    def title(self) -> str:
        """The name of the protocol, else of the index, else that of the data."""
        return self.named or self.index or self.dataset or "unknown data"

    @property
    def size_text(self) -> str:
        return "unknown" if self.size is None else f"{self.size[0]} × {self.size[1]}"


@dataclass(frozen=True)
class Run:
    """One file of results.

    `identity`, `cost` and `coverage` are those of the file, as far as it has them; `seconds` are
    means of a scene, over the first ones of a process too where `warm_up`. `facts` are further
    settings for people: a name and a value.
    """

    name: str
    path: Path
    protocol: Protocol
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    identity: Mapping[str, str] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    coverage: Coverage | None = None
    warm_up: bool = False

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def is_baseline(self) -> bool:
        """It measures no model: it has no weights."""
        return self.path.stem in BASELINE_NAMES

    @property
    def by_scene(self) -> dict[str, Row]:
        return {row.scene: row for row in self.rows}

    @property
    def views(self) -> list[ViewRow]:
        """The targets of all scenes, one by one; none where the file has only scenes."""
        return [view for row in self.rows for view in row.views]

    @property
    def means(self) -> dict[str, float]:
        """The mean of each metric over the scenes that have it."""
        return Result(list(self.rows)).means

    def at(self, scenes: Iterable[str]) -> "Run":
        """The run as if only these scenes had been measured, in the order of the run."""
        wanted = set(scenes)
        rows = tuple(row for row in self.rows if row.scene in wanted)
        return replace(self, rows=rows)


def read_run(path: str | Path) -> Run:
    """A results.json, or the one in a folder, or a baseline's file beside it.

    Raises UserError where there is none, and for what `pmsplat evaluate` did not write.
    """
    path = Path(path)
    path = path / RESULTS if path.is_dir() else path
    content = _read_json(path)
    rows = _read_rows(path, content)
    if not rows:
        raise _no_results(path, "has no scene in 'per_scene'")
    names = [row.scene for row in rows]
    if twins := [name for name in dict.fromkeys(names) if names.count(name) > 1][:1]:
        raise _no_results(path, f"has the scene {twins[0]!r} twice")
    return describe_run(path, content, rows)


def describe_run(path: Path, content: Mapping[str, Any], rows: tuple[Row, ...] = ()) -> Run:
    """What a file of results says, with these rows."""
    seconds = _numbers(content.get("seconds"))
    cost = {f"{name}_seconds": value for name, value in seconds.items()}
    facts = {name: _text(content.get(name)) for name in ("steps", "anchors", "poses")}
    return Run(
        name=_name(path, content),
        path=path,
        protocol=_read_protocol(content),
        rows=rows,
        notes=tuple(str(note) for note in _list(content.get("notes"))),
        identity=_texts(content.get("identity")),
        cost=cost | _numbers(content.get("cost")),
        facts={name: text for name, text in facts.items() if text},
        coverage=Coverage.read(_numbers(content.get("coverage"))),
        warm_up=content.get("seconds_with_warm_up") is True,
    )


def name_runs(runs: Sequence[Run], names: Sequence[str] | None = None) -> list[Run]:
    """The runs with these names, or with their own, told apart by precision, and by folder.

    UserError where there are not as many names as runs, or two are equal.
    """
    runs = [replace(r, name=name_precision(r.name, r.identity.get("precision"))) for r in runs]
    if names is None:
        found = [run.name for run in runs]
        twins = {name for name in found if found.count(name) > 1}
        found = [f"{r.name} ({r.folder.name})" if r.name in twins else r.name for r in runs]
        names = [
            name if found[:i].count(name) == 0 else f"{name} {found[:i].count(name) + 1}"
            for i, name in enumerate(found)
        ]
    if len(names) != len(runs) or len(set(names)) < len(names) or not all(names):
        raise UserError(
            f"{len(names)} `names` ({name_some(list(names))}) for {len(runs)} files of results",
            "a name for each, no two equal",
            "leave `names` out to take those of the models",
        )
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def check_comparable(runs: Sequence[Run]) -> None:
    """Raises UserError for runs whose numbers must not stand in one table.

    Other poses, pictures of another size, another index, other targets or photographs, no scene in
    common. What a file does not say is no difference.
    """
    for first, other in combinations(runs, 2):
        both = f"{first.name!r} and {other.name!r}"
        _check_protocols(first.protocol, other.protocol, both)
        _check_photos(first, other)
    if not common_scenes(runs):
        names = [repr(run.name) for run in runs]
        raise UserError(
            f"no scene that {name_some(names)} have in common",
            "results on the same scenes",
            "measure all with the same index",
        )


def common_scenes(runs: Sequence[Run]) -> list[str]:
    """The scenes that every run has, in the order of the first."""
    shared = set.intersection(*(set(run.by_scene) for run in runs))
    return [row.scene for row in runs[0].rows if row.scene in shared]


def find_runs(folder: str | Path) -> list[Path]:
    """The files of results in a folder, or below it, sorted; UserError where there is none."""
    folder = Path(folder)
    if (folder / RESULTS).is_file():
        return [folder / RESULTS]
    if found := sorted(folder.rglob(RESULTS)):
        return found
    raise UserError(
        f"no {RESULTS} in {folder}",
        "a folder into which `pmsplat evaluate` wrote, or one with such folders",
        "check the path",
    )


def check_replaces(path: Path, new: Run, scenes: Iterable[str] = ()) -> None:
    """Raises UserError where `path` has results that `new` must not replace.

    Those of another model, precision or protocol, or of scenes that are not among `scenes` (none:
    they are not known), and a file that `pmsplat evaluate` did not write.
    """
    if not path.exists():
        return
    wanted, remedy = "a folder for each evaluation", "give another `output`, or remove that file"
    try:
        old = read_run(path)
    except UserError as error:
        raise UserError(error.got, wanted, remedy) from error
    if old.name != new.name:
        raise UserError(f"{path} has results of {old.name!r}, not of {new.name!r}", wanted, remedy)
    was, now = old.identity.get("precision"), new.identity.get("precision")
    if None not in (was, now) and was != now:
        raise UserError(f"{path} has results in {was}, not in {now}", wanted, remedy)
    both = f"those in {path} and the new ones"
    _check_protocols(old.protocol, new.protocol, both, remedy)
    known = set(scenes)
    if known and (lost := [name for name in old.by_scene if name not in known]):
        count = count_of(len(lost), "scene")
        got = f"{path} has results of {count} that this evaluation leaves out ({name_some(lost)})"
        raise UserError(got, wanted, remedy)


def _check_protocols(a: Protocol, b: Protocol, both: str, remedy: str = APART) -> None:
    if a.poses != b.poses:
        raise UserError(
            f"results of the protocols {a.poses} and {b.poses} ({both})",
            "results whose cameras come from the same place, as their numbers do not compare",
            remedy,
        )
    if None not in (a.size, b.size) and a.size != b.size:
        raise UserError(
            f"pictures of {a.size_text} and {b.size_text} ({both})",
            "results of one size, as metrics depend on it",
            remedy,
        )
    if None not in (a.named, b.named) and a.named != b.named:
        raise UserError(
            f"results of the protocols {a.named} and {b.named} ({both})",
            "results of one protocol, as their numbers do not compare",
            remedy,
        )
    by_frames, by_hash = {a.frames, b.frames}, {a.index_hash, b.index_hash}
    by_name: set[str | None] = {a.index, b.index}
    known = next((found for found in (by_frames, by_hash) if None not in found), by_name)
    if None not in known and len(known) > 1:
        raise UserError(
            f"results of two indices, {_describe(a)} and {_describe(b)} ({both})",
            "results of one index, as their numbers do not compare",
            remedy,
        )


def find_other_photos(one: Run, other: Run) -> str | None:
    """The first scene that both measured on different targets or pixels, by their hashes."""
    photos = {row.scene: _list_photos(row) for row in one.rows}
    for row in other.rows:
        ours, theirs = photos.get(row.scene), _list_photos(row)
        if ours and theirs and ours != theirs:
            return row.scene
    return None


def _check_photos(one: Run, other: Run) -> None:
    if scene := find_other_photos(one, other):
        raise UserError(
            f"other photographs of scene {scene!r} in {one.name!r} and {other.name!r}",
            'the same targets and pixels (equal hashes in "per_view")',
            APART,
        )


def _list_photos(row: Row) -> dict[str, str]:
    return {view.view: view.truth for view in row.views if view.truth}


def shorten_hash(text: str) -> str:
    """The first digits of a hash, with the "+" of a commit with changes."""
    return text if len(text) < 2 * DIGITS else text[:DIGITS] + "+" * text.endswith("+")


def _describe(protocol: Protocol) -> str:
    digits = f" ({shorten_hash(protocol.index_hash)})" if protocol.index_hash else ""
    return f"{protocol.index or protocol.title}{digits}"


def _no_results(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} {why}",
        f"a {RESULTS} that `pmsplat evaluate` wrote",
        "check the path, or measure again",
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"there is no file {path}", f"a {RESULTS} of `pmsplat evaluate`", "check the path"
        )
    try:
        content = json.loads(path.read_bytes())
        json.dumps(content, ensure_ascii=False).encode()  # half of a letter cannot be written again
    except (ValueError, RecursionError) as error:
        raise _no_results(path, f"is no JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("means"), dict):
        raise _no_results(path, "has no 'means'")
    return content


def _entries(path: Path, content: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    entries = _list(content.get(key))
    if not all(isinstance(e, dict) and isinstance(e.get("scene"), str) for e in entries):
        raise _no_results(path, f"has something else than scenes in {key!r}")
    return entries


def _read_rows(path: Path, content: Mapping[str, Any]) -> tuple[Row, ...]:
    views: dict[str, list[ViewRow]] = {}
    for entry in _entries(path, content, "per_view"):
        views.setdefault(entry["scene"], []).append(_read_view(path, entry))
    rows = []
    for entry in _entries(path, content, "per_scene"):
        scene, targets = entry["scene"], entry.get("targets")
        if type(targets) is not int:
            raise _no_results(path, f"does not say how many targets the scene {scene!r} has")
        values = _numbers({k: v for k, v in entry.items() if k not in ("scene", "targets")})
        rows.append(Row(scene, targets, values, tuple(views.get(scene, ()))))
    return tuple(rows)


def _read_view(path: Path, entry: Mapping[str, Any]) -> ViewRow:
    if not isinstance(entry.get("view"), str):
        raise _no_results(path, f"has a target without a name in the scene {entry['scene']!r}")
    values = _numbers({k: v for k, v in entry.items() if k not in ("scene", "view")})
    hashes = _texts({k: entry.get(k) for k in ("prediction", "truth")})
    return ViewRow(entry["view"], values, hashes.get("prediction"), hashes.get("truth"))


def _read_protocol(content: Mapping[str, Any]) -> Protocol:
    experiment = _mapping(content.get("experiment"))
    dataset = _mapping(experiment.get("dataset"))
    settings = _mapping(dataset.get("settings"))
    size, index = settings.get("size"), settings.get("index")
    about = _mapping(content.get("index"))
    official, frames = about.get("official"), _text(about.get("frames")) or None
    size = size if isinstance(size, list) and [type(x) for x in size] == [int, int] else None
    return Protocol(
        dataset=_text(dataset.get("name")) or None,
        index=Path(index).name if isinstance(index, str) and index else None,
        index_hash=_texts(content.get("identity")).get("index"),
        size=(size[0], size[1]) if size else None,
        poses=_text(content.get("protocol")) or GIVEN,
        named=_text(about.get("protocol")) or None,
        official=official if isinstance(official, bool) else None,
        frames=frames,
    )


def _name(path: Path, content: Mapping[str, Any]) -> str:
    """Of the model; a file model.safetensors, as training leaves it, is called as its folder."""
    if path.stem in BASELINE_NAMES:
        return BASELINE_NAMES[path.stem]
    model = Path(_text(content.get("model")) or path.parent.name or path.stem)
    named = model.with_suffix("") if model.suffix in (".safetensors", ".ckpt", ".pt") else model
    return named.parent.name if named.name == "model" and named.parent.name else named.name


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _numbers(value: Any) -> dict[str, float]:
    """The finite numbers of a mapping."""
    numbers = {k: v for k, v in _mapping(value).items() if type(v) in (int, float)}
    return {name: float(number) for name, number in numbers.items() if -LARGE < number < LARGE}


def _texts(value: Any) -> dict[str, str]:
    """What a mapping says, without what it does not know."""
    texts = {name: _text(item) for name, item in _mapping(value).items()}
    return {name: text for name, text in texts.items() if text}


def _text(value: Any) -> str:
    """A value for people, on one line; "" for none."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list):
        return " ".join(_text(item) for item in value)
    return "" if value is None else str(value)
