import torch
from torch.nn import functional

from pmsplat.kernels.linear import linear


def test_linear_is_torchs_with_its_gradients(generator: torch.Generator) -> None:
    for shape, bias in (((3, 50, 24), True), ((7, 24), False), ((2, 0, 24), True)):
        x = torch.randn(shape, generator=generator)
        weight = torch.randn(40, 24, generator=generator)
        offset = torch.randn(40, generator=generator) if bias else None
        results = []
        for function in (linear, functional.linear):
            leaves = [t.clone().requires_grad_() for t in (x, weight)]
            out = function(leaves[0], leaves[1], offset)
            out.square().sum().backward()
            results.append([out.detach(), *(leaf.grad for leaf in leaves)])
        torch.testing.assert_close(*results, atol=1e-3, rtol=1e-4)
