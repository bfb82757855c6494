"""Distances between maps of unit vectors: the kernels of CUDA devices against their definition."""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from pmsplat.kernels.unit_distance import unit_distance

from .interpreter import interpreted, last_program_first

Tap = tuple[int, int, int]  # channels, height, width
CASES: dict[str, tuple[int, list[Tap]]] = {  # images, and the maps of each
    "several sizes": (2, [(5, 9, 12), (64, 7, 13), (96, 4, 3), (3, 1, 1)]),
    "one pixel": (1, [(2, 1, 1)]),
    "a row and a column": (2, [(8, 1, 40), (8, 40, 1), (2, 6, 5)]),
    "several steps": (1, [(512, 8, 9)]),
    "widest": (1, [(1024, 3, 3)]),
}
LARGE = {"VGG-16": (2, [(64, 256, 256), (128, 128, 128), (256, 64, 64), (512, 32, 32)])}
LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}


def draw(case: str, generator: torch.Generator) -> list[list[Tensor]]:
    """Maps, targets and weights. A fifth of the maps' numbers is 0, and so are some pixels."""
    images, taps = (CASES | LARGE)[case]
    maps, targets = (
        [torch.rand(images, *tap, generator=generator) for tap in taps] for _ in range(2)
    )
    for x in (*maps, *targets):
        x *= torch.rand(x.shape, generator=generator) > 0.2
        if x.shape[2] * x.shape[3] > 1:
            x[:, :, 0, 0] = 0
    return [maps, targets, [torch.rand(tap[0], generator=generator) for tap in taps]]


def results(
    run: Callable[..., Tensor], given: Sequence[Sequence[Tensor]], incoming: Tensor
) -> list[Tensor]:
    """Distances, and the gradients of the maps where they are above 0, as after a ReLU."""
    maps, targets, weights = given
    leaves = [x.detach().clone().requires_grad_() for x in maps]
    out = run(leaves, [x.detach().requires_grad_() for x in targets], weights)
    found = torch.autograd.grad(out, leaves, incoming.to(out))
    active = (torch.where(x > 0, g, 0) for x, g in zip(maps, found, strict=True))
    return [x.detach().double().cpu() for x in (out, *active)]


def fused(*given: Sequence[Tensor]) -> Tensor:
    return unit_distance(*given, path="fused")


def difference(case: str, layout: str, dtype: torch.dtype, device: str) -> list[float]:
    """Errors of distances, and of gradients, over the largest number of each."""
    g = torch.Generator().manual_seed(0)
    given = [[x.to(dtype) for x in tensors] for tensors in draw(case, g)]
    incoming = torch.rand(len(given[0][0]), generator=g)
    exact = results(unit_distance, [[x.double() for x in tensors] for tensors in given], incoming)
    moved = [[x.to(device) for x in tensors] for tensors in given]
    moved[:2] = (
        [x.contiguous(memory_format=LAYOUTS[layout]) for x in tensors] for tensors in moved[:2]
    )
    found = results(fused, moved, incoming.to(device))
    return [
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in zip(found, exact, strict=True)
    ]


def check_everything(device: str, *more: str) -> None:
    for case, layout in itertools.product((*CASES, *more), LAYOUTS):
        for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
            errors = difference(case, layout, dtype, device)
            assert max(errors) < bound, (case, layout, dtype, errors)


@interpreted
def test_the_kernels_interpreted_equal_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    from pmsplat.kernels import _unit_distance_triton

    monkeypatch.setattr(_unit_distance_triton, "CHUNKS", 3)  # so that a chunk has several steps
    check_everything("cpu")


@pytest.mark.cuda
def test_the_kernels_equal_the_definition_on_cuda() -> None:
    check_everything("cuda", *LARGE)


@interpreted
def test_gradients_are_those_of_differences(generator: torch.Generator) -> None:
    maps, targets = (
        [torch.rand(2, *tap, generator=generator).double() + 0.1 for tap in ((3, 1, 2), (2, 2, 1))]
        for _ in range(2)
    )
    weights = [torch.rand(n, generator=generator).double() for n in (3, 2)]
    leaves = [x.requires_grad_() for x in maps]
    assert torch.autograd.gradcheck(lambda *x: fused(x, targets, weights), leaves)


@interpreted
def test_a_map_of_nothing_has_no_gradient_and_nothing_is_infinite() -> None:
    """The definition has one of the size of 1 / SMALLEST there, which a ReLU takes away."""
    given = [torch.zeros(1, 4, 2, 2)], [torch.ones(1, 4, 2, 2)], [torch.ones(4)]
    value, gradient = results(fused, given, torch.ones(1))
    assert value.item() == pytest.approx(1.0) and not gradient.any()
    tiny = [torch.full((1, 4, 2, 2), 1e-15)], *given[1:]
    assert all(x.isfinite().all() for x in results(fused, tiny, torch.ones(1)))


@interpreted
def test_the_order_of_programs_changes_no_bit() -> None:
    given = draw("several sizes", torch.Generator().manual_seed(0))
    incoming = torch.ones(2)
    first = results(fused, given, incoming)
    with last_program_first():
        second = results(fused, given, incoming)
    assert all(map(torch.equal, first, second))


def test_the_definition_leaves_targets_without_gradient() -> None:
    (a, b, weights) = draw("several sizes", torch.Generator().manual_seed(0))
    for x in (*a, *b):
        x.requires_grad_()
    unit_distance(a, b, weights).sum().backward()
    assert all(x.grad is not None for x in a) and all(x.grad is None for x in b)
