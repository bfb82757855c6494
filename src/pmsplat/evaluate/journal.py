"""Scenes of an evaluation as they are done, so that an interrupted one goes on where it stopped,
and shards that were measured apart are joined."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import UserError, count_of
from .cost import Cost
from .protocol import Row
from .views import ViewRow

SHARDS = "shard-*-of-*"  # folders of shards beside the results


def shard_folder(folder: Path, shard: tuple[int, int]) -> Path:
    """Where the scenes of a shard are kept, in the folder of the results."""
    return folder / SHARDS.replace("*", "{}").format(*shard)


class Journal:
    """What is kept beside `results` until they are written: NAME.partial-RANK.jsonl, of a shard
    (i, n) in shard-i-of-n/.

    The first line says what is measured, `identity`: strings by what they speak of, None where one
    is not known; the others are a scene each. A process may die at any moment: half a line does not
    count. Neither do scenes of another identity, or of one that is not known.
    """

    def __init__(
        self,
        results: Path,
        identity: Mapping[str, str | None],
        rank: int = 0,
        shard: tuple[int, int] | None = None,
    ) -> None:
        self.results, self.identity = results, dict(identity)
        folder = results.parent if shard is None else shard_folder(results.parent, shard)
        self.path = folder / f"{results.stem}.partial-{rank}.jsonl"

    def read(self, tell: Callable[[str], None]) -> dict[str, Row]:
        """The scenes that are done, of all ranks and shards, by name; `tell` gets what became of
        them."""
        rows: dict[str, Row] = {}
        changed: dict[str, None] = {}
        for path in self._files():
            lines = _read_lines(path)
            if len(lines) < 2:
                continue
            if differences := self._compare(lines):
                changed |= dict.fromkeys(differences)
            else:
                rows = {row.scene: row for row in map(_to_row, lines[1:])} | rows
        folder = self.results.parent
        if changed:
            what = " and ".join(changed)
            tell(f"The earlier evaluation in {folder} differs in {what}: it is begun anew.")
        if rows:
            verb = "is" if len(rows) == 1 else "are"
            tell(
                f"{count_of(len(rows), 'scene')} of the earlier evaluation in {folder} {verb} "
                "kept; to begin anew, remove *.partial-*.jsonl there."
            )
        return rows

    @contextmanager
    def writer(self) -> Iterator[Callable[[Row], None]]:
        """Yields a function that adds a scene of this rank."""
        file = None
        with ExitStack() as stack:

            def add(row: Row) -> None:
                nonlocal file
                if file is None:
                    file = stack.enter_context(self._open())
                _write_line(file, asdict(row))

            yield add

    def remove(self) -> None:
        """Forgets the scenes, whose results are written."""
        for path in self._files():
            path.unlink(missing_ok=True)
        for folder in self.results.parent.glob(SHARDS):
            with suppress(OSError):  # another method's scenes lie in it
                folder.rmdir()

    @staticmethod
    def forget(folder: Path) -> None:
        """Removes what is kept of all evaluations in a folder, or below it."""
        for path in folder.rglob("*.partial-*.jsonl"):
            path.unlink(missing_ok=True)

    def _open(self) -> BinaryIO:
        """The file of this rank, after what is kept of it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = b"" if self._compare(_read_lines(self.path)) else _whole_lines(self.path)
        file = self.path.open("r+b" if kept else "wb")
        file.truncate(len(kept))
        file.seek(len(kept))
        if not kept:
            _write_line(file, {"identity": self.identity})
        return file

    def _files(self) -> list[Path]:
        """Those of all ranks and shards; this one's may not be among them."""
        folder, name = self.results.parent, f"{self.results.stem}.partial-*.jsonl"
        return sorted([*folder.glob(name), *folder.glob(f"{SHARDS}/{name}")])

    def _compare(self, lines: list[Any]) -> list[str]:
        """In what the scenes of a file may differ from those that are measured."""
        if not lines:
            return []
        before = lines[0]["identity"]
        unknown = [f"{name} (not known)" for name, value in self.identity.items() if value is None]
        return unknown + [
            name for name, value in self.identity.items() if before.get(name) != value
        ]


def _write_line(file: BinaryIO, content: Any) -> None:
    """Of which the system has all or, where the process dies, a part without an end."""
    file.write(json.dumps(content).encode() + b"\n")
    file.flush()


def _whole_lines(path: Path) -> bytes:
    """What was written up to the last line that is whole."""
    if not path.exists():
        return b""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _read_lines(path: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in _whole_lines(path).splitlines()]
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error})",
            "the scenes of an interrupted evaluation",
            "remove it, and those scenes are measured again",
        ) from error


def _to_row(content: Mapping[str, Any]) -> Row:
    """The inverse of `asdict`."""
    cost = content["cost"]
    return Row(
        scene=content["scene"],
        targets=content["targets"],
        values=content["values"],
        views=tuple(ViewRow(**view) for view in content["views"]),
        cost=None if cost is None else Cost(**cost),
    )
