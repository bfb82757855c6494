"""Whether the depths that were predicted for several views fit each other, and fit the photos.

No truth is needed. Points of one view are moved into the others by the predicted depth. Depth is
compared with what is predicted there (the consistency check of multi-view stereo: Schönberger et
al., "Pixelwise View Selection for Unstructured Multi-View Stereo", ECCV 2016), and photos by their
detail, whose correlation does not depend on exposure. Right depth and poses give a correlation near
1, wrong ones near 0: tests hold the figures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate

from ..geometry import camera
from ..types import Views

TOLERANCE = 0.05  # relative difference up to which two depths agree
HIDDEN = 0.25  # relative distance behind a surface from which a point is hidden, not misplaced
POINTS = 4096  # of a view, at most: enough for shares to a percent or two
AT_ONCE = 1 << 21  # points seen by a view that are held in memory at once
SHORT_SIDE = 128  # pixels of the photos that are compared
FINE, COARSE = 3, 9  # pixels: detail is what a mean over the one keeps and one over the other loses
LOUD = 0.2  # detail beyond it counts as that: highlights do not outweigh the rest
QUIET = 0.01  # detail that is less in the mean of a photo is noise, and not made louder
ASIDE = math.radians(45)  # rays farther apart see other sides of things


@dataclass(frozen=True)
class Agreement:
    """How several views of one place fit each other by their predicted depth.

    `shares`: of each view, the share of its points that are in the picture of at least one other
    view, whose rays to them are less than ASIDE apart. Below, a point is compared in every picture
    that it is in, unless HIDDEN there. `geometric`: the share of compared points whose depths
    differ by at most TOLERANCE. `photometric`: correlation of the detail of the
    photos there, from 1 through 0 (chance) to -1; `unmoved` the same at equal pixels, as
    if there were no parallax. `angle`: the widest between the rays of two views to a point, in
    degrees, median over points. All are NaN, but `shares`, where nothing can be compared.
    `points` is the number of compared points.
    """

    shares: tuple[float, ...]
    geometric: float
    photometric: float
    unmoved: float
    angle: float
    points: int


def measure_agreement(views: Views, depth: Float[Tensor, "1 view height width"]) -> Agreement:
    """Returns how the views (batch 1) fit each other if `depth` (z, 0 = none) is what they show.

    Memory is bounded: at most POINTS of a view count, evenly spread, and all pairs of views are
    looked at together as long as they are few.
    """
    # Spread points over each view, and find the detail of its photo.
    c2w, K, depth = views.cameras.c2w[0], views.cameras.K[0], depth[0].detach().float()
    count, height, width = depth.shape
    stride = max(1, math.ceil(math.sqrt(height * width / POINTS)))
    start = (min(stride, height, width) - 1) // 2
    picked = slice(start, None, stride)
    world = camera.unproject_depth(depth, c2w, K)[:, picked, picked].flatten(1, 2)
    known = (depth > 0)[:, picked, picked].flatten(1)
    own = camera.pixel_grid(height, width, like=K)[picked, picked].flatten(0, 1)
    detail = _detail(views.images[0].to(depth))

    # Look at the points of some views through all views.
    block = max(1, AT_ONCE // (count * world.shape[1]))
    parts = [
        _look(detail, depth, c2w, K, _Points(at, world[at], known[at], own))
        for at in torch.arange(count, device=depth.device).split(block)
    ]
    sums = torch.stack([part.sums for part in parts]).sum(dim=0).tolist()
    angles = torch.cat([part.angles for part in parts])
    shares = torch.cat([part.shares for part in parts]).tolist()
    points = int(sums[0])
    if not points:
        return Agreement(tuple(shares), *[math.nan] * 4, points=0)
    return Agreement(
        shares=tuple(shares),
        geometric=sums[1] / points,
        photometric=_correlation(sums[2:5]),
        unmoved=_correlation([sums[5], sums[3], sums[6]]),
        angle=math.degrees(angles.median().item()),
        points=points,
    )


def join_agreements(parts: Sequence[Agreement]) -> Agreement:
    """Returns the agreement of all groups of views; each counts by its points."""
    seen = [part for part in parts if part.points]
    points = sum(part.points for part in seen)

    def mean(name: str) -> float:
        weighted = sum(getattr(part, name) * part.points for part in seen)
        return weighted / points if points else math.nan

    return Agreement(
        shares=tuple(share for part in parts for share in part.shares),
        geometric=mean("geometric"),
        photometric=mean("photometric"),
        unmoved=mean("unmoved"),
        angle=mean("angle"),
        points=points,
    )


@dataclass(frozen=True)
class _Points:
    """Points of the views `at`: places, whether there are any, and own pixels in [0, 1]."""

    at: Tensor
    world: Float[Tensor, "own point 3"]
    known: Bool[Tensor, "own point"]
    xy: Float[Tensor, "point 2"]


@dataclass(frozen=True)
class _Look:
    """Sums over the points that another view sees: how many, of agreeing depth, of products of
    detail (own and there, own squared, there squared, own and unmoved, unmoved squared)."""

    sums: Float[Tensor, "7"]
    angles: Float[Tensor, " seen"]
    shares: Float[Tensor, " own"]


def _look(
    detail: Float[Tensor, "view 1 h w"],
    depth: Float[Tensor, "view height width"],
    c2w: Float[Tensor, "view 4 4"],
    K: Float[Tensor, "view 3 3"],
    points: _Points,
) -> _Look:
    """What all views see of the points of some. The first axis is the view that looks."""
    views, (own, number) = len(c2w), points.known.shape
    flat = points.world.flatten(0, 1).expand(views, -1, -1)
    there = camera.project_world(flat, c2w, K).view(views, own, number, 3)
    xy, z = there[..., :2], there[..., 2]
    inside = (xy > 0).all(-1) & (xy < 1).all(-1) & (z > 0) & points.known
    inside &= torch.arange(views, device=depth.device)[:, None, None] != points.at[:, None]

    # What is predicted there decides what is hidden.
    grid = torch.where(inside[..., None], 2 * xy - 1, 0)
    shown = grid_sample(depth[:, None], grid, mode="nearest", align_corners=False)[:, 0]
    seen = inside & (shown > 0) & (z <= shown * (1 + HIDDEN))
    agrees = seen & ((z - shown).abs() <= TOLERANCE * shown)

    # Detail of the photos: of the point's own, where it falls, and where it would be unmoved.
    still = (2 * points.xy - 1).expand(views, 1, -1, -1)
    moved = grid_sample(detail, grid, align_corners=False)[:, 0]
    unmoved = grid_sample(detail, still, align_corners=False)[:, 0]
    mine = unmoved[points.at, 0]
    products = [mine * moved, mine * mine, moved * moved, mine * unmoved, unmoved * unmoved]
    sums = [seen.sum(), agrees.sum(), *((seen * product).sum() for product in products)]

    # The widest angle between the rays of two views.
    rays = torch.nn.functional.normalize(points.world - c2w[:, None, None, :3, 3], dim=-1)
    cosine = (rays * rays[points.at, torch.arange(own, device=depth.device)]).sum(dim=-1)
    angles = torch.where(seen, cosine.clamp(-1, 1).acos(), -1).amax(dim=0)
    shared = (inside & (cosine > math.cos(ASIDE))).any(dim=0)
    shares = shared.sum(dim=1) / points.known.sum(dim=1).clamp_min(1)
    return _Look(torch.stack([value.double() for value in sums]), angles[angles >= 0], shares)


def _detail(images: Float[Tensor, "view 3 height width"]) -> Float[Tensor, "view 1 h w"]:
    """Returns the detail of small copies of photos: what is neither noise nor slow change.

    Its mean square is the same in all photos, whatever their exposure.
    """
    gray = images.mean(dim=1, keepdim=True)
    shrink = SHORT_SIDE / min(gray.shape[-2:])
    if shrink < 1:
        gray = interpolate(gray, scale_factor=shrink, mode="area")
    detail = (_average(gray, FINE) - _average(gray, COARSE)).clamp(-LOUD, LOUD)
    return detail / detail.square().mean(dim=(-2, -1), keepdim=True).sqrt().clamp_min(QUIET)


def _average(image: Tensor, window: int) -> Tensor:
    return avg_pool2d(image, window, 1, window // 2, count_include_pad=False)


def _correlation(products: Sequence[float]) -> float:
    """Returns Σab / sqrt(Σa² · Σb²); 0 for photos without any detail."""
    both, first, second = products
    return both / math.sqrt(first * second) if first * second > 0 else 0.0
