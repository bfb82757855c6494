"""Structural dissimilarity of the rendered color, 1 - SSIM.

Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", TIP 2004;
as a loss of Gaussians: Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field
Rendering", 2023, whose code calls 1 - SSIM the D-SSIM.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..contracts import Loss
from ..errors import UserError
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
        rows, columns = _windows(height, x), _windows(width, x)
        maps = torch.stack([x, y, x * x, y * y, x * y])
        mean_x, mean_y, square_x, square_y, product = rows @ maps @ columns.T
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


def _windows(length: int, like: Tensor) -> Float[Tensor, "window length"]:
    """The matrix that averages over each window along an axis: rows of Gaussian weights.

    As products of matrices, forward and back take a tenth of the time of convolutions on the CPU.
    """
    offsets = torch.arange(WINDOW, dtype=like.dtype, device=like.device) - WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    band = like.new_zeros(length - WINDOW + 1, length)
    for i, weight in enumerate(weights / weights.sum()):
        band.diagonal(i)[:] = weight
    return band
