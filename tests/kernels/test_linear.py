import pytest
import torch
from torch.nn import functional

from pmsplat.kernels import cpu_rules
from pmsplat.kernels.linear import linear, linear_gelu, product


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


WAYS = cpu_rules.WAYS["linear"]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_the_product(way: str, generator: torch.Generator) -> None:
    for shape, bias in (((3, 50, 24), True), ((2000, 24), False), ((24,), True)):
        x = torch.randn(shape, generator=generator)
        weight = torch.randn(40, 24, generator=generator)
        offset = torch.randn(40, generator=generator) if bias else None
        exact = [t.double().requires_grad_() for t in (x, weight, offset) if t is not None]
        expected = functional.linear(*exact)
        rules = cpu_rules.DEFAULTS
        for operation in ("linear", "linear gelu", "product"):
            for tokens in (1, 2000):
                for trains in (False, True):
                    name = cpu_rules.product_class(tokens, 24, 40, trains)
                    rules = rules.having(operation, name, way)
        with cpu_rules.use(rules):
            with torch.no_grad():
                found = linear(x, weight, offset)
                if offset is None:
                    torch.testing.assert_close(product(x, weight), found)
                curved = linear_gelu(x, weight, offset).double()
            torch.testing.assert_close(found.double(), expected.detach(), atol=2e-5, rtol=1e-5)
            bent = functional.gelu(expected.detach())
            torch.testing.assert_close(curved, bent, atol=2e-5, rtol=1e-5)
            if way in cpu_rules.FORWARD_ONLY:
                continue
            leaves = [t.clone().requires_grad_() for t in (x, weight, offset) if t is not None]
            linear(leaves[0], leaves[1], leaves[2] if bias else None).square().sum().backward()
            again = [t.clone().requires_grad_() for t in (x, weight, offset) if t is not None]
            linear_gelu(again[0], again[1], again[2] if bias else None).sum().backward()
        others = [t.detach().clone().requires_grad_() for t in exact]
        functional.gelu(functional.linear(*others)).sum().backward()
        for leaf, twin in zip(again, others, strict=True):
            assert leaf.grad is not None and twin.grad is not None
            torch.testing.assert_close(leaf.grad.double(), twin.grad, atol=1e-3, rtol=1e-4)
        expected.square().sum().backward()
        for leaf, twin in zip(leaves, exact, strict=True):
            assert leaf.grad is not None and twin.grad is not None
            torch.testing.assert_close(leaf.grad.double(), twin.grad, atol=1e-3, rtol=1e-4)
