"""Layer norms and scaled residual connections: the kernels of CUDA devices against torch."""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from pmsplat.kernels import norm
from pmsplat.kernels.norm import layer_norm
from pmsplat.kernels.residual import add_scaled

from .interpreter import interpreted

SHAPES = [(2, 7, 384), (3, 5, 12), (1300, 8), (1, 2, 1024)]
KINDS = [(torch.float32, torch.float32), (torch.float32, torch.bfloat16)]  # of two tensors
KINDS += [(torch.bfloat16, torch.bfloat16)]


def added(path: str) -> Callable[..., Tensor]:
    """x + scale · change, of x, change and scale."""
    return lambda *given: add_scaled(*given, path=path)  # pyright: ignore[reportArgumentType]


def normalized(path: str, dtype: torch.dtype | None = None) -> Callable[..., Tensor]:
    """The norm of the second tensor, added to the first."""

    def run(x: Tensor, change: Tensor, *affine: Tensor) -> Tensor:
        return layer_norm(change, *affine, added_to=x, dtype=dtype, path=path)  # pyright: ignore

    return run


def alone(path: str, dtype: torch.dtype | None = None) -> Callable[..., Tensor]:
    """The norm of a tensor, in another dtype."""
    return lambda *given: layer_norm(*given, eps=1e-6, dtype=dtype, path=path)  # pyright: ignore


def results(run: Callable[..., Tensor], given: Sequence[Tensor], incoming: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in given]
    out = run(*leaves)
    found = torch.autograd.grad(out, leaves, incoming.to(out))
    assert all(g.dtype == x.dtype for g, x in zip(found, given, strict=True))
    return [x.detach() for x in (out, *found)]


def check_everything(device: str, *more: tuple[int, ...]) -> None:
    """Every shape in every mixture of dtypes, tokens side by side and not."""
    g = torch.Generator().manual_seed(0)
    for shape, kinds, strided in itertools.product([*SHAPES, *more], KINDS, (False, True)):
        x, change, incoming = torch.randn(3, *shape, generator=g).unbind(0)
        weight, bias = torch.randn(2, shape[-1], generator=g).unbind(0)
        x, change, widest = x.to(kinds[0]), 3 + change.to(kinds[1]), torch.promote_types(*kinds)
        for exact, ours, given in (
            (added("torch"), added("fused"), (x, change, weight)),
            (normalized("torch"), normalized("fused"), (x, change, weight, bias)),
            (alone("torch"), alone("fused", kinds[1]), (x, weight, bias)),
        ):
            dtype = kinds[1] if ours.__qualname__.startswith("alone") else widest
            sent = incoming.to(dtype)
            wanted = results(exact, [v.double() for v in given], sent.double())
            moved = [v.to(device) for v in (*given, sent)]
            if strided:
                moved = [v.transpose(0, -1).contiguous().transpose(0, -1) for v in moved]
            found = results(ours, moved[:-1], moved[-1])
            assert found[0].dtype == dtype
            for mine, theirs in zip(found, wanted, strict=True):
                bound = 1e-5 if mine.dtype == torch.float32 else 1e-2
                error = (mine.double().cpu() - theirs).abs().max() / theirs.abs().max()
                assert error < bound, (ours, shape, kinds, error)


@interpreted
def test_the_kernels_interpreted_equal_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from pmsplat.kernels import _tokens_triton

    monkeypatch.setattr(_tokens_triton, "PROGRAMS", 2)  # so that one takes several steps
    check_everything("cpu")


@pytest.mark.cuda
def test_the_kernels_equal_torch_on_cuda() -> None:
    check_everything("cuda", (2, 1370, 1024))


@interpreted
def test_gradients_are_those_of_differences(generator: torch.Generator) -> None:
    x, change = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64).unbind(0)
    weight, bias = torch.randn(2, 5, generator=generator, dtype=torch.float64).unbind(0)
    leaves = [leaf.requires_grad_() for leaf in (x, change, weight, bias)]
    assert torch.autograd.gradcheck(added("fused"), leaves[:3])
    assert torch.autograd.gradcheck(normalized("fused"), leaves)


@interpreted
def test_a_norm_keeps_its_digits_far_from_zero(generator: torch.Generator) -> None:
    x = 1000 + torch.randn(4, 64, generator=generator)
    weight, bias = torch.ones(64), torch.zeros(64)
    torch.testing.assert_close(
        alone("fused")(x, weight, bias).double(),
        alone("torch")(*(v.double() for v in (x, weight, bias))),
        atol=1e-4,  # float32 rounds 1000 to 6e-5
        rtol=0,
    )


def test_on_a_cpu_they_are_torch(generator: torch.Generator) -> None:
    x, change = torch.randn(2, 3, 5, generator=generator).unbind(0)
    scale = torch.randn(5, generator=generator)
    assert torch.equal(add_scaled(x, change, scale), x + scale * change)
    ours, other = norm.LayerNorm(5), nn.LayerNorm(5)
    with torch.no_grad():
        ours.weight.copy_(scale)
    other.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x), other(x)) and torch.equal(ours.add_to(change, x), change + other(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16 and torch.equal(ours(x), other(x).bfloat16())
