"""A question about GPUs whose cases go wrong in every way, for the tests of `benchmarks.gpu`."""

import os
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.process import Case, Run, Skipped


def cases(run: Run) -> Iterator[Case]:
    """In an order in which each is followed by one that must still be measured."""
    yield Case("good", lambda: {"ms": 1.5})
    yield Case("missing", _skip)
    yield Case("wrong", lambda: {"ms": [][0]})
    yield Case("broken card", _fault)
    yield Case("killed", os.abort)
    yield Case("long", lambda: {}, least=1e6)
    yield Case("last", lambda: {"ms": 2.5})
    yield Case("endless", lambda: time.sleep(1e6) or {})
    yield Case("never", lambda: {"ms": 3.5})


def _skip() -> dict[str, Any]:
    raise Skipped("there is none")


def _fault() -> dict[str, Any]:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore of it")
