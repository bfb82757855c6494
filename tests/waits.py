"""Proof on a GPU that the host does not wait for it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def no_waits() -> Iterator[None]:
    """Inside, a host that waits for a CUDA device raises RuntimeError.

    What is used for the first time, kernels to compile and constants to send, may wait: use it once
    before.
    """
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
