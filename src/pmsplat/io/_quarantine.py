"""Which chunks and scenes of a split are known to be damaged: see `chunks`."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from .files import write_text

QUARANTINE = "quarantine.json"


@dataclass(frozen=True)
class Quarantine:
    """What training and evaluation leave out of a split: chunk files and scene keys, with reasons.

    False where nothing is left out.
    """

    chunks: dict[str, str] = field(default_factory=dict)
    scenes: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.chunks or self.scenes)


def read_quarantine(folder: str | Path) -> Quarantine:
    """Reads the quarantine of a split folder; empty where it has none.

    Raises UserError for a file that is not one.
    """
    path = Path(folder) / QUARANTINE
    return parse_quarantine(path.read_bytes() if path.is_file() else None, str(folder))


def parse_quarantine(data: bytes | None, folder: str) -> Quarantine:
    """The quarantine of a split by the bytes of its file, None if it has none."""
    if data is None:
        return Quarantine()
    try:
        content = json.loads(data)
        return Quarantine(_reasons(content, "chunks"), _reasons(content, "scenes"))
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{folder}/{QUARANTINE} is no quarantine ({error})",
            "JSON {'chunks': {file: reason}, 'scenes': {key: reason}}",
            f"write it again with `pmsplat data verify {folder}`",
        ) from error


def write_quarantine(folder: str | Path, quarantine: Quarantine) -> None:
    """Writes the quarantine of a split folder, all or nothing; an empty one removes the file."""
    path = Path(folder) / QUARANTINE
    if quarantine:
        write_text(path, json.dumps(vars(quarantine), indent=1) + "\n")
    else:
        path.unlink(missing_ok=True)


def _reasons(content: Any, name: str) -> dict[str, str]:
    return {str(key): str(reason) for key, reason in content.get(name, {}).items()}
