"""Convolutions with bias and ReLU of frozen networks: the kernel of CUDA devices against torch."""

import pytest
import torch
from torch import Tensor, nn

from pmsplat.kernels.convolution import conv_relu

from .interpreter import interpreted

LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}


def make(channels: int, dtype: torch.dtype, generator: torch.Generator) -> tuple[nn.Conv2d, Tensor]:
    """A frozen layer, and maps for it, one number of which is NaN."""
    conv = nn.Conv2d(3, channels, 3, padding=1).requires_grad_(False)
    for p in conv.parameters():
        p.copy_(torch.randn(p.shape, generator=generator))
    x = torch.randn(2, 3, 17, 13, generator=generator)
    x[1, 2, 16, 12] = torch.nan
    return conv.to(dtype), x.to(dtype)


def compare(conv: nn.Conv2d, x: Tensor, device: str) -> None:
    """Asserts equal maps, gradients and layouts of `conv_relu` and the two layers one by one."""
    results = []
    for fused in (False, True):
        leaf = x.to(device).detach().requires_grad_()
        if fused and device == "cpu":
            from pmsplat.kernels._bias_relu_triton import BiasRelu

            out: Tensor = BiasRelu.apply(conv._conv_forward(leaf, conv.weight, None), conv.bias)  # pyright: ignore
        else:
            out = conv_relu(conv, leaf) if fused else torch.relu(conv(leaf))
        incoming = torch.arange(out.numel(), device=device).view_as(out).sin().to(out)
        (gradient,) = torch.autograd.grad(out, leaf, incoming)
        results.append((out.detach(), gradient))
    assert results[1][0].stride() == results[0][0].stride()
    assert results[1][0].isnan().any()  # as torch: a drawing that is not finite must be seen
    torch.testing.assert_close(results[1], results[0], equal_nan=True)


@interpreted
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_interpreted_equals_torch(
    layout: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    for channels in (5, 8):
        conv, x = make(channels, dtype, generator)
        compare(conv, x.contiguous(memory_format=LAYOUTS[layout]), "cpu")


@pytest.mark.cuda
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_equals_torch_on_cuda(
    layout: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    for channels in (5, 64):
        conv, x = make(channels, dtype, generator)
        compare(conv.cuda(), x.contiguous(memory_format=LAYOUTS[layout]), "cuda")


def test_without_a_bias_and_on_a_cpu_it_is_torch(generator: torch.Generator) -> None:
    conv, x = make(4, torch.float32, generator)
    torch.testing.assert_close(conv_relu(conv, x), torch.relu(conv(x)), equal_nan=True)
    conv.bias = None
    torch.testing.assert_close(conv_relu(conv, x), torch.relu(conv(x)), equal_nan=True)
