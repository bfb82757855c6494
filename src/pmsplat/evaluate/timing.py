"""Wall time of parts of a run, with the device synchronized before and after each part."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mean

import torch


class Stopwatch:
    """Measures named parts: `with watch("encode"): …`; the first `skip` runs of each are warm-up.

    Synchronizes with `device` before and after each part, so that queued CUDA work counts for the
    part that launched it.
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
        """Returns mean seconds of each part after its warm-up, or of all its runs if few."""
        return {name: mean(run[self.skip :] or run) for name, run in self.seconds.items()}

    @property
    def warm_up_included(self) -> bool:
        """Whether the mean of some part includes its warm-up, for want of further runs."""
        return any(len(run) <= self.skip for run in self.seconds.values())

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
