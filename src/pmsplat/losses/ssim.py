"""Structural dissimilarity of the rendered color, 1 - SSIM.

Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", TIP 2004;
as a loss of Gaussians: Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field
Rendering", 2023, whose code calls 1 - SSIM the D-SSIM.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

from ..contracts import Loss
from ..errors import UserError
from ..geometry import products
from ..geometry.constants import constant, keep_results
from ..types import StepOutput

WINDOW, SIGMA = 11, 1.5  # of the Gaussian weights, in pixels
C1, C2 = 0.01**2, 0.03**2  # keep the quotients finite, for images in [0, 1]


@dataclass
class Config:
    """Nothing to set: the mean runs over scenes, targets, channels and windows."""


def build(cfg: Config) -> Loss:
    """1 - SSIM of the last rendering, not clamped, and the target images.

    Raises UserError for images below 11 pixels and for a model that predicts depth alone.
    """

    def dissimilarity(step: StepOutput) -> Float[Tensor, ""]:
        return 1 - ssim(step.rendering.color, step.batch.target.images).mean()

    return dissimilarity


def ssim(
    image: Float[Tensor, "*batch channel height width"],
    target: Float[Tensor, "*batch channel height width"],
    sample_covariance: bool = False,
) -> Float[Tensor, "*batch"]:
    """Structural similarity of images in [0, 1], at most 1, with gradients to both.

    The mean over channels and over the windows that lie whole inside the image. Variances are the
    weighted (biased) ones of the paper, or, with `sample_covariance`, those of a sample as large as
    the window, as in skimage's default and so in the published tables. The code of 3DGS differs
    only at the border, where it pads with zeros. Computed in float64 for float64 images, else in
    float32. Raises UserError for images with a side below 11 pixels.
    """
    height, width = image.shape[-2:]
    if min(height, width) < WINDOW:
        raise UserError(
            f"images of {height}x{width} pixels for SSIM",
            f"sides of at least {WINDOW}",
            "use larger images, or a loss without SSIM",
        )
    with torch.autocast(image.device.type, enabled=False):
        x, y = image, target
        if x.dtype != torch.float64:
            x, y = x.float(), y.float()
        # local means of the images and of their products
        maps = _local_means(torch.stack([x, y, x * x, y * y, x * y]))
        mean_x, mean_y, square_x, square_y, product = maps
        mean_xy, mean_xx, mean_yy = mean_x * mean_y, mean_x * mean_x, mean_y * mean_y
        # variances and covariance of each window
        covariance = product - mean_xy
        variances = (square_x - mean_xx) + (square_y - mean_yy)
        if sample_covariance:
            unbias = WINDOW**2 / (WINDOW**2 - 1)
            covariance, variances = unbias * covariance, unbias * variances
        numerator = (2 * mean_xy + C1) * (2 * covariance + C2)
        similarity = numerator / ((mean_xx + mean_yy + C1) * (variances + C2))
        return similarity.mean(dim=(-3, -2, -1))


def _local_means(
    maps: Float[Tensor, "map *batch height width"],
) -> Float[Tensor, "map *batch window_row window_column"]:
    """The weighted mean over each window.

    By products with bands of weights: on the CPU, forward and back, they take a tenth of the time
    of convolutions. Where such products would be in TF32, whose rounding is larger than what is
    left after the subtraction for a variance, by convolutions of single channels, which torch
    computes with a kernel of its own, in float32 throughout.
    """
    if not products.rounds_products(maps):
        rows, columns = (_windows(side, maps.dtype, maps.device) for side in maps.shape[-2:])
        return rows @ maps @ columns.T
    channels = maps.flatten(0, -3)
    groups = len(channels)
    weights = constant(_gaussian(torch.float64), maps).repeat(groups, 1, 1)
    channels = conv2d(channels[None], weights[..., None], groups=groups)
    channels = conv2d(channels, weights[..., None, :], groups=groups)
    return channels[0].unflatten(0, maps.shape[:-2])


@keep_results
def _windows(
    length: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "window length"]:
    """The matrix that averages over each window along an axis: rows of Gaussian weights."""
    band = torch.zeros(length - WINDOW + 1, length, dtype=dtype)
    for i, weight in enumerate(_gaussian(dtype)):
        band.diagonal(i)[:] = weight
    return band.to(device)


def _gaussian(dtype: torch.dtype) -> tuple[float, ...]:
    """The weights of a window along an axis."""
    offsets = torch.arange(WINDOW, dtype=dtype) - WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    return tuple((weights / weights.sum()).tolist())
