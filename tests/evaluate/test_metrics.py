"""PSNR and SSIM against skimage, and the behaviour at the ends of their range."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pmsplat.evaluate import metrics


@pytest.fixture
def pair(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images [2, 3, 3, 40, 56] and noisy renderings of them, some values beyond [0, 1]."""
    coarse = torch.rand(6, 3, 5, 7, generator=generator)
    target = torch.nn.functional.interpolate(coarse, (40, 56), mode="bilinear").view(
        2, 3, 3, 40, 56
    )
    noise = torch.linspace(0.02, 0.5, 6).view(2, 3, 1, 1, 1)
    return target + noise * torch.randn(target.shape, generator=generator), target


def test_psnr_is_that_of_clipped_images(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, target = pair
    got = metrics.psnr(image, target)
    assert got.shape == (2, 3)
    for i in np.ndindex(2, 3):
        clipped = image[i].clip(0, 1).double().numpy()
        want = peak_signal_noise_ratio(target[i].double().numpy(), clipped, data_range=1)
        assert got[i].item() == pytest.approx(want, abs=1e-9)


def test_ssim_equals_skimage(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, target = pair
    got = metrics.ssim(image, target)
    assert got.shape == (2, 3)
    for i in np.ndindex(2, 3):
        want = structural_similarity(
            target[i].double().numpy(),
            image[i].double().numpy(),
            win_size=11,
            gaussian_weights=True,
            channel_axis=0,
            data_range=1.0,
        )
        assert got[i].item() == pytest.approx(float(np.asarray(want)), abs=1e-9)


def test_identical_images_read_100_db_and_1(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    target = pair[1]
    assert metrics.psnr(target, target).tolist() == [[100.0] * 3] * 2
    assert torch.allclose(metrics.ssim(target, target), torch.ones(2, 3, dtype=torch.float64))


def test_a_single_image_gives_a_scalar(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, target = pair[0][0, 0], pair[1][0, 0]
    assert metrics.psnr(image, target).shape == metrics.ssim(image, target).shape == ()
