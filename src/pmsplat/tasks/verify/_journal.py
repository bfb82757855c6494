"""What is known of the chunks of a folder, kept on the disk chunk by chunk."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...data import ChunkFacts, SceneFacts
from ...io.chunks import QUARANTINE
from ...io.files import atomic

JOURNAL = "verified.jsonl"

_VERSION = 1  # of the checks: facts of another version are found out again


class Journal:
    """What is known of each chunk of a folder: a line of a file, written when it is found out.

    Begins with what earlier runs found out about chunks that have not changed since, by size and
    time, unless all is looked at `again`. A folder that cannot be written keeps nothing, which
    `tell` hears.
    """

    def __init__(self, folder: Path, again: bool, tell: Callable[[str], None]) -> None:
        self.path, self.writable = folder / JOURNAL, os.access(folder, os.W_OK)
        known = {} if again else _read(self.path)
        self._facts = {name: line.facts for name, line in known.items()}
        if self.writable:
            with atomic(self.path) as temporary:  # without a line that was cut off
                temporary.write_text("".join(line.text for line in known.values()))
        else:
            tell(f"{folder} cannot be written: nothing is kept there, nor is {QUARANTINE}.")

    def __contains__(self, file: Path) -> bool:
        return file.name in self._facts

    def __getitem__(self, file: Path) -> ChunkFacts:
        return self._facts[file.name]

    def add(self, file: Path, facts: ChunkFacts) -> None:
        """Keeps the facts of a chunk file, on the disk too."""
        self._facts[file.name] = facts
        if self.writable:
            with self.path.open("a") as stream:
                stream.write(json.dumps(_identify(file) | asdict(facts)) + "\n")


def read_facts(folder: Path) -> dict[str, ChunkFacts]:
    """What is known of the chunk files of a folder that have not changed since, by name."""
    return {name: line.facts for name, line in _read(folder / JOURNAL).items()}


@dataclass(frozen=True)
class _Line:
    text: str
    facts: ChunkFacts


def _read(path: Path) -> dict[str, _Line]:
    """The lines of a journal that are still true, by chunk file."""
    true = {}
    for text in path.read_text().splitlines(True) if path.is_file() else ():
        try:
            entry = json.loads(text)
            file = path.parent / entry["chunk"]
            if text.endswith("\n") and entry | _identify(file) == entry:
                true[file.name] = _Line(text, _parse(entry))
        except (ValueError, KeyError, TypeError, OSError):  # cut off, or the chunk is gone
            continue
    return true


def _identify(file: Path) -> dict[str, Any]:
    """By what a chunk file is known to be the one that was looked at."""
    status = file.stat()
    return {
        "chunk": file.name,
        "bytes": status.st_size,
        "modified": status.st_mtime_ns,
        "version": _VERSION,
    }


def _parse(entry: dict[str, Any]) -> ChunkFacts:
    scenes = tuple(
        SceneFacts(
            **scene
            | {name: tuple(scene[name]) for name in ("remarks", "sketch")}
            | {"size": scene["size"] and tuple(scene["size"])}
        )
        for scene in entry["scenes"]
    )
    return ChunkFacts(scenes, entry["fault"], entry["detail"], entry["nameless"])
