"""Nearest neighbours by comparing all pairs: the reference for `kernels.neighbors`."""

from math import prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UserError
from . import se3

PAIRS = 2**22  # distances held in memory at once
FARTHEST = 1e18  # bound of coordinates: squares of larger ones overflow float32
MOST = 32  # neighbours of a point
MIN_Z = 1e-6  # least divisor z of a projection


def nearest(
    points: Float[Tensor, "*batch n 3"],
    reference: Float[Tensor, "*batch m 3"],
    reference_mask: Bool[Tensor, "*batch m"] | None = None,
) -> Int[Tensor, "*batch n"]:
    """Returns for each point the index of the reference point at the least Euclidean distance.

    int64, without gradient. Ties are broken arbitrarily. Squared differences are summed in float32,
    or in float64 if one of the inputs is float64. Reference points whose mask is False are never
    chosen. Raises `UserError` as `prepare` does.
    """
    points, reference = prepare(points.detach(), reference.detach(), reference_mask)
    samples, n, m = prod(points.shape[:-2]), points.shape[-2], reference.shape[-2]
    queries, keys = points.reshape(samples, n, 3), reference.reshape(samples, m, 3)
    masks = None if reference_mask is None else reference_mask.reshape(samples, m)
    index = torch.zeros(samples, n, dtype=torch.int64, device=points.device)
    rows = max(1, PAIRS // m)
    for sample in range(samples):
        for first in range(0, n, rows):
            block = slice(first, first + rows)
            squared = (queries[sample, block, None] - keys[sample]).square().sum(dim=-1)
            if masks is not None:
                squared = squared.masked_fill(~masks[sample], torch.inf)
            index[sample, block] = squared.argmin(dim=-1)
    return index.view(points.shape[:-1])


def k_nearest(
    points: Float[Tensor, "*batch n 3"], reference: Float[Tensor, "*batch m 3"], k: int
) -> Int[Tensor, "*batch n k"]:
    """Returns for each point the indices of its `k` nearest reference points, nearest first.

    int64, without gradient; of equally near ones the lower index comes first. A point of both sets
    is its own neighbour. Distances are as in `nearest`, summed in the order x, y, z. Raises
    `UserError` for a `k` outside 1 to 32 or above m, and as `prepare` does.
    """
    check_count(k, reference.shape[-2])
    points, reference = prepare(points.detach(), reference.detach())
    samples, n, m = prod(points.shape[:-2]), points.shape[-2], reference.shape[-2]
    queries, keys = points.reshape(samples, n, 3), reference.reshape(samples, m, 3)
    index = torch.zeros(samples, n, k, dtype=torch.int64, device=points.device)
    rows = max(1, PAIRS // m)
    for sample in range(samples):
        for first in range(0, n, rows):
            block = slice(first, first + rows)
            squared = _squared(queries[sample, block, None] - keys[sample])
            index[sample, block] = squared.sort(dim=-1, stable=True).indices[..., :k]
    return index.view(*points.shape[:-1], k)


def k_nearest_in_windows(
    points: Float[Tensor, "batch view height width 3"],
    others: Int[Tensor, "batch view other"],
    c2w: Float[Tensor, "batch view 4 4"],
    K: Float[Tensor, "batch view 3 3"],
    k: int,
    radius: int = 3,
) -> Int[Tensor, "batch view height width k"]:
    """Returns for each point the `k` nearest among those near its pixels, nearest first.

    `points[b, v]` is a map of world points, one for each pixel of view v, though they need not lie
    on its ray. Neighbours are sought in windows of (2 · radius + 1)² pixels: in the point's own
    view around its pixel, and in each of its `others` around the pixel that it projects to, if
    z > 0. Indices count the points of all views of a scene, view after view, row by row: int64,
    without gradient, of equally near ones the lower first. The point itself is no neighbour, but it
    fills the places that are left where windows hold too few. Pixels are rounded halves to even.

    Xu et al., "ReSplat: Learning Recurrent Gaussian Splats", 2025, whose `local_knn` this is.
    Raises `UserError` for a `k` outside 1 to 32, and as `prepare` does.
    """
    check_count(k, MOST)
    points, _ = prepare(points.detach(), points.detach())
    batch, views, height, width, _ = points.shape
    index = torch.zeros(batch, views, height * width, k, dtype=torch.int64, device=points.device)
    rows = max(1, PAIRS // ((1 + others.shape[2]) * (2 * radius + 1) ** 2))
    pixels = torch.arange(height * width, device=points.device)
    for scene in range(batch):
        w2c, lenses = se3.invert(c2w[scene].to(points)), K[scene].to(points)
        for view in range(views):
            for own in pixels.split(rows):
                # The middles of the windows: the pixel itself, then its places in other views
                some, seen = points[scene, view].flatten(0, 1)[own], others[scene, view]
                middles = [torch.stack([own // width, own % width], dim=-1)]
                for other in range(len(seen)):
                    at = seen[other]
                    middles.append(
                        project_to_pixels(some, w2c[at], lenses[at], height, width, radius)
                    )
                sources = torch.nn.functional.pad(seen, (1, 0), value=view)
                places, inside = _windows(torch.stack(middles, 1), sources, height, width, radius)
                itself = (own + view * height * width)[:, None]
                usable = inside & (places != itself)
                found = _nearest_of(points[scene].flatten(0, 2), some, places, usable, itself, k)
                index[scene, view, own] = found
    return index.unflatten(2, (height, width))


def _windows(
    middles: Int[Tensor, "n source 2"],
    sources: Int[Tensor, " source"],
    height: int,
    width: int,
    radius: int,
) -> tuple[Int[Tensor, "n place"], Bool[Tensor, "n place"]]:
    """Returns the indices of all points in the windows, and whether they exist."""
    offsets = torch.arange(-radius, radius + 1, device=middles.device)
    y = middles[..., 0, None, None] + offsets[:, None]
    x = middles[..., 1, None, None] + offsets
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    places = (sources[:, None, None] * height + y) * width + x
    return places.where(inside, 0).flatten(1), inside.flatten(1)


def _nearest_of(
    reference: Float[Tensor, "m 3"],
    points: Float[Tensor, "n 3"],
    places: Int[Tensor, "n place"],
    usable: Bool[Tensor, "n place"],
    itself: Int[Tensor, "n 1"],
    k: int,
) -> Int[Tensor, "n k"]:
    """Returns the `k` nearest usable of the places of each point, then `itself`."""
    # By index first, so that a stable sort by distance leaves the lower one first
    places, order = places.sort(dim=1)
    squared = _squared(points[:, None] - reference[places])
    squared = squared.masked_fill(~usable.gather(1, order), torch.inf)
    squared, order = squared.sort(dim=1, stable=True)
    chosen = places.gather(1, order).where(squared < torch.inf, itself)[:, :k]
    return torch.cat([chosen, itself.expand(-1, k - chosen.shape[1])], dim=1)


def project_to_pixels(
    points: Float[Tensor, "n 3"],
    w2c: Float[Tensor, "4 4"],
    K: Float[Tensor, "3 3"],
    height: int,
    width: int,
    margin: int,
) -> Int[Tensor, "n 2"]:
    """Returns the (row, column) whose centre is nearest to each projected point.

    Rows and columns farther than `margin` outside the image, and those of points with z <= 0, are
    somewhere farther than that outside.
    """
    x, y, z = (
        w2c[i, 0] * points[:, 0] + w2c[i, 1] * points[:, 1] + w2c[i, 2] * points[:, 2] + w2c[i, 3]
        for i in range(3)
    )
    x, y = x / z.clamp_min(MIN_Z), y / z.clamp_min(MIN_Z)
    outside = -margin - 1
    row = ((K[1, 1] * y + K[1, 2]) * height - 0.5).round().clamp(outside, height + margin)
    column = ((K[0, 0] * x + K[0, 1] * y + K[0, 2]) * width - 0.5).round()
    column = column.clamp(outside, width + margin)
    return torch.stack([row, column], dim=-1).where((z > 0)[:, None], outside).long()


def check_count(k: int, available: int) -> None:
    """Raises `UserError` unless 1 <= k <= 32 and that many points are available."""
    if not 1 <= k <= MOST:
        raise UserError(f"k = {k}", f"1 to {MOST} neighbors", "choose such a number")
    if k > available:
        raise UserError(
            f"k = {k} of {available} reference points",
            "at least as many reference points as neighbors",
            "ask for fewer neighbors, or leave out samples with so few points",
        )


def _squared(difference: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
    """Returns x² + y² + z², summed in this order on every device."""
    x, y, z = difference.square().unbind(dim=-1)
    return x + y + z


def prepare(
    points: Float[Tensor, "*batch n 3"],
    reference: Float[Tensor, "*batch m 3"],
    reference_mask: Bool[Tensor, "*batch m"] | None = None,
) -> tuple[Float[Tensor, "*batch n 3"], Float[Tensor, "*batch m 3"]]:
    """Returns both sets in one dtype, at least float32, with masked reference points set to 0.

    Keeps gradients. Raises `UserError` if a sample has no reference point left, or if an unmasked
    coordinate is not finite or beyond 1e18.
    """
    dtype = torch.promote_types(torch.promote_types(points.dtype, reference.dtype), torch.float32)
    points, reference = points.to(dtype), reference.to(dtype)
    if reference.shape[-2] == 0:
        raise UserError(
            "no reference points", "at least one in each sample", "leave out samples without any"
        )
    if reference_mask is not None:
        _refuse(
            ~reference_mask.any(dim=-1),
            "reference points that are all masked",
            "at least one unmasked point",
            "leave that sample out",
        )
        reference = reference.where(reference_mask[..., None], 0.0)
    for name, values in (("points", points), ("reference points", reference)):
        _refuse(
            ~(values.detach().abs() < FARTHEST).all(dim=-1).all(dim=-1),
            f"{name} with a coordinate that is not finite or beyond {FARTHEST:g}",
            "finite coordinates",
            "leave such points out, or mask them in the reference",
        )
    return points, reference


def _refuse(bad: Tensor, got: str, wanted: str, remedy: str) -> None:
    """Raises `UserError` with the index of the first `bad` sample, if there is one."""
    if bad.any():
        sample = ", ".join(str(i) for i in bad.nonzero()[0].tolist())
        raise UserError(f"{got} in sample {sample}" if sample else got, wanted, remedy)
