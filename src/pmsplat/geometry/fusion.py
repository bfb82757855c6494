"""Gaussians that several predictions made of one scene, as one: votes, shares, voxels, a budget.

Predictions of overlapping groups of views depict the same surfaces again and again. Depth maps vote
on what lies on their surfaces and what in their free space, as in Merrell et al., "Real-Time
Visibility-Based Fusion of Depth Maps", ICCV 2007. Voxels that merge Gaussians by weight are those
of AnySplat (Jiang et al., arXiv 2505.23716); here an edge is a pixel wide, and mass is kept.

The optical depth of a Gaussian is τ = -ln(1 - opacity): those of layers before each other add up.
Its mass is τ times its area face on, which is what it hides of all that is behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from . import se3
from .gaussian import covariance, decompose_covariance
from .products import einsum, matmul

AGREEMENT = 0.03  # of the depth of a view: nearer to its surface a Gaussian depicts it
SOLID = 0.9999  # opacity that counts as solid, which bounds optical depth
MOST_OPAQUE = 0.99  # of a merged Gaussian: the largest alpha that most rasterisers draw
LEAST_SURE = 1e-6  # added to confidence, so that shares of Gaussians without any are equal
FINEST = 2.0**-22  # of a coordinate: smaller voxels would be finer than float32
COARSEST = 2.0**12  # times as large as at first: voxels grow no further for a budget
STEP = 2.0**0.5  # by which they grow
HALVINGS = 4  # of the last step, for a count that is closer to the budget
EXCESS = 1.25  # times a budget that may be left to drop, of voxels that are too small for it
AT_ONCE = 1 << 20  # pairs of Gaussian and view, or rows to merge: bounds memory


@dataclass(frozen=True)
class Maps:
    """Depth maps of one group of views, in scene units (0: none), and how sure it is of them."""

    depth: Float[Tensor, "view height width"]
    confidence: Float[Tensor, "view height width"]
    c2w: Float[Tensor, "view 4 4"]
    K: Float[Tensor, "view 3 3"]


@dataclass(frozen=True)
class Votes:
    """What groups say of Gaussians that are not theirs.

    `agree`: how many see them on their own surface; `through`: how many see through the place where
    they are; `confidence`: of those that agree, the best of each, added; it fades with the distance
    from their surface.
    """

    agree: Int[Tensor, " gaussian"]
    through: Int[Tensor, " gaussian"]
    confidence: Float[Tensor, " gaussian"]

    @property
    def floaters(self) -> Bool[Tensor, " gaussian"]:
        """Those that at least twice as many groups see through as depict, their own included."""
        return self.through >= 2 * (self.agree + 1)

    @property
    def contradicted(self) -> Bool[Tensor, " gaussian"]:
        """Those that others see through, and not fewer than depict them, their own included."""
        return self.through > self.agree


@torch.no_grad()
def count_votes(means: Float[Tensor, "gaussian 3"], groups: Sequence[Maps]) -> Votes:
    """Returns what other groups say of Gaussians; no gradient.

    A group agrees if a view of it has the mean in its picture, within AGREEMENT of its depth; the
    confidence of that view counts whole on its surface and falls to nothing there. It sees through
    if it does not agree, and a view has the mean in its picture before that.
    """
    agree, through = (torch.zeros(2, len(means), dtype=torch.int32, device=means.device)).unbind()
    confidence = torch.zeros_like(means[:, 0])
    for maps in groups:
        at_once = max(1, AT_ONCE // len(maps.depth))
        for start in range(0, len(means), at_once):
            part = slice(start, start + at_once)
            best, agrees, sees_through = _ask(means[part], maps).unbind()
            confidence[part] += best
            agree[part] += agrees.int()
            through[part] += sees_through.int()
    return Votes(agree, through, confidence)


def _ask(means: Tensor, maps: Maps) -> Float[Tensor, "3 gaussian"]:
    """The best confidence of views that agree, and, as 0 or 1, whether one does or sees through."""
    views, height, width = maps.depth.shape
    to_picture = matmul(maps.K, se3.invert(maps.c2w)[:, :3])
    seen = einsum("vij,nj->vin", to_picture[..., :3], means) + to_picture[..., 3:]
    across, down, z = seen.unbind(dim=1)
    column, row = (across / z * width).floor(), (down / z * height).floor()
    inside = (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixel = torch.where(inside, row * width + column, 0).long()
    depth = maps.depth.reshape(views, -1).gather(1, pixel)
    inside &= depth > 0
    behind, margin = z - depth, AGREEMENT * depth
    agrees = inside & (behind.abs() <= margin)
    sure = maps.confidence.reshape(views, -1).gather(1, pixel)
    best = torch.where(agrees, sure * (1 - behind.abs() / margin), 0).amax(dim=0)
    agrees = agrees.any(dim=0)
    through = (inside & (behind < -margin)).any(dim=0) & ~agrees
    return torch.stack([best, agrees.to(best), through.to(best)])


def optical_depth(opacities: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Returns -ln(1 - opacity), of opacities up to SOLID; differentiable."""
    return -torch.log1p(-opacities.clamp(max=SOLID))


def share_opacities(
    opacities: Float[Tensor, " gaussian"], confidence: Float[Tensor, " gaussian"], votes: Votes
) -> Float[Tensor, " gaussian"]:
    """Returns opacities whose optical depth is divided among the groups that depict a place.

    In proportion to `confidence`, each Gaussian's own beside that of the other groups, so that
    layers of one surface hide as much together as one of them did. Where no other group agrees,
    opacities stay as they are. Differentiable in opacities and confidence.
    """
    own = confidence + LEAST_SURE
    others = votes.confidence + LEAST_SURE * votes.agree
    shared = -torch.expm1(-optical_depth(opacities) * own / (own + others))
    return torch.where(votes.agree > 0, shared, opacities)


@dataclass(frozen=True)
class Cloud:
    """Gaussians as `pmsplat.Gaussians` has them, of one scene, without a batch axis."""

    means: Float[Tensor, "gaussian 3"]
    scales: Float[Tensor, "gaussian 3"]
    quats_wxyz: Float[Tensor, "gaussian 4"]
    opacities: Float[Tensor, " gaussian"]
    sh: Float[Tensor, "gaussian sh 3"]
    confidence: Float[Tensor, " gaussian"] | None = None

    def at(self, rows: Tensor) -> "Cloud":
        """Some of the Gaussians."""
        taken: Any = (None if x is None else x[rows] for x in vars(self).values())
        return Cloud(*taken)

    @staticmethod
    def joined(parts: Sequence["Cloud"], order: Int[Tensor, " gaussian"]) -> "Cloud":
        """The Gaussians of all parts, at `order`; all have a confidence or none. At least one."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        joined: Any = (None if x[0] is None else torch.cat(x)[order] for x in columns)
        return Cloud(*joined)

    @property
    def area(self) -> Float[Tensor, " gaussian"]:
        """Of the ellipse that a Gaussian shows face on, over π."""
        return _area(self.scales)

    @property
    def mass(self) -> Float[Tensor, " gaussian"]:
        """Optical depth times area."""
        return optical_depth(self.opacities) * self.area


def _area(scales: Float[Tensor, "gaussian 3"]) -> Float[Tensor, " gaussian"]:
    return scales.topk(2, dim=-1).values.prod(dim=-1)


@dataclass(frozen=True)
class Voxels:
    """Which Gaussians lie together in a voxel.

    `order` lists Gaussians voxel after voxel, each time in their own order; `counts` says how many
    there are in each.
    """

    order: Int[Tensor, " gaussian"]
    counts: Int[Tensor, " voxel"]

    @property
    def first(self) -> Int[Tensor, " voxel"]:
        """The first Gaussian of each voxel."""
        return self.order[self.counts.cumsum(0) - self.counts]


@torch.no_grad()
def find_voxels(
    means: Float[Tensor, "gaussian 3"], edges: Float[Tensor, " gaussian"], factor: float = 1.0
) -> Voxels:
    """Returns the Gaussians by voxel; no gradient.

    The edge of a Gaussian's voxel is the power of two nearest to `factor` times its `edges`, so
    near things, seen large, have small voxels. Voxels of different size are never the same.
    """
    finest = means.abs().amax(dim=-1) * FINEST
    wanted = torch.maximum(factor * edges, finest).clamp_min(torch.finfo(means.dtype).tiny)
    # The mantissa is in [0.5, 1): log2 rounds down below the root of 0.5; all of this is exact
    mantissa, level = torch.frexp(wanted)
    smaller = mantissa < 0.5**0.5
    edge = wanted / mantissa * torch.where(smaller, 0.5, 1.0)
    level = level.long() - smaller.long()
    cells = (means / edge[:, None]).floor().long()
    # Two numbers of 64 bits name a voxel; sorted by one, then by the other
    high, low = (level << 32) + cells[:, 0], (cells[:, 1] << 32) + cells[:, 2]
    order = low.argsort(stable=True)
    order = order[high[order].argsort(stable=True)]
    high, low = high[order], low[order]
    starts = torch.ones_like(high, dtype=torch.bool)
    starts[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    ends = torch.cat([starts.nonzero()[:, 0], starts.new_full((1,), len(means), dtype=torch.long)])
    return Voxels(order, ends.diff())


def merge(cloud: Cloud, voxels: Voxels, alone: Float[Tensor, " gaussian"] | None = None) -> Cloud:
    """Returns one Gaussian for each voxel, in the order of the first in each.

    Means, covariances, harmonics and confidence are averaged by mass, without the spread of the
    means, which would blur; the sum of masses is kept, up to MOST_OPAQUE. A Gaussian that is alone
    in its voxel stays as it is, to the bit. `alone` are the opacities with which each was right by
    itself: where given, a merged Gaussian grows until it is no more opaque than those that it is
    made of, so that voxels of many do not become small opaque dots with gaps between.
    Differentiable.
    """
    several, first = voxels.counts > 1, voxels.first
    rows = voxels.order[several.repeat_interleave(voxels.counts)]
    counts = voxels.counts[several]
    kept = first[~several]
    parts = [cloud.at(kept)]
    split = _split_voxels(counts)
    for chosen, of_each in zip(rows.split([int(n.sum()) for n in split]), split, strict=True):
        parts.append(_blend(cloud.at(chosen), of_each, None if alone is None else alone[chosen]))
    place = torch.cat([kept, first[several]]).argsort()
    return Cloud.joined(parts, place)


def _split_voxels(counts: Int[Tensor, " voxel"]) -> list[Tensor]:
    """The voxels in parts that have about AT_ONCE Gaussians each."""
    part = (counts.cumsum(0) - counts) // AT_ONCE
    return list(counts.split(part.unique_consecutive(return_counts=True)[1].tolist()))


def _blend(cloud: Cloud, counts: Tensor, alone: Tensor | None) -> Cloud:
    """The rows of voxels, as many as `counts` says of each, as one Gaussian each."""

    def add(values: Tensor) -> Tensor:
        return torch.segment_reduce(values.contiguous(), "sum", lengths=counts, axis=0)

    def average(values: Tensor) -> Tensor:
        return add(weights.view(-1, *[1] * (values.ndim - 1)) * values)

    mass, total = cloud.mass, add(cloud.mass)
    empty = (total <= 0).repeat_interleave(counts)
    whole = total.repeat_interleave(counts)
    even = (1 / counts.to(mass)).repeat_interleave(counts)
    weights = torch.where(empty, even, mass / torch.where(empty, 1, whole))
    spread = average(covariance(cloud.scales, cloud.quats_wxyz))
    scales, quats = decompose_covariance(spread)
    depth = total / _area(scales).clamp_min(torch.finfo(total.dtype).tiny)
    if alone is not None:
        typical = average(optical_depth(alone))
        growth = torch.where(typical > 0, depth / torch.where(typical > 0, typical, 1), 1)
        growth = growth.clamp_min(1)
        scales, depth = scales * growth.sqrt()[:, None], depth / growth
    opacities = (-torch.expm1(-depth)).clamp(max=MOST_OPAQUE)
    # The weights of a voxel sum to 1 but for rounding, which must not make anything surer than 1
    sure = None if cloud.confidence is None else average(cloud.confidence).clamp(max=1)
    return Cloud(average(cloud.means), scales, quats, opacities, average(cloud.sh), sure)


def fit_voxels(
    means: Float[Tensor, "gaussian 3"],
    edges: Float[Tensor, " gaussian"],
    count: int,
    finest: Voxels | None = None,
) -> Voxels:
    """Returns the smallest voxels, from `edges` on, that are about `count` or fewer; no gradient.

    `finest` are those of `edges`, where they are known. They grow by STEP until they fit, or
    COARSEST times, then shrink again by parts of that step while they fit. The last that do not are
    taken where they are at most EXCESS times too many: who drops the rest has `count` of them then,
    and not fewer.
    """
    small = large = 1.0  # factors of the last that are too many, and of those that fit
    too_many = fits = finest or find_voxels(means, edges)
    while len(fits.counts) > count and large < COARSEST:
        small, too_many = large, fits
        large *= STEP
        fits = find_voxels(means, edges, large)
    if len(fits.counts) > count or fits is too_many:
        return fits
    for _ in range(HALVINGS):
        middle = (small * large) ** 0.5
        found = find_voxels(means, edges, middle)
        if len(found.counts) > count:
            small, too_many = middle, found
        else:
            large, fits = middle, found
    return too_many if len(too_many.counts) <= EXCESS * count else fits


@torch.no_grad()
def find_heaviest(mass: Float[Tensor, " gaussian"], count: int) -> Int[Tensor, " kept"]:
    """Returns the `count` of most mass, in their order; of equal ones the first."""
    return mass.argsort(descending=True, stable=True)[:count].sort().values
