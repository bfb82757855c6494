"""SSIM and its gradient, against skimage and against finite differences."""

import pytest
import torch
from skimage.metrics import structural_similarity

from pmsplat import registry
from pmsplat.errors import UserError
from pmsplat.losses.ssim import ssim

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


def test_too_small_images_are_refused() -> None:
    image, target = pair(1, 3, 10, 30)
    with pytest.raises(UserError, match="10x30 pixels for SSIM; wanted sides of at least 11"):
        ssim(image, target)
