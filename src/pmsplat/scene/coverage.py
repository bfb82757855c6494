"""Which views to show to a network, so that it can find depth for as much as possible of a scene.

Depth needs two views of a point, from directions that are neither almost the same nor so different
that they show different things. Views are added greedily, as in next-best-view planning (Krainin,
Curless and Fox, "Autonomous Generation of Complete 3D Object Models", ICRA 2011, and others); the
value of a set grows by less the more views it has, so the greedy choice is near the best one
(Nemhauser, Wolsey and Fisher, 1978).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from ..geometry import camera
from ..types import Cameras
from .overlap import ENOUGH, GRID, LITTLE, WIDEST

NARROWEST = math.radians(2)  # angle of two rays: about 8 pixels of parallax in a picture of 256
SAMPLED = 128  # photos whose points count, at most, evenly spread
AT_ONCE = 1 << 23  # points times cameras, which bounds memory for long videos
ONCE = 0.8  # worth of a point that one chosen view sees, of one for which two give depth


@dataclass(frozen=True)
class Sight:
    """What cameras see of points on the surfaces that all of them see.

    `sees`: the point is in the picture, and seen from within WIDEST of the direction of the photo
    that it is of. `rays`: unit vectors from camera to point.
    """

    sees: Bool[Tensor, "view point"]
    rays: Float[Tensor, "view point 3"]

    def meets(self, view: int) -> Bool[Tensor, "view point"]:
        """Where each camera and `view` see a point from directions that give depth."""
        cosine = (self.rays * self.rays[view]).sum(dim=-1)
        apart = (cosine < math.cos(NARROWEST)) & (cosine > math.cos(WIDEST))
        return self.sees & self.sees[view] & apart


def look_around(cameras: Cameras) -> Sight:
    """What each camera (batch 1) sees of a grid of points per photo.

    They are taken to be at the geometric mean of near and far, as for `overlaps`.
    """
    c2w, K = cameras.c2w[0], cameras.K[0]
    sampled = min(len(c2w), SAMPLED, max(1, AT_ONCE // (len(c2w) * GRID**2)))
    at = torch.linspace(0, len(c2w) - 1, sampled).round().long()
    depth = (cameras.near * cameras.far).sqrt()[0, at]
    grid = depth[:, None, None].expand(-1, GRID, GRID)
    points = camera.unproject_depth(grid, c2w[at], K[at]).flatten(1, 2)
    own = normalize(points - c2w[at, None, :3, 3], dim=-1).flatten(0, 1)
    points = points.flatten(0, 1)
    there = camera.project_world(points.expand(len(c2w), -1, -1), c2w, K)
    inside = (there[..., :2] >= 0).all(-1) & (there[..., :2] <= 1).all(-1) & (there[..., 2] > 0)
    rays = normalize(points - c2w[:, None, :3, 3], dim=-1)
    return Sight(inside & ((rays * own).sum(dim=-1) > math.cos(WIDEST)), rays)


def coverage(sight: Sight, chosen: list[int]) -> float:
    """The share of all points for which two of the chosen views give depth."""
    pairs = torch.stack([sight.meets(view)[chosen].any(dim=0) for view in chosen])
    return pairs.any(dim=0).float().mean().item()


def choose_context(sight: Sight, overlap: Float[Tensor, "view view"], count: int) -> list[int]:
    """`count` views, in order, for which two give depth for as much as possible.

    Starts with the view that shares most with all others (`overlap`: see `overlaps`). Then, again
    and again, adds the one that gives depth for most new points, where new points that it alone
    sees count ONCE; a last view that shares less than LITTLE with the others gets nothing for them,
    since no partner will come. Of views that are as good, the one that is farthest from the chosen
    ones while it shares ENOUGH with one.
    """
    chosen = [int(overlap.sum(dim=1).argmax())]
    seen = sight.sees[chosen[0]]
    found = torch.zeros_like(seen)
    meets = sight.meets(chosen[0])  # of each camera with any of the chosen
    while len(chosen) < count:
        nearest = overlap[:, chosen].amax(dim=1)
        alone = sight.sees & ~(seen | meets | found)
        partner = (nearest >= LITTLE) | (len(chosen) < count - 1)
        gain = (meets & ~found).sum(dim=1) + ONCE * partner * alone.sum(dim=1)
        spread = torch.where(nearest >= ENOUGH, 2 - nearest, nearest)
        score = gain + spread / 2  # the second is less than a point
        score[chosen] = -1
        best = int(score.argmax())
        chosen.append(best)
        found, seen = found | meets[best], seen | sight.sees[best]
        meets = meets | sight.meets(best)
    return sorted(chosen)
