"""An encoder with steps whose prediction is known in any world: what its frame must bring back."""

import torch
from torch import nn

from pmsplat.types import Gaussians, Prediction, Views
from tests.scenes import random_gaussians

STEP = 0.25  # along x of the world that it is shown, in its unit


class Stepped(nn.Module):
    """Fixed Gaussians in the world that it is shown, which each step moves by STEP along x.

    They are brighter by the mean of all images, so that scenes of a batch differ; depth is that of
    the world's origin in each view, plus 3, or near where that is behind it.
    """

    near: float | None = 0.01
    far: float | None = 200.0
    typical_depth: float | None = 5.0
    frame: str = "middle"
    steps: int | None = 2

    def __init__(self, gaussians: Gaussians) -> None:
        super().__init__()
        self.gaussians = gaussians
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[Views] = []

    def forward(
        self, views: Views, steps: int | None = None, all_levels: bool = False
    ) -> Prediction:
        self.seen.append(views)
        scenes = len(views.images)
        mean = views.images.mean(dim=(1, 2, 3, 4))
        start = self.gaussians.map(lambda tensor: tensor.repeat(scenes, *[1] * (tensor.ndim - 1)))
        levels = []
        for step in range((self.steps or 0) + 1 if steps is None else steps + 1):
            means = self.weight * start.means + torch.tensor([STEP * step, 0.0, 0.0])
            sh = start.sh + mean[:, None, None, None]
            levels.append(Gaussians(means, start.scales, start.quats_wxyz, start.opacities, sh))
        c2w, size = views.cameras.c2w, views.size
        distance = -(c2w[..., :3, 2] * c2w[..., :3, 3]).sum(dim=-1) + 3
        depth = torch.maximum(distance, views.cameras.near)[..., None, None].expand(
            *c2w.shape[:2], *size
        )
        everything = self.training or all_levels
        return Prediction((depth,), tuple(levels if everything else levels[-1:]))


def stepped(generator: torch.Generator, **traits: object) -> Stepped:
    """In eval mode, with these traits instead of its own."""
    model = Stepped(random_gaussians(24, generator, degree=3)).eval()
    for name, value in traits.items():
        setattr(model, name, value)
    return model
