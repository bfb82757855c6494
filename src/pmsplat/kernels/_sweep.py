"""The geometry of a plane sweep as every implementation of the correlation takes it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class FlatSweep:
    """A `cost_volume.Sweep` with the views of all scenes in one axis.

    `others[n, o]` are places in that axis; both maps are `height` by `width`. All is contiguous.
    """

    others: Int[Tensor, "view other"]
    homographies: Float[Tensor, "view other 3 4"]
    inv_depth: Float[Tensor, "view plane height_or_1 width_or_1"]
    pixel_center: float
    height: int
    width: int


@dataclass(frozen=True)
class Sweep:
    """The geometry of a sweep: the other views of each view, and the inverse depths of its pixels.

    `homographies[b, v, o]` map view v to view `others[b, v, o]`, in pixels of the feature map;
    `inv_depth` is per plane, or per plane and pixel. No field receives a gradient.
    """

    others: Int[Tensor, "batch view other"]
    homographies: Float[Tensor, "batch view other 3 4"]
    inv_depth: Float[Tensor, "batch view plane height_or_1 width_or_1"]
    pixel_center: float

    def flat(self, height: int, width: int) -> FlatSweep:
        """Returns it for feature maps of that size."""
        batch, views, _ = self.others.shape
        scene = torch.arange(batch, device=self.others.device)[:, None, None]
        return FlatSweep(
            (self.others + scene * views).flatten(0, 1).contiguous(),
            self.homographies.flatten(0, 1).contiguous(),
            self.inv_depth.flatten(0, 1).contiguous(),
            self.pixel_center,
            height,
            width,
        )


def normalize(
    coordinates: Float[Tensor, "*batch 2"], height: int, width: int
) -> Float[Tensor, "*batch 2"]:
    """Converts index space to the [-1, 1] of `grid_sample` without aligned corners.

    (With aligned corners all of a map of one row or column would be that row or column.)
    """
    x, y = coordinates.unbind(dim=-1)  # Python numbers: a tensor of them is an upload, and a wait
    return torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
