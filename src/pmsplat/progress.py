"""How long work shows how far it is, without knowing who looks."""

from collections.abc import Iterable
from typing import Any, Protocol


class Track(Protocol):
    """`rich.progress.track`, or something like it."""

    def __call__(self, sequence: Iterable[Any], description: str, total: int) -> Iterable[Any]: ...


def silently(sequence: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """The `Track` that shows nothing."""
    return sequence
