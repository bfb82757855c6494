"""The YAML files of the configuration, found without importing what they configure."""

import re
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError
from .registry import suggest
from .shipped_files import find_shipped


def folder() -> Path:
    """Those that an installed wheel carries, else `config/` of the clone.

    Raises UserError where there are neither.
    """
    return find_shipped("configuration/main.yaml", "config/main.yaml").parent


def choices(group: str) -> list[str]:
    """Returns the YAML files of a group ("experiment", "model", "dataset", "loss", "renderer")."""
    return sorted(path.stem for path in (folder() / group).glob("*.yaml"))


def unknown(group: str, name: str, known: Sequence[str]) -> UserError:
    """That there is no such file or component of a group, with the nearest that there is."""
    return UserError(
        f"there is no {group} {name!r}",
        f"one of {', '.join(known)}",
        suggest(name, list(known)),
    )


def check_experiment(overrides: Sequence[str]) -> None:
    """UserError for `+experiment=NAME` without a file, before torch is imported, for seconds.

    Other overrides are judged by `config.compose`, and this one again.
    """
    for override in overrides:
        found = re.fullmatch(r"\+experiment=(\w+)", override)
        if found and found[1] not in (known := choices("experiment")):
            raise unknown("experiment", found[1], known)
