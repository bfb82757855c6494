"""Group norm of maps with channels last: the fused kernel against torch, values and gradients.

On CUDA as it is; elsewhere in Triton's interpreter.
"""

import itertools

import pytest
import torch
from torch import Tensor

from pmsplat.kernels import norm

from .interpreter import interpreted, kept_dense

SHAPES = [  # n, channels, groups, height, width
    (2, 16, 8, 5, 7),
    (1, 96, 96, 8, 3),  # an instance norm, of a number of channels that is no power of two
    (1, 12, 4, 1, 1),
    (1, 20, 4, 13, 40),
    (3, 8, 2, 1, 70),
    (1, 4, 1, 70, 40),  # several steps for each chunk
]
ACTIVATIONS: list[norm.Activation] = ["none", "relu", "silu", "gelu"]


def difference(
    shape: tuple[int, int, int, int, int],
    activation: norm.Activation,
    dtype: torch.dtype,
    device: str,
    offset: float = 0.0,
) -> list[float]:
    """Largest errors of result and gradients against torch in float64, relative to their size."""
    n, channels, groups, height, width = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    affine = groups != channels
    x = (draw(n, channels, height, width) * (1 + draw(1, channels, 1, 1).abs()) + offset).to(dtype)
    weight, bias, incoming = draw(channels), draw(channels), draw(n, channels, height, width)
    incoming = incoming.to(dtype)
    results: list[list[Tensor]] = []
    for path in ("torch", "fused"):
        kind, place = (torch.float64, "cpu") if path == "torch" else (dtype, device)
        given = x.to(place, kind, copy=True, memory_format=torch.channels_last).requires_grad_()
        factors = [v.to(place, torch.float64 if path == "torch" else None) for v in (weight, bias)]
        factors = [v.clone().requires_grad_() for v in factors] if affine else [None, None]
        if path == "torch" and not affine:  # torch refuses an instance norm of a single pixel
            moments = {"dim": (2, 3), "keepdim": True}
            centered = given - given.mean(**moments)
            out = centered / (centered.square().mean(**moments) + 1e-5).sqrt()
            out = norm._ACTIVATIONS[activation](out)
        else:
            out = norm.group_norm(given, groups, *factors, activation=activation, path=path)
        wanted = [v for v in (given, *factors) if v is not None]
        found = torch.autograd.grad(out, wanted, incoming.to(out))
        results.append([v.detach().double().cpu() for v in (out, *found)])
    expected, found = results
    return [
        ((a - b).abs().max() / b.abs().max().clamp_min(1)).item()
        for a, b in zip(found, expected, strict=True)
    ]


def check_everything(device: str) -> None:
    """Every shape with every activation, in both precisions, and far from zero."""
    for shape, activation in itertools.product(SHAPES, ACTIVATIONS):
        for dtype, bound in ((torch.float32, 2e-5), (torch.bfloat16, 2e-2)):
            if shape[3] * shape[4] == 1 and shape[1] // shape[2] < 4:
                bound *= 100  # three numbers with hardly a spread: gradients are large
            errors = difference(shape, activation, dtype, device)
            assert max(errors) < bound, (shape, activation, dtype, errors)
    errors = difference((1, 16, 4, 40, 33), "silu", torch.float32, device, offset=1000.0)
    assert max(errors) < 2e-3, errors  # float32 rounds 1000 to 6e-5


@interpreted
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of silu far below zero
def test_the_fused_kernel_in_the_interpreter() -> None:
    check_everything("cpu")


@interpreted
def test_saved_maps_may_be_laid_out_anew() -> None:
    errors = difference((2, 16, 4, 5, 7), "silu", torch.float32, "cpu")
    with kept_dense():
        found = difference((2, 16, 4, 5, 7), "silu", torch.float32, "cpu")
    assert found == pytest.approx(errors, rel=1e-3)


@interpreted
def test_what_is_not_a_number_stays_so() -> None:
    """As in torch: training must see it."""
    x = torch.ones(1, 8, 3, 4).contiguous(memory_format=torch.channels_last)
    x[0, 0, 1, 1] = torch.nan
    found = norm.group_norm(x, 2, activation="relu", path="fused")
    assert found[:, :4].isnan().all() and not found[:, 4:].isnan().any()


@pytest.mark.cuda
def test_the_fused_kernel_on_a_gpu() -> None:
    check_everything("cuda")
    for shape in ((2, 128, 8, 64, 64), (2, 64, 64, 128, 128), (1, 16, 8, 512, 960)):
        errors = difference(shape, "silu", torch.float32, "cuda")
        assert max(errors) < 5e-5, (shape, errors)


@pytest.mark.cuda
def test_channels_last_takes_the_fused_kernel_and_keeps_its_layout() -> None:
    x = torch.randn(2, 16, 8, 8, device="cuda").to(memory_format=torch.channels_last)
    found = norm.group_norm(x.bfloat16(), 4, activation="relu")
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_on_a_cpu_it_is_torch(activation: norm.Activation) -> None:
    x, weight, bias = torch.randn(2, 16, 5, 4), torch.randn(16), torch.randn(16)
    after = {"none": torch.clone, "relu": torch.relu, "silu": torch.nn.functional.silu}
    act = after.get(activation, torch.nn.functional.gelu)
    expected = act(torch.nn.functional.group_norm(x, 8, weight, bias))
    assert torch.equal(norm.group_norm(x, 8, weight, bias, activation), expected)
    expected = act(torch.nn.functional.instance_norm(x))
    assert torch.equal(norm.group_norm(x, 16, activation=activation), expected)
