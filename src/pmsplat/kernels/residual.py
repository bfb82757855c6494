"""Residual connections whose change is scaled by channel: the layer scale of transformers.

Touvron et al., "Going Deeper with Image Transformers", ICCV 2021. In torch the gradient of one is
five launches of a GPU, and seven under autocast; here it is two.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from . import cuda

WIDEST = 4096  # channels that the fused kernel holds at a time


def add_scaled(
    x: Float[Tensor, "*token channel"],
    change: Float[Tensor, "*token channel"],
    scale: Float[Tensor, " channel"],
    path: Literal["auto", "fused", "torch"] = "auto",
) -> Float[Tensor, "*token channel"]:
    """Returns x + scale · change, with gradients to all, in the wider dtype of x and change.

    `path` is "torch", the definition; "fused", for CUDA; or "auto": fused where it can be.
    """
    if path == "auto":
        fits = x.shape == change.shape and x.shape[-1] <= WIDEST
        path = "fused" if fits and cuda.can_take(x) else "torch"
    if path == "torch":
        return torch.addcmul(x, change, scale) if x.is_cuda else x + change * scale
    cuda.require(x.device)
    from ._tokens_triton import AddScaled

    return AddScaled.apply(x, change, scale)  # pyright: ignore
