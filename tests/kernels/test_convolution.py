"""Convolutions in every way, against torch's in float64: values, gradients and layout."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pmsplat.kernels import convolution, cpu_rules
from pmsplat.kernels.convolution import Conv2d, conv2d

SHAPES = {  # n, inputs, outputs, height, width, kernel, stride, padding, bias
    "3x3": (2, 5, 7, 9, 12, 3, 1, 1, True),
    "3x3 without a border or a bias": (2, 5, 7, 9, 12, 3, 1, 0, False),
    "many channels": (2, 17, 35, 9, 14, 3, 1, 1, True),
    "many channels without a border or a bias": (3, 16, 16, 6, 70, 3, 1, 0, False),
    "many channels of one pixel": (2, 20, 16, 1, 1, 3, 1, 1, True),
    "smallest": (1, 1, 1, 3, 3, 3, 1, 0, True),
    "one pixel, all border": (2, 4, 3, 1, 1, 3, 1, 1, True),
    "strided": (2, 5, 7, 9, 12, 3, 2, 1, True),
    "1x1": (3, 5, 7, 6, 8, 1, 1, 0, True),
    "1x1 without a bias": (3, 5, 7, 6, 8, 1, 1, 0, False),
    # Of fewer than 8 inputs, oneDNN's AVX2 gradient of the weight writes past the end of memory
    # (torch 2.15, in plain conv2d with channels last). No model has such a convolution.
    "1x1 strided": (2, 9, 7, 6, 8, 1, 2, 0, True),
    "7x7": (1, 3, 8, 15, 11, 7, 1, 3, True),
}


def rule(x: torch.Tensor, weight: torch.Tensor, stride: int, way: str) -> cpu_rules.Rules:
    rules = cpu_rules.DEFAULTS
    for trains in (False, True):
        shape = cpu_rules.conv_class(x, weight, stride, trains)
        rules = rules.having("conv", shape, way)
    return rules


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("way", cpu_rules.WAYS["conv"])
@pytest.mark.parametrize("case", SHAPES)
def test_every_way_is_the_convolution(
    case: str, way: str, layout: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, inputs, outputs, height, width, kernel, stride, padding, with_bias = SHAPES[case]
    monkeypatch.setattr(convolution, "CACHED", 4 * 64)  # so that rows are cut into several runs
    x = torch.randn(n, inputs, height, width, generator=generator)
    x = x.contiguous(memory_format=convolution.FORMATS[layout])
    weight = torch.randn(outputs, inputs, kernel, kernel, generator=generator)
    bias = torch.randn(outputs, generator=generator) if with_bias else None
    exact = [t.double().requires_grad_() for t in (x, weight, bias) if t is not None]
    expected = functional.conv2d(*exact, stride=stride, padding=padding)
    incoming = torch.randn(expected.shape, generator=generator)
    expected.backward(incoming.double())
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias) if t is not None]
    with cpu_rules.use(rule(x, weight, stride, way)):
        offset = leaves[2] if with_bias else None
        found = conv2d(leaves[0], leaves[1], offset, stride, padding)
        with torch.no_grad():
            again = conv2d(x, weight, bias, stride, padding)
    found.backward(incoming)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-5)
    error = 2e-4 if way == "winograd" else 2e-5  # on sums of hundreds of products, not scaled
    torch.testing.assert_close(again.double(), expected, atol=error, rtol=1e-5)
    for leaf, twin in zip(leaves, exact, strict=True):
        assert leaf.grad is not None and twin.grad is not None
        torch.testing.assert_close(leaf.grad.double(), twin.grad, atol=1e-4, rtol=1e-4)
    if way != "direct" and min(inputs, outputs) > 1 and found.shape[-1] > 1:
        assert cpu_rules.layout(found) == layout


def test_only_what_is_asked_for_gets_a_gradient(generator: torch.Generator) -> None:
    x = torch.randn(1, 4, 6, 6, generator=generator)
    weight = torch.randn(5, 4, 3, 3, generator=generator).requires_grad_()
    with cpu_rules.use(rule(x, weight, 1, "taps")):
        conv2d(x, weight, None, 1, 1).sum().backward()
    assert weight.grad is not None and x.grad is None


def test_by_default_it_is_torchs_to_the_bit(generator: torch.Generator) -> None:
    x = torch.randn(2, 16, 20, 20, generator=generator)
    for border in ("zeros", "replicate"):
        twin = nn.Conv2d(16, 24, 3, padding=1, padding_mode=border)  # pyright: ignore
        ours = Conv2d(16, 24, 3, padding=1, padding_mode=border)  # pyright: ignore
        ours.load_state_dict(twin.state_dict())
        with cpu_rules.use(cpu_rules.DEFAULTS):
            assert ours(x).equal(twin(x))


def test_rules_do_not_act_on_other_precisions(generator: torch.Generator) -> None:
    x = torch.randn(1, 4, 6, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 4, 3, 3, generator=generator, dtype=torch.float64)
    with cpu_rules.use(rule(x, weight, 1, "taps")):
        assert conv2d(x, weight, None, 1, 1).equal(functional.conv2d(x, weight, None, 1, 1))
        with torch.autocast("cpu", torch.bfloat16):
            assert conv2d(x.float(), weight.float(), None, 1, 1).dtype == torch.bfloat16
