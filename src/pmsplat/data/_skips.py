"""Scenes that a stream leaves out, told by the processes that load to the one that trains."""

import os
from dataclasses import dataclass
from queue import Empty

import torch.multiprocessing


@dataclass(frozen=True)
class Skip:
    """A scene that was left out, and why, in words that follow "it has".

    `damaged`: it cannot be read; otherwise the settings rule it out. `detail` says more about this
    scene. A chunk that cannot be read at all is left out as a `whole`, with all scenes that its
    split says are in it; the reason then is of the chunk, in words of its own.
    """

    chunk: str
    scenes: tuple[str, ...]
    reason: str
    damaged: bool
    detail: str = ""
    whole: bool = False

    @property
    def told(self) -> str:
        """The reason with its detail."""
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


class Skips:
    """What was left out: each scene once for each process that met it, in order."""

    def __init__(self) -> None:
        self._queue = torch.multiprocessing.get_context("spawn").Queue()
        self._known: set[Skip] = set()
        self._here: list[Skip] = []
        self._owner = os.getpid()

    def add(self, skip: Skip) -> None:
        """Says that a scene is left out; never waits."""
        if skip in self._known:
            return
        self._known.add(skip)
        if os.getpid() == self._owner:
            self._here.append(skip)
            return
        self._queue.cancel_join_thread()  # a process that ends does not wait for a reader
        self._queue.put(skip)

    def take(self) -> list[Skip]:
        """What was said since the last call."""
        found, self._here = self._here, []
        while True:
            try:
                found.append(self._queue.get_nowait())
            except Empty:
                return found
