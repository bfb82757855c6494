"""Group norm and instance norm together with the activation that follows.

Wu and He, "Group Normalization", ECCV 2018. torch's CUDA kernels know maps with channels first
only, and copy those with channels last there and back. Ours reads them as they are, in two
launches, activation included.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from . import cuda

Activation = Literal["none", "relu", "silu", "gelu"]

_ACTIVATIONS = {
    "none": lambda x: x,
    "relu": functional.relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
}
WIDEST = 1024  # channels that the fused kernel holds at a time


def group_norm(
    x: Float[Tensor, "n channel height width"],
    groups: int,
    weight: Float[Tensor, " channel"] | None = None,
    bias: Float[Tensor, " channel"] | None = None,
    activation: Activation = "none",
    eps: float = 1e-5,
    path: Literal["auto", "fused", "torch"] = "auto",
) -> Float[Tensor, "n channel height width"]:
    """Returns activation(group_norm(x)), with gradients to x, weight and bias.

    One group for each channel is an instance norm. `path` is "torch", the definition; "fused", for
    maps with channels last on CUDA, which keeps their layout and dtype; or "auto": fused where it
    can be.
    """
    if path == "auto":
        path = "fused" if _can_fuse(x) else "torch"
    if path == "torch":
        instance = weight is None and groups == x.shape[1]
        norm = (
            functional.instance_norm(x, eps=eps)
            if instance
            else functional.group_norm(x, groups, weight, bias, eps)
        )
        return _ACTIVATIONS[activation](norm)
    cuda.require(x.device)
    from ._norm_triton import GroupNorm

    return GroupNorm.apply(x, groups, weight, bias, activation, eps)  # pyright: ignore


def _can_fuse(x: Tensor) -> bool:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    fits = x.shape[1] <= WIDEST and x[0].numel() < 2**31  # offsets in a map are int32
    return x.is_cuda and last and fits and cuda.has_kernels(x.device)
