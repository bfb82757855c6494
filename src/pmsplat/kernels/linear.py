"""Matrix products of many tokens with one weight."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


def linear(
    x: Float[Tensor, "*token input"],
    weight: Float[Tensor, "output input"],
    bias: Float[Tensor, " output"] | None = None,
) -> Float[Tensor, "*token output"]:
    """x · weightᵀ + bias, with gradients to all; the twin is `torch.nn.functional.linear`.

    On the CPU in float32 the product is handed to oneDNN as a 1x1 convolution: its code for the
    machine at hand is up to twice as fast as the BLAS behind `linear` (which does not use AVX-512
    on AMD processors), and equal to rounding.
    """
    device = x.device.type
    single = x.dtype == torch.float32 and not torch.is_autocast_enabled(device)
    if device != "cpu" or not single or x.numel() == 0:
        return functional.linear(x, weight, bias)
    tokens = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
    out = functional.conv2d(tokens, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


class Linear(nn.Linear):
    """Same parameters and result as `torch.nn.Linear`, faster on CPUs."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
