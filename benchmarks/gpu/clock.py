"""How the questions about GPUs measure a call."""

import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..measure import synchronize, timed

MOST, FEWEST = 30, 5  # timed calls
PROFILED = 5  # calls under the profiler
TOP = 6  # kernels that are named
PRECISIONS = ("float32", "tf32", "bf16")


def measured(
    call: Callable[[Any], Any],
    prepare: Callable[[], Any] = lambda: None,
    seconds: float = 1.5,
    kernels: bool = False,
) -> dict[str, Any]:
    """Wall time of `call(prepare())`; on a GPU busy time, launches and peak memory as well.

    Timed calls take about `seconds` together. `kernels` names those that take longest.
    """
    call(prepare())  # compiles
    given = prepare()
    synchronize()
    start = time.perf_counter()
    call(given)
    synchronize()
    once = max(time.perf_counter() - start, 1e-6)
    calls = max(FEWEST, min(MOST, round(seconds / once))) if once < seconds else 3
    timing = timed(call, calls, prepare, warm_up=1 if once < 0.1 else 0)
    found: dict[str, Any] = {
        "ms": timing.median_ms,
        "low_ms": timing.low_ms,
        "high_ms": timing.high_ms,
        "calls": timing.calls,
    }
    if torch.cuda.is_available():
        found |= {"peak_mib": peak_mib(lambda: call(prepare()))} | busy(call, prepare, kernels)
    return found


def peak_mib(call: Callable[[], Any]) -> float:
    """Peak memory of the GPU in `call` above what stood before, in MiB."""
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def busy(
    call: Callable[[Any], Any], prepare: Callable[[], Any] = lambda: None, kernels: bool = False
) -> dict[str, Any]:
    """Kernel time in ms and launches of one call, by the profiler: medians of a few calls."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    times, launches, by_name = [], [], Counter()
    for _ in range(PROFILED):
        given = prepare()
        synchronize()
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
            call(given)
            synchronize()
        events = [
            e
            for e in seen.events() or ()
            if e.device_type == DeviceType.CUDA and not e.name.startswith(("Memcpy", "Memset"))
        ]
        times.append(sum(e.time_range.elapsed_us() for e in events) / 1000)
        launches.append(len(events))
        for event in events:
            by_name[event.name] += event.time_range.elapsed_us() / 1000 / PROFILED
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    found: dict[str, Any] = {
        "busy_ms": round(middle, 3),
        "busy_low_ms": round(low, 3),
        "busy_high_ms": round(high, 3),
        "launches": int(statistics.median(launches)),
    }
    if kernels:
        top = by_name.most_common(TOP)
        found["kernels"] = {name[:60]: round(ms, 3) for name, ms in top}
    return found


def waits(call: Callable[[], Any]) -> dict[str, int]:
    """How often the host waits for the GPU in `call`, by place (file:line)."""
    synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)
    )
    return dict(places.most_common(12))


@contextmanager
def precision(name: str, device: str) -> Iterator[None]:
    """Inside the block, products are computed in float32, tf32, or bf16 by autocast."""
    assert name in PRECISIONS
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if name == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = name != "float32"
    try:
        with torch.autocast(device, torch.bfloat16, enabled=name == "bf16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def free_gib() -> float:
    """Memory that the GPU has left, that of torch's cache included."""
    free, _ = torch.cuda.mem_get_info()
    cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return (free + cached) / 2**30


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Norm of the difference over norm."""
    exact = exact.double().cpu()
    return float((found.double().cpu() - exact).norm() / exact.norm().clamp_min(1e-300))
