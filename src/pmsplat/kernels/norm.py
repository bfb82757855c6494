"""Group norm and instance norm together with the activation that follows, and layer norm together
with the sum that follows.

Wu and He, "Group Normalization", ECCV 2018. torch's CUDA kernels know maps with channels first
only, and copy those with channels last there and back. Ours reads them as they are, in two
launches, activation included. Layer norm (Ba, Kiros and Hinton, 2016) is one launch, whatever the
dtypes; in torch autocast widens what it reads, and what it gives is narrowed again.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from . import cuda

Activation = Literal["none", "relu", "silu", "gelu"]

_ACTIVATIONS = {
    "none": lambda x: x,
    "relu": functional.relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
}
WIDEST = 1024  # channels that the fused kernels hold at a time


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
    return last and x.shape[1] <= WIDEST and cuda.can_take(x[0])


def layer_norm(
    x: Float[Tensor, "*token channel"],
    weight: Float[Tensor, " channel"],
    bias: Float[Tensor, " channel"],
    eps: float = 1e-5,
    *,
    added_to: Float[Tensor, "*token channel"] | None = None,
    dtype: torch.dtype | None = None,
    path: Literal["auto", "fused", "torch"] = "auto",
) -> Float[Tensor, "*token channel"]:
    """Returns layer_norm(x), or added_to + layer_norm(x), with gradients to all.

    The result has `dtype`; by default that of torch, to which autocast gives float32. `path` is
    "torch", the definition; "fused", for CUDA; or "auto": fused where it can be.
    """
    if path == "auto":
        path = "fused" if x.shape[-1] <= WIDEST and cuda.can_take(x) else "torch"
    if path == "torch":
        out = functional.layer_norm(x, x.shape[-1:], weight, bias, eps)
        out = out if added_to is None else added_to + out
        return out if dtype is None else out.to(dtype)
    cuda.require(x.device)
    from ._tokens_triton import LayerNorm

    if dtype is None:
        widened = torch.is_autocast_enabled(x.device.type)
        dtype = torch.float32 if widened and x.dtype != torch.float64 else x.dtype
        dtype = dtype if added_to is None else torch.promote_types(dtype, added_to.dtype)
    return LayerNorm.apply(x, weight, bias, added_to, eps, dtype)  # pyright: ignore


class LayerNorm(nn.LayerNorm):
    """Same parameters and result as `torch.nn.LayerNorm`, but under autocast in its half precision:
    for layers that read nothing wider."""

    def forward(self, input: Tensor) -> Tensor:
        device = input.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return layer_norm(input, self.weight, self.bias, self.eps, dtype=half)

    def add_to(self, x: Tensor, input: Tensor) -> Tensor:
        """Returns x + norm(input), whose sum is as wide as torch has it."""
        return layer_norm(input, self.weight, self.bias, self.eps, added_to=x)
