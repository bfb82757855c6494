"""Tensors that depend on numbers alone, such as masks and matrices of a size: made once, and kept.

A new tensor of numbers makes the host wait for a CUDA device, which it then leaves without work. A
captured CUDA graph reads memory without owning it, so whoever captures one holds what it reads.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")
Numbers = tuple[int | float, ...] | tuple[tuple[int | float, ...], ...]

KEPT = 16  # results of each function: a mask of windows can have tens of megabytes

_holder: ContextVar[list[Any] | None] = ContextVar("_holder", default=None)


def keep_results(make: Callable[P, T], most: int = KEPT) -> Callable[P, T]:
    """Decorates a function of hashable arguments so that its last results are kept.

    They work with and without gradients, in whichever mode they were made first, and nobody may
    change them.
    """
    kept = lru_cache(most)(torch.inference_mode(False)(make))

    @wraps(make)
    def look_up(*args: P.args, **kwargs: P.kwargs) -> T:
        made: Any = kept(*args, **kwargs)
        holder = _holder.get()
        if holder is not None:
            holder.append(made)
        return made

    vars(look_up)["cache_clear"] = kept.cache_clear
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


def constant(numbers: Numbers, like: Tensor) -> Tensor:
    """Returns these numbers with the dtype and device of `like`; not to be written to."""
    if like.device.type == "cpu":
        return like.new_tensor(numbers)
    return _send(numbers, like.dtype, like.device)


@partial(keep_results, most=1024)
def _send(numbers: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=dtype, device=device)
