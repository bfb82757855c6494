"""metrics.json: what a verb measured, and the mean over its rows."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...io.files import write_text
from .folder import MARK


def write_summary(folder: Path, summary: Any) -> None:
    """Writes a dataclass as the metrics.json of a folder."""
    write_text(folder / MARK, json.dumps(asdict(summary), indent=1) + "\n")


def average(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every value, over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in columns.items()}
