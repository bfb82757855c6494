"""Image metrics exactly as the published tables of pixelSplat, MVSplat and DepthSplat have them."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..foundation.lpips import LPIPS
from ..losses.ssim import ssim as structural_similarity

DEFINITIONS = {
    "psnr": "dB, both images clipped to [0, 1], at most 100",
    "ssim": "Gaussian window of 11 pixels and sigma 1.5, images not clipped, float64; as skimage's "
    "structural_similarity with gaussian_weights=True, win_size=11, data_range=1",
    "lpips": "version 0.1 over VGG-16, images not clipped",
    "abs_rel": "mean of |predicted - true| / true depth of the context views, not aligned",
    "rmse": "root of the mean squared depth error in the unit of the data, not aligned",
    "delta1": "share of pixels whose depth is within a factor of 1.25 of the true one",
    "median": "each depth map times the ratio of the medians of true and predicted depth",
    "affine": "inverse depth of each map times a scale plus a shift, by least squares",
}
LEAST_MSE = 1e-10  # identical images read 100 dB instead of infinity, so that means stay finite


@torch.no_grad()
def psnr(
    image: Float[Tensor, "*batch 3 height width"], target: Float[Tensor, "*batch 3 height width"]
) -> Float[Tensor, "*batch"]:
    """Peak signal-to-noise ratio of each image in dB, both clipped to [0, 1]; at most 100."""
    error = (image.clip(0, 1).double() - target.clip(0, 1)).square().mean(dim=(-3, -2, -1))
    return -10 * error.clamp(min=LEAST_MSE).log10()


@torch.no_grad()
def ssim(
    image: Float[Tensor, "*batch 3 height width"], target: Float[Tensor, "*batch 3 height width"]
) -> Float[Tensor, "*batch"]:
    """Structural similarity of each image, Gaussian window of 11 pixels, images not clipped.

    Equals skimage's `structural_similarity` with `gaussian_weights=True, win_size=11, data_range=1`
    (its sample covariance and its border included), in float64. Raises UserError for images with a
    side below 11 pixels.
    """
    return structural_similarity(image.double(), target.double(), sample_covariance=True)


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
