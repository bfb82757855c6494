"""What a prediction costs: Gaussians, bytes, seconds and memory of each scene, and of all."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

import torch

from ..geometry.pruning import count_kept
from ..io.gaussians.ply import bytes_per_gaussian
from ..types import Batch, StepOutput
from .timing import Stopwatch

WARM_UP = 5  # scenes of a process whose times do not count
UNIT = {"darwin": 1}.get(sys.platform, 1024)  # bytes in which the system counts resident memory

MEGABYTES = "10^6 bytes of the arrays as a .ply file has them (float32)"
SECONDS = f"means of a scene, without the first {WARM_UP} of each process where there are more"
PEAK_OF_DEVICE = (
    "torch.cuda.max_memory_allocated while a scene is encoded and drawn, all weights included"
)
PEAK_OF_PROCESS = "most resident memory of the process"


@dataclass(frozen=True)
class Cost:
    """What one scene took.

    `gaussians` are those that are drawn, and `bytes` theirs in a .ply file; `seconds` by part;
    `peak_bytes`: see PEAK_OF_DEVICE, and PEAK_OF_PROCESS on the CPU; `warm_up`: it was among the
    first of its process.
    """

    gaussians: int
    bytes: int
    seconds: dict[str, float]
    peak_bytes: int | None
    warm_up: bool


class Meter:
    """A pipeline whose costs are booked: `cost` is that of the scene that was run last.

    `watch` is the pipeline's own stopwatch, `keep` the share of the Gaussians that it draws.
    """

    def __init__(
        self, run: Callable[[Batch], StepOutput], watch: Stopwatch, keep: float = 1.0
    ) -> None:
        self.run, self.watch, self.keep = run, watch, keep
        self.scenes = 0
        self.cost: Cost | None = None

    def __call__(self, batch: Batch) -> StepOutput:
        self.watch.take()
        _forget_peak(self.watch.device)
        step = self.run(batch)
        self.scenes += 1
        count = size = 0
        for gaussians in step.prediction.gaussians[-1:]:
            count = count_kept(gaussians.means.shape[1], self.keep)
            size = count * bytes_per_gaussian(gaussians)
        peak, warm_up = _measure_peak(self.watch.device), self.scenes <= WARM_UP
        self.cost = Cost(count, size, self.watch.take(), peak, warm_up)
        return step


@dataclass(frozen=True)
class Summary:
    """The costs of all scenes: means, and the largest peak.

    `seconds` leaves the warm-up out; where there is nothing else, it and `warm_up_included` tell.
    """

    gaussians: float
    megabytes: float
    seconds: dict[str, float]
    peak_bytes: int | None
    warm_up_included: bool


def summarize(costs: Sequence[Cost]) -> Summary:
    """Those of one scene or more."""
    timed = [cost for cost in costs if not cost.warm_up]
    parts = dict.fromkeys(part for cost in costs for part in cost.seconds)
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    return Summary(
        gaussians=mean(cost.gaussians for cost in costs),
        megabytes=mean(cost.bytes for cost in costs) / 1e6,
        seconds={part: mean(cost.seconds[part] for cost in timed or costs) for part in parts},
        peak_bytes=max(peaks, default=None),
        warm_up_included=not timed,
    )


def define_costs(device: torch.device) -> dict[str, str]:
    """What the costs of results are, by name."""
    peak = PEAK_OF_DEVICE if device.type == "cuda" else PEAK_OF_PROCESS
    return {"megabytes": MEGABYTES, "seconds": SECONDS, "peak_bytes": peak}


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _measure_peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
