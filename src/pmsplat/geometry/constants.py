"""Numbers as tensors, sent to a device once.

A new tensor of numbers makes the host wait for a CUDA device, which it then leaves without work.
"""

from functools import lru_cache

import torch
from torch import Tensor

Numbers = tuple[int | float, ...] | tuple[tuple[int | float, ...], ...]


def constant(numbers: Numbers, like: Tensor) -> Tensor:
    """Returns these numbers with the dtype and device of `like`; not to be written to."""
    if like.device.type == "cpu":
        return like.new_tensor(numbers)
    return _constant(numbers, like.dtype, like.device)


@lru_cache(maxsize=1024)
@torch.inference_mode(False)  # so that cached tensors can be used with gradients
def _constant(numbers: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=dtype, device=device)
