"""Turning harmonics: the kernel of CUDA devices, interpreted, against plain torch."""

import pytest
import torch

from pmsplat.kernels import harmonics

from .interpreter import interpreted

SHAPES = [  # batch, views, pixels, rows and terms of the matrix
    (1, 1, 1, 1, 1), (2, 3, 63, 9, 9), (1, 2, 64, 16, 16), (2, 1, 65, 25, 25), (1, 2, 200, 4, 16),
    (1, 2, 0, 9, 9),
]  # fmt: skip


def check_against_twin(device: str) -> None:
    """Asserts equal values and gradients, for maps and rows of pixels, with base and without."""
    generator = torch.Generator().manual_seed(0)
    for batch, views, pixels, rows, terms in SHAPES:
        matrix = torch.randn(batch, views, rows, terms, generator=generator)
        base = torch.randn(batch, views, pixels, 3, generator=generator)
        weights = torch.randn(batch, views, pixels, rows, 3, generator=generator)
        maps = torch.randn(batch, views, 7 + 3 * 25, pixels, generator=generator)
        for raw in (maps, maps.transpose(2, 3).contiguous().transpose(2, 3)):
            for added in (base, None):
                results = []
                for place in ("twin", device):
                    at = "cpu" if place == "twin" else place
                    leaf = raw.to(at).detach().requires_grad_()
                    used = leaf[:, :, 7:].transpose(2, 3).unflatten(-1, (3, 25))[..., :terms]
                    moved = None if added is None else added.to(at)
                    turn = harmonics.turn_by_torch if place == "twin" else by_kernel
                    found = turn(matrix.to(at), used, moved)
                    (gradient,) = torch.autograd.grad((found * weights.to(at)).sum(), leaf)
                    results.append([found.detach().cpu(), gradient.cpu()])
                torch.testing.assert_close(*results, atol=2e-5, rtol=1e-5)
                assert results[1][0].is_contiguous()


def by_kernel(matrix: torch.Tensor, used: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
    """`harmonics.turn` on CUDA, for tensors on any device."""
    from pmsplat.kernels._harmonics_triton import Turn

    flat = [None if x is None else x.flatten(0, 1) for x in (matrix, used, base)]
    found = Turn.apply(*flat)
    assert isinstance(found, torch.Tensor)
    return found.unflatten(0, matrix.shape[:2])


@interpreted
def test_the_kernel_interpreted_equals_its_twin() -> None:
    check_against_twin("cpu")


@pytest.mark.cuda
def test_the_kernel_equals_its_twin_on_cuda() -> None:
    check_against_twin("cuda")
