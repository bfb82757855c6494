"""Memory that a process keeps to use again.

glibc gives every freed block of more than 32 MB back to the system at once, and the feature maps of
a forward pass are such: getting their pages anew costs a fifth of its time on a CPU.
"""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT = 2**30  # free bytes at the end of the heap that stay
LARGEST = 2**28  # blocks up to so many bytes come from the heap


def keep() -> None:
    """Lets this process keep up to a GiB of what it frees; does nothing where there is no glibc.

    For programs of our own, not for libraries: it holds for all of the process.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)  # what is loaded already
    if hasattr(libc, "mallopt"):
        libc.mallopt(TRIM_THRESHOLD, KEPT)
        libc.mallopt(MMAP_THRESHOLD, LARGEST)
