"""Scenes to try the app with: photographs that come with pmsplat, and a room that is computed."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ...data import synthetic
from ...errors import UserError
from ...scene import Scene, chunk_scene, open_scene
from ..demo import sample_photos

ROOM, FRAMES, SIZE = "room-app-2", 7, (192, 256)


@dataclass(frozen=True)
class Example:
    """A scene that one may choose instead of bringing photos."""

    label: str
    open: Callable[[], Scene]


def list_examples() -> list[Example]:
    """Those that are here."""
    found = [Example("A computed room", _make_room)]
    with suppress(UserError):
        office = sample_photos()
        found.insert(0, Example("Photos of an office", lambda: open_scene(office)))
    return found


def _make_room() -> Scene:
    return chunk_scene(synthetic.scene(ROOM, FRAMES, SIZE))
