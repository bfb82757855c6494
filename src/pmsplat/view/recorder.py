"""The controls of the page that record a video through chosen views."""

import threading
from collections.abc import Callable
from itertools import chain, count
from pathlib import Path
from typing import Any

from ..geometry import camera, gaussian
from ..types import Cameras
from .stage import COLOR, EXTENT, Stage

KEY_COLOR, KEY_HEIGHT = (255, 140, 0), 0.06 * EXTENT  # of the camera of a key frame
FPS = 30
SECONDS, SHORTEST, LONGEST = 5.0, 0.1, 600.0  # of a video: default and limits
FEW = "Add two key frames or more."


class Stopped(Exception):
    """Raised inside a recording to stop it."""


class Recorder:
    """The key frames, and the controls that add them and save the video.

    `server` is viser's (Any, because viser is optional). Videos are saved as `path`, NAME.mp4, then
    NAME-2.mp4, and have `size` (height, width). Key frames are in the scaled unit of the stage.
    """

    def __init__(self, server: Any, stage: Stage, path: Path, size: tuple[int, int]) -> None:
        self.keys: list[Cameras] = []
        self._server, self._stage, self._path, self._size = server, stage, path, size
        self._drawn: list[Any] = []
        self._visible = True
        self._saving, self._stop = threading.Lock(), threading.Event()

    def add_controls(
        self, get_camera: Callable[[Any, tuple[int, int]], Cameras], get_kind: Callable[[], str]
    ) -> None:
        """Adds the controls; they get a browser's camera and the kind of picture it shows now."""
        gui = self._server.gui
        with gui.add_folder("Video"):
            self.add_key = gui.add_button("Add key frame", hint="the current view")
            self.clear = gui.add_button("Clear")
            self.seconds = gui.add_number("Seconds", SECONDS, min=SHORTEST, max=LONGEST, step=0.5)
            self.save = gui.add_button("Save video")
            self.cancel = gui.add_button("Stop", visible=False)
            self.progress = gui.add_progress_bar(0.0, visible=False)
            self.status = gui.add_markdown(FEW)
        self.add_key.on_click(lambda event: self.add(get_camera(event.client, self._size)))
        self.clear.on_click(lambda _: self.remove_keys())
        self.save.on_click(lambda _: self.record(get_kind()))
        self.cancel.on_click(lambda _: self.stop())

    def add(self, key: Cameras) -> None:
        """Adds a key frame (batch 1, view 1)."""
        self.keys.append(key)
        c2w, size = key.c2w[0, 0], self._size
        _, down = camera.field_of_view(key.K[0, 0]).tolist()
        self._drawn.append(
            self._server.scene.add_camera_frustum(
                f"/key frames/{len(self.keys)}", fov=down, aspect=size[1] / size[0],
                scale=KEY_HEIGHT, thickness=2.0, thickness_units="screen",
                color=KEY_COLOR, wxyz=gaussian.rotation_to_quat(c2w[:3, :3]).double().numpy(),
                position=c2w[:3, 3].double().numpy(), visible=self._visible,
            )
        )  # fmt: skip
        self.status.content = f"Key frames: {len(self.keys)}."

    def record(self, kind: str) -> None:
        """Saves a video of a kind of picture (colour for splats) and shows its path."""
        if len(self.keys) < 2:
            self.status.content = FEW
            return
        if not self._saving.acquire(blocking=False):
            return
        self._stop.clear()  # before "Stop" can be pressed: what is pressed then counts
        try:
            self._save(kind if kind in self._stage.kinds else COLOR)
        finally:
            self._saving.release()

    def stop(self) -> None:
        """Stops a running recording."""
        self._stop.set()

    def show(self, visible: bool) -> None:
        """Shows or hides the key frames."""
        self._visible = visible
        for frustum in self._drawn:
            frustum.visible = visible

    def _save(self, kind: str) -> None:
        path, frames = _find_free_path(self._path), max(2, round(self.seconds.value * FPS))
        stops = Cameras.joined(self.keys)

        def watch(frame: int) -> None:
            if self._stop.is_set():
                raise Stopped
            self.progress.value = 100 * frame / frames
            self.status.content = f"Frame {frame + 1} of {frames}."

        self.save.visible, self.cancel.visible, self.progress.visible = False, True, True
        try:
            self._stage.record(path, stops, frames, FPS, self._size, kind, watch)
            self.status.content = f"Saved {path}."
        except Stopped:
            self.status.content = "Stopped; nothing was saved."
        except OSError as error:
            self.status.content = f"{path} could not be written: {error.strerror or error}."
        finally:
            self.save.visible, self.cancel.visible, self.progress.visible = True, False, False

    def remove_keys(self) -> None:
        """Removes all key frames."""
        for frustum in self._drawn:
            frustum.remove()
        self.keys, self._drawn = [], []
        self.status.content = FEW


def _find_free_path(path: Path) -> Path:
    """Returns the first of NAME, NAME-2, NAME-3, … that does not exist."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(name for name in chain([path], numbered) if not name.exists())
