"""SSIM and its gradient, against skimage and against finite differences."""

import pytest
import torch
from skimage.metrics import structural_similarity

from pmsplat import registry
from pmsplat.errors import UserError
from pmsplat.geometry import products
from pmsplat.losses.ssim import ssim
from tests.waits import no_waits

from .test_photometric import a_step


def pair(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(*shape, generator=generator, dtype=torch.float64)
    noise = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return image, 0.6 * image + 0.4 * noise


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("size", [(11, 11), (17, 24), (40, 31)])
def test_the_value_is_that_of_skimage(size: tuple[int, int], sample: bool) -> None:
    image, target = pair(2, 3, *size)
    ours = ssim(image, target, sample_covariance=sample)
    for i in range(2):
        theirs = structural_similarity(
            image[i].numpy(), target[i].numpy(), channel_axis=0, data_range=1.0,
            gaussian_weights=True, sigma=1.5, win_size=11, use_sample_covariance=sample,
        )  # fmt: skip
        assert ours[i].item() == pytest.approx(theirs, abs=1e-12)


def test_the_gradient_is_that_of_finite_differences() -> None:
    image, target = pair(1, 2, 12, 13)
    assert torch.autograd.gradcheck(
        ssim, (image.requires_grad_(), target.requires_grad_()), eps=1e-6, atol=1e-8
    )


def test_in_float32_too() -> None:
    image, target = pair(1, 3, 48, 64)
    near = (image + 1e-3).requires_grad_()
    exact = torch.autograd.grad(ssim(near, image).sum(), near)[0]
    single = near.detach().float().requires_grad_()
    value = ssim(single, image.float())
    value.sum().backward()
    assert value.item() == pytest.approx(ssim(near, image).item(), abs=1e-5)
    assert single.grad is not None
    assert (single.grad - exact).norm() < 1e-2 * exact.norm()
    assert ssim(image, image).item() == pytest.approx(1, abs=1e-12)
    assert ssim(image, target).item() < 0.9


def test_low_precision_around_it_changes_nothing() -> None:
    image, target = (tensor.float() for tensor in pair(1, 3, 20, 30))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ssim(image, target)
    assert torch.equal(inside, ssim(image, target))


def test_the_loss_is_one_minus_the_mean_and_pulls_on_the_last_rendering() -> None:
    step = a_step(torch.Generator().manual_seed(0))
    value = registry.build("losses", "ssim")(step)
    value.backward()
    expected = 1 - ssim(step.renderings[-1].color, step.batch.target.images).mean()
    assert value.item() == pytest.approx(expected.item())
    last = step.renderings[-1].color.grad
    assert step.renderings[0].color.grad is None and last is not None and last.abs().max() > 0


def smooth_pair(noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """An image without detail and the same with noise: variances are small beside the means."""
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(1, 3, 6, 6, generator=generator, dtype=torch.float64)
    target = torch.nn.functional.interpolate(target, size=(96, 80), mode="bicubic").clamp(0, 1)
    return target + noise * torch.randn(target.shape, generator=generator).double(), target


def values_and_gradients(image: torch.Tensor, target: torch.Tensor) -> list[torch.Tensor]:
    leaves = image.detach().requires_grad_(), target.detach().requires_grad_()
    value = ssim(*leaves)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


@pytest.mark.parametrize("shape", [(3, 12, 19), (2, 1, 2, 11, 13), (1, 11, 11)])
def test_without_products_of_matrices_it_is_the_same(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA, where such products may be in TF32."""
    wanted = values_and_gradients(*pair(*shape))
    monkeypatch.setattr(products, "rounds_products", lambda tensor: True)
    monkeypatch.setattr("pmsplat.losses.ssim._windows", None)  # the matrices are not needed
    torch.testing.assert_close(values_and_gradients(*pair(*shape)), wanted, atol=1e-13, rtol=1e-11)


@pytest.mark.cuda
@pytest.mark.parametrize("noise", [0.003, 0.03])
def test_cuda_is_exact_where_products_are_in_tf32(noise: float) -> None:
    image, target = smooth_pair(noise)
    wanted = values_and_gradients(image, target)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = values_and_gradients(image.float().cuda(), target.float().cuda())
    finally:
        torch.set_float32_matmul_precision(before)
    assert found[0].item() == pytest.approx(wanted[0].item(), abs=2e-5)
    for ours, exact in zip(found[1:], wanted[1:], strict=True):
        assert (ours.double().cpu() - exact).norm() < 1e-2 * exact.norm()


@pytest.mark.cuda
def test_cuda_makes_nobody_wait() -> None:
    image, target = (tensor.float().cuda() for tensor in smooth_pair(0.1))
    values_and_gradients(image, target)  # sends constants
    with no_waits():
        values_and_gradients(image, target)


def test_too_small_images_are_refused() -> None:
    image, target = pair(1, 3, 10, 30)
    with pytest.raises(UserError, match="10x30 pixels for SSIM; wanted sides of at least 11"):
        ssim(image, target)
