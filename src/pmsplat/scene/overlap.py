"""Which cameras see the same things, and which of them go through a network together."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..geometry import camera
from ..types import Cameras

GRID = 8  # points per side of an image from which overlap is estimated
WIDEST = math.radians(30)  # angle under which two rays to a point still see the same of it
TIE = 0.5 / GRID**2  # less than one point of the grid
ENOUGH = 0.6  # overlap that a new view keeps with the ones chosen before it
LITTLE = 0.3  # overlap that is called small (NoPoSplat, arXiv 2410.24207)


@dataclass(frozen=True)
class Group:
    """Views that go through the network together; `fresh` are those that no earlier group held."""

    views: list[int]
    fresh: list[int]


def overlaps(cameras: Cameras) -> Float[Tensor, "view view"]:
    """[i, j]: the share of what camera i sees that camera j sees too, and the reverse; the lesser.

    Estimated for surfaces at the geometric mean of near and far of each camera; what two cameras
    see from directions more than WIDEST apart does not count. Batch 1.
    """
    points = _surfaces(cameras)
    rows = [  # by camera: bounds memory for long videos
        _seen_from(points[i].expand_as(points), cameras.c2w[0, i], cameras)
        for i in range(len(points))
    ]
    share = torch.stack(rows)
    return torch.minimum(share, share.T)


def overlaps_of(cameras: Cameras, view: int) -> Float[Tensor, " view"]:
    """The row of one camera in `overlaps`, for less."""
    points, own = _surfaces(cameras), cameras.at([view])
    theirs = _seen_from(points[view].expand_as(points), own.c2w[0, 0], cameras)
    ours = _seen_from(points, cameras.c2w[0], own)
    return torch.minimum(theirs, ours)


def _surfaces(cameras: Cameras) -> Float[Tensor, "view point 3"]:
    """Points that each camera sees."""
    depth = (cameras.near * cameras.far).sqrt()[0]
    grid = depth[:, None, None].expand(-1, GRID, GRID)
    return camera.unproject_depth(grid, cameras.c2w[0], cameras.K[0]).flatten(1, 2)


def _seen_from(
    points: Float[Tensor, "view point 3"],
    seen_from: Float[Tensor, "*view 4 4"],
    cameras: Cameras,
) -> Float[Tensor, " view"]:
    """The share of points, which cameras `seen_from` see, that each of the cameras sees too."""
    c2w, K = cameras.c2w[0], cameras.K[0]
    there = camera.project_world(points, c2w, K)
    inside = (there[..., :2] >= 0).all(-1) & (there[..., :2] <= 1).all(-1) & (there[..., 2] > 0)
    here = seen_from[..., :3, 3].unsqueeze(-2)
    cosine = cosine_similarity(points - here, points - c2w[:, None, :3, 3], dim=-1)
    return (inside & (cosine > math.cos(WIDEST))).float().mean(dim=-1)


def held_out(overlap: Float[Tensor, "view view"], context: list[int], count: int) -> list[int]:
    """Up to `count` other views that see what the context saw (at least half), evenly by order."""
    nearest = overlap[:, context].amax(dim=1)
    seen = [i for i in range(len(overlap)) if i not in context and nearest[i] >= 0.5]
    if len(seen) <= count:
        return seen
    picks = torch.linspace(0, len(seen) - 1, count).round().long().tolist()
    return [seen[i] for i in picks]


def group_views(overlap: Float[Tensor, "view view"], count: int) -> list[Group]:
    """Groups of two to `count` views that see the same things, until every view was fresh in one.

    Each is built around the first view that was not: added are, again and again, of the views that
    share ENOUGH with it the one that is farthest from those in the group, since depth needs
    parallax. Views that were not fresh yet come first, except as the second view, which sets the
    baseline. Where none shares enough, or only copies of the view do, which have no parallax, the
    one that shares most beside those joins.
    """
    found, missing = [], torch.ones(len(overlap), dtype=torch.bool)
    while missing.any():
        first = int(missing.int().argmax())
        chosen, enough, copies = [first], overlap[first] >= ENOUGH, overlap[first] > 1 - TIE
        enough[first] = False
        while len(chosen) < count and enough.any():
            apart = 1 - overlap[:, chosen].amax(dim=1)
            score = apart + missing * (TIE if len(chosen) == 1 else 1.0)
            chosen.append(int(torch.where(enough, score, -1).argmax()))
            enough[chosen] = False
        share, best = torch.where(copies, -1, overlap[first]).max(dim=0)
        if len(chosen) == 1 or (copies[chosen].all() and share > 0):
            chosen[count - 1 :] = [int(best)]
        fresh = [i for i in sorted(chosen) if missing[i] and overlap[first, i] >= ENOUGH]
        found.append(Group(sorted(chosen), fresh))
        missing[fresh] = False
    return found
