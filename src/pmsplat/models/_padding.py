"""Any number of views of any size, for networks that want multiples."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from math import isqrt

import torch
from torch.nn.functional import pad

from ..errors import UserError
from ..types import Gaussians, Prediction, Views


def predict_padded(
    network: Callable[[Views], Prediction], views: Views, multiple: int
) -> Prediction:
    """What `network` predicts for views of any size.

    Where height or width is not a multiple, the last row and column of the images are repeated
    until it is, the intrinsics follow, and what is predicted for the repeated pixels is cut off; a
    warning says so once. Raises UserError for fewer than two views.
    """
    require_two_views(views)
    height, width = views.size
    down, right = -height % multiple, -width % multiple
    if not (down or right):
        return network(views)
    warnings.warn(
        f"images of {height}x{width} pixels are padded to {height + down}x{width + right}, "
        f"multiples of {multiple}, and the prediction is cut back",
        stacklevel=5,  # whoever calls the encoder, through torch,
    )
    images = pad(views.images.flatten(0, 1), (0, right, 0, down), mode="replicate")
    x, y, one = views.cameras.K.unbind(dim=-2)
    K = torch.stack([x * (width / (width + right)), y * (height / (height + down)), one], dim=-2)
    cameras = replace(views.cameras, K=K)
    larger = Views(images.unflatten(0, views.images.shape[:2]), cameras)
    return _cut(network(larger), larger.size, (height, width))


def require_two_views(views: Views) -> None:
    """UserError for fewer than two views, which leave nothing to match."""
    count = views.images.shape[1]
    if count < 2:
        raise UserError(
            f"{count} view", "two or more views of the same scene", "give more photographs"
        )


def _cut(prediction: Prediction, size: tuple[int, int], wanted: tuple[int, int]) -> Prediction:
    """The top left part of a prediction for images of `size`.

    A Gaussian may stand for a square block of pixels: those whose block has a pixel left stay.
    """
    height, width = wanted
    views = prediction.depths[-1].shape[1]

    def part(gaussians: Gaussians) -> Gaussians:
        block = isqrt(views * size[0] * size[1] // gaussians.means.shape[1])
        grid = (views, size[0] // block, size[1] // block)
        rows, columns = -(-height // block), -(-width // block)
        return gaussians.map(lambda x: x.unflatten(1, grid)[:, :, :rows, :columns].flatten(1, 3))

    confidence = prediction.confidence
    return replace(
        prediction,
        depths=tuple(depth[..., :height, :width] for depth in prediction.depths),
        gaussians=tuple(part(level) for level in prediction.gaussians),
        confidence=None if confidence is None else confidence[..., :height, :width],
    )
