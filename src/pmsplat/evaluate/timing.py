"""Wall time of parts of a run, with the device synchronized before and after each part."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Measures named parts: `with watch("encode"): …` adds to `seconds`.

    Synchronizes with `device` before and after each part, so that queued CUDA work counts for the
    part that launched it.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._synchronize()
        start = time.perf_counter()
        yield
        self._synchronize()
        self.seconds[name] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """The seconds of each part since the last call."""
        taken = dict(self.seconds)
        self.seconds.clear()
        return taken

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
