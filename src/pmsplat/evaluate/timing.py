"""Wall time of parts of a run, the device waited for at both ends."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mean

import torch


class Stopwatch:
    """Seconds of named parts: `with watch("encode"): …`; the first `skip` of each are warm-up.

    Waits for `device` before and after each part, so that no time of queued CUDA work is lost or
    booked on a later part.
    """

    def __init__(self, device: torch.device | str = "cpu", skip: int = 0) -> None:
        self.device, self.skip = torch.device(device), skip
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._synchronize()
        start = time.perf_counter()
        yield
        self._synchronize()
        self.seconds[name].append(time.perf_counter() - start)

    def means(self) -> dict[str, float]:
        """Mean seconds of each part after the warm-up; of all its runs where there are no more."""
        return {name: mean(run[self.skip :] or run) for name, run in self.seconds.items()}

    @property
    def warm_up_included(self) -> bool:
        """Whether a part had too few runs for its mean to leave the warm-up out."""
        return any(len(run) <= self.skip for run in self.seconds.values())

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
