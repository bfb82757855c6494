import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from pmsplat.errors import UserError
from pmsplat.kernels import attention as kernels
from pmsplat.kernels.attention import attention, blocked, plain


def tensors(generator: torch.Generator, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    q = torch.randn(2, 3, 37, 16, generator=generator, dtype=dtype)
    k = torch.randn(2, 3, 53, 16, generator=generator, dtype=dtype)
    return [q, k, torch.randn(2, 3, 53, 16, generator=generator, dtype=dtype)]


@pytest.mark.parametrize("mask_shape", [None, (1, 3, 37, 53), (2, 3, 37, 53)])
def test_backends_agree_with_the_definition(
    mask_shape: tuple[int, ...] | None, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "BLOCK", 5 * 53)  # several blocks, the last of them partial
    monkeypatch.setattr(kernels, "WORTHWHILE", 0)
    q, k, v = tensors(generator)
    mask = None if mask_shape is None else torch.randn(mask_shape, generator=generator)
    expected = torch.softmax(q.double() @ k.double().mT / 4 + (0 if mask is None else mask), -1)
    expected = (expected @ v.double()).float()
    for found in (plain(q, k, v, mask), blocked(q, k, v, mask), attention(q, k, v, mask)):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_gradients_of_the_door_are_those_of_the_definition(generator: torch.Generator) -> None:
    mask = torch.randn(1, 3, 37, 53, generator=generator)
    weight = torch.randn(2, 3, 37, 16, generator=generator)
    gradients = []
    for function in (attention, plain):
        leaves = [t.requires_grad_() for t in tensors(torch.Generator().manual_seed(1))]
        (function(*leaves, mask=mask) * weight).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_bfloat16_stays_bfloat16_and_close(generator: torch.Generator) -> None:
    q, k, v = tensors(generator)
    found = attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), plain(q, k, v), atol=0.03, rtol=0.03)


def test_an_explicit_choice_never_falls_back(generator: torch.Generator) -> None:
    q, k, v = tensors(generator)
    with pytest.raises(UserError, match="'xformers' on cpu; wanted tensors on cuda"):
        attention(q, k, v, backend="xformers")
    with pytest.raises(UserError, match="'flash'; wanted one of sdpa, xformers, plain"):
        attention(q, k, v, backend="flash")


@pytest.mark.cuda
def test_cuda_agrees_with_the_definition(generator: torch.Generator) -> None:
    q, k, v = (t.cuda() for t in tensors(generator))
    mask = torch.randn(1, 3, 37, 53, generator=generator).cuda()
    found = attention(q, k, v, mask)
    torch.testing.assert_close(found, plain(q, k, v, mask), atol=2e-3, rtol=2e-3)
    reference = scaled_dot_product_attention(q.cpu(), k.cpu(), v.cpu(), mask.cpu())
    torch.testing.assert_close(found.cpu(), reference, atol=2e-3, rtol=2e-3)
