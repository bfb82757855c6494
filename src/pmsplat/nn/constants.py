"""Tensors that depend on sizes alone, such as masks and the orders of pixels: made once, and kept.

A captured CUDA graph reads memory without owning it, so whoever captures one holds what it reads.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch

T = TypeVar("T")

KEPT = 16  # results of each function: a mask of windows can have tens of megabytes

_holder: ContextVar[list[Any] | None] = ContextVar("_holder", default=None)


def constant(make: Callable[..., T]) -> Callable[..., T]:
    """Decorates a function of hashable arguments so that its last results are kept.

    They work with and without gradients, in whichever mode they were made first, and nobody may
    change them.
    """
    kept = lru_cache(KEPT)(torch.inference_mode(False)(make))

    @wraps(make)
    def look_up(*arguments: Any) -> T:
        made = kept(*arguments)
        holder = _holder.get()
        if holder is not None:
            holder.append(made)
        return made

    return look_up


@contextmanager
def hold_constants() -> Iterator[list[Any]]:
    """Collects the constants that are used inside; as long as the list lives, they do."""
    used: list[Any] = []
    token = _holder.set(used)
    try:
        yield used
    finally:
        _holder.reset(token)
