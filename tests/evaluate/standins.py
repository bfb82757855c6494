"""A network that knows the cameras, and an encoder that needs no training."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pmsplat.evaluate.baselines import pixel_splats, sweep_depth
from pmsplat.geometry import se3
from pmsplat.types import Batch, PosedDepth, Prediction, Views


@dataclass
class StandIn:
    """A network that sees one scene after the other: its cameras with noise, in another world.

    `turn` in degrees and `shift` in shares of the depth; its unit is `unit` times the given one.
    """

    scenes: list[Batch]
    turn: float = 0.0
    shift: float = 0.0
    unit: float = 0.3
    name: str = "stand_in"
    pose_revision: str = "7"
    seen: int = 0

    def choose_size(self, aspect: float) -> tuple[int, int]:
        return 28, round(28 * aspect)

    def prepare(self) -> None:
        pass

    def pose(self, images: Tensor) -> PosedDepth:
        context = self.scenes[self.seen % len(self.scenes)].context
        generator = torch.Generator().manual_seed(self.seen)
        self.seen += 1
        assert images.shape[-2:] == self.choose_size(context.size[1] / context.size[0])
        assert context.depth is not None
        drawn = torch.randn(2, *context.cameras.near.shape, 3, generator=generator)
        moves, turns = nn.functional.normalize(drawn, dim=-1)
        step = self.shift * context.depth[context.depth > 0].median()
        noise = se3.exp(torch.cat([step * moves, math.radians(self.turn) * turns], dim=-1))
        c2w = replace(context.cameras, c2w=context.cameras.c2w @ noise).scaled(self.unit)
        world = se3.exp(torch.tensor([[1.0, -2.0, 0.5, 0.3, -1.2, 0.4]]))
        depth = self.unit * context.depth
        return PosedDepth(c2w.moved(world).c2w, c2w.K, depth, (depth > 0).float())


class Sweep(nn.Module):
    """Depth by a plane sweep, and a splat for each pixel."""

    def forward(self, views: Views) -> Prediction:
        depth = sweep_depth(views, planes=48)
        return Prediction((depth,), (pixel_splats(views, depth),))
