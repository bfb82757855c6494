"""What a question's process says to the one that waits for it: a file of lines, one for a case."""

import json
from pathlib import Path
from typing import Any


def note(rows: Path, case: str | None, figures: dict[str, Any]) -> None:
    """Appends a line: what is known of a case, or of the question where there is no case.

    Empty figures say that the case was begun.
    """
    with rows.open("a") as file:
        file.write(json.dumps({"case": case, "figures": figures}) + "\n")


def read(rows: Path) -> dict[str, Any]:
    """What all lines together say; a later one replaces an earlier one of its case."""
    answer: dict[str, Any] = {"cases": {}}
    for line in rows.read_text().splitlines():
        try:
            found = json.loads(line)
        except json.JSONDecodeError:  # its process was killed while it wrote
            continue
        if found["case"] is None:
            answer |= found["figures"]
        else:
            answer["cases"][found["case"]] = found["figures"]
    return answer
