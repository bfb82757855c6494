"""A process of the fleet that runs scenarios on the fake device, by name.

It answers {"kernels": {KERNEL: [launches of Triton]}, "stages": {STAGE: {"launches": n,
"estimate": n, "waits": {PLACE: n}, "peak": bytes, "operators": {...}, "lines": {...}}}}.
"""

import gc
import sys
from typing import Any

from . import fleet, shim

TOP = 12  # operators and lines that launch most


def main() -> None:
    """Has a process of its own, since the stand-in for the driver comes before torch."""
    shim.load()
    from .device import FakeDevice
    from .standins import install

    device = FakeDevice()
    install(device)
    from .jobs import jobs
    from .limits import limits
    from .scenarios import scenarios

    known = scenarios() | jobs() | limits()
    fleet.serve(lambda name: report(known[name], device))


def report(run: Any, device: Any) -> fleet.Answer:
    """What a scenario did."""
    ledger = device.ledger
    _forget_cached()
    gc.collect()
    ledger.forget()
    with device:
        run(device)
    stages = {
        stage: {
            "launches": found.launches.total(),
            "estimate": found.kernels,
            "waits": dict(found.waits),
            "peak": found.peak,
            "operators": dict(found.launches.most_common(TOP)),
            "lines": dict(found.lines.most_common(TOP)),
        }
        for stage, found in ledger.stages.items()
    }
    kernels = {kernel: list(found.values()) for kernel, found in ledger.kernels.items()}
    ledger.kernels.clear()
    return {"kernels": kernels, "stages": stages}


def _forget_cached() -> None:
    """Empties what the package keeps for its process: a scenario must not profit from another."""
    for name, module in list(sys.modules.items()):
        if name.startswith("pmsplat"):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


if __name__ == "__main__":
    main()
