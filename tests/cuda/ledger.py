"""What a device would have been asked to do: launches, waits of the host, bytes, by stage."""

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

MACHINERY = (
    "/torch/",
    "/tests/cuda/",
    "/jaxtyping/",
    "/einops/",
    "/contextlib.py",
    "<",
    "/triton/",
)
GRANULE = 512  # bytes, to which CUDA's allocator of torch rounds


@dataclass
class Stage:
    """Launches by operator and by line, waits by place and reason, and the most bytes alive.

    `kernels` is how many launches these are on a GPU, estimated (see `kernels`). `peak` counts what
    lies above the bytes that were alive where `Ledger.base` was set.
    """

    launches: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    kernels: int = 0
    peak: int = 0


class Ledger:
    """Counts for the stage at hand, and follows every storage from its birth to its end."""

    def __init__(self) -> None:
        self.stages: dict[str, Stage] = {}
        self.here: Stage | None = None
        self.alive = self.base = 0
        self.capturing = False  # a graph, which a wait would break
        self.kernels: dict[str, dict[str, Any]] = {}  # Triton's, see `triton_launches`
        self._known: dict[int, weakref.finalize] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts what happens inside under `name`; a stage inside a stage counts for itself."""
        before, self.here = self.here, self.stages.setdefault(name, Stage())
        self._note_peak()
        try:
            yield
        finally:
            self.here = before

    def turn_to(self, name: str) -> None:
        """Counts under `name` from here to the end of the stage at hand."""
        self.here = self.stages.setdefault(name, Stage())
        self._note_peak()

    def forget(self) -> None:
        """Begins anew, as after a warm-up."""
        self.stages.clear()
        self.rebase()

    def rebase(self) -> None:
        """What is alive now no longer counts as use."""
        self.base = self.alive

    def launch(self, name: str, count: int = 1, kernels: int | None = None) -> None:
        """Notes launches that there are at least, and the `kernels` that they are, if more."""
        if self.here is not None and count:
            self.here.launches[name] += count
            self.here.lines[place()] += count
            self.here.kernels += count if kernels is None else kernels

    def wait(self, reason: str) -> None:
        """Notes that the host waits for the device here; RuntimeError in the capture of a graph."""
        if self.capturing:
            raise RuntimeError(f"{place()}: {reason}, while a graph is captured")
        if self.here is not None:
            self.here.waits[f"{place()}: {reason}"] += 1

    def allocate(self, tensor: torch.Tensor) -> None:
        """Notes the storage of a tensor, if it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = -(-storage.nbytes() // GRANULE) * GRANULE
        self._known[key] = weakref.finalize(storage, self._release, key, size)
        self.alive += size
        self._note_peak()

    def _release(self, key: int, size: int) -> None:
        self.alive -= size
        del self._known[key]

    def _note_peak(self) -> None:
        if self.here is not None:
            self.here.peak = max(self.here.peak, self.alive - self.base)


def place() -> str:
    """The innermost function that is not machinery, as "geometry/camera.py K_px".

    Backward passes of torch's own operators have none.
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        if "/src/pmsplat/" in path and name != "__torch_dispatch__":  # which looks on
            return f"{path.rpartition('/src/pmsplat/')[2]} {frame.f_code.co_qualname}"
        if "/site-packages/" in path and not any(part in path for part in MACHINERY):
            return f"{path.rpartition('/site-packages/')[2]} {frame.f_code.co_qualname}"
        frame = frame.f_back
    return "autograd"
