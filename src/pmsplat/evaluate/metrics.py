"""Image metrics exactly as the published tables of pixelSplat, MVSplat and DepthSplat have them."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

from ..foundation.lpips import LPIPS

# The settings of SSIM, in pixels of the window and its sigma
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
LEAST_MSE = 1e-10  # identical images read 100 dB instead of infinity, so that means stay finite


@torch.no_grad()
def psnr(
    image: Float[Tensor, "*batch 3 height width"], target: Float[Tensor, "*batch 3 height width"]
) -> Float[Tensor, "*batch"]:
    """Peak signal-to-noise ratio of each image in dB, both clipped to [0, 1]; at most 100."""
    error = (image.double().clip(0, 1) - target.double().clip(0, 1)).square().mean(dim=(-3, -2, -1))
    return -10 * error.clamp(min=LEAST_MSE).log10()


@torch.no_grad()
def ssim(
    image: Float[Tensor, "*batch 3 height width"], target: Float[Tensor, "*batch 3 height width"]
) -> Float[Tensor, "*batch"]:
    """Structural similarity of each image, Gaussian window of 11 pixels, images not clipped.

    Equals skimage's `structural_similarity` with `gaussian_weights=True, win_size=11, data_range=1`
    (its sample covariance and its border included), in float64. Images of at least 11 pixels.
    """
    height, width = image.shape[-2:]
    x, y = (tensor.double().reshape(-1, 1, height, width) for tensor in (image, target))
    offsets = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    weights = weights / weights.sum()

    def blur(value: Tensor) -> Tensor:
        return conv2d(conv2d(value, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))

    unbias = WINDOW**2 / (WINDOW**2 - 1)
    mean_x, mean_y = blur(x), blur(y)
    var_x = unbias * (blur(x * x) - mean_x * mean_x)
    var_y = unbias * (blur(y * y) - mean_y * mean_y)
    covariance = unbias * (blur(x * y) - mean_x * mean_y)
    c1, c2 = K1**2, K2**2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean(dim=(1, 2, 3)).view(*image.shape[:-3], 3).mean(dim=-1)


@torch.no_grad()
def lpips(
    image: Float[Tensor, "*batch 3 height width"],
    target: Float[Tensor, "*batch 3 height width"],
    network: LPIPS,
) -> Float[Tensor, "*batch"]:
    """LPIPS of each image, not clipped (published: VGG-16); float32, a few images at a time."""
    images, targets = (x.float().reshape(-1, *x.shape[-3:]) for x in (image, target))
    pairs = zip(images.split(8), targets.split(8), strict=True)
    return torch.cat([network(a, b) for a, b in pairs]).view(image.shape[:-3])
