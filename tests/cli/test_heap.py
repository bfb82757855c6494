"""Freed memory stays with the process: the second time its pages are there."""

import resource
import subprocess
import sys

import pytest

CODE = """
import resource
import numpy as np
from pmsplat.cli import _heap
{keep}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**24, np.float32)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults(keep: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(keep=keep)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_pages_are_not_asked_for_again() -> None:
    assert resource.getpagesize() <= 2**16
    gone, kept = faults(""), faults("_heap.keep()")
    assert kept < 100 and gone > 10 * max(kept, 1)
