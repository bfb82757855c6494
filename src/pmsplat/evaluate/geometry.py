"""How far a predicted surface is from the true one: points, normals, and what happens at edges.

Clouds are compared as in Aanæs et al., "Large-Scale Data for Multiple-View Stereopsis", IJCV 2016
(DTU), both ways, without its thinning and without its cap on distances; normals by their cosine, as
in Mescheder et al., "Occupancy Networks", CVPR 2019, but pixel by pixel. A depth discontinuity is
the occluding contour of Bochkovskii et al., "Depth Pro", 2024 (arXiv 2410.02073): two neighbouring
pixels whose depths differ by more than a factor. Flying points are defined in `edge_metrics`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from ..geometry import camera
from ..kernels import neighbors
from ..types import Prediction, Views

JUMP = 0.1  # neighbouring depths that differ by a larger share of the nearer are an edge
WITHIN = 2  # pixels from an edge that still count as near it
TOLERANCE = 0.03  # a depth farther than this share of it from every surface nearby flies


@dataclass(frozen=True)
class CloudMetrics:
    """Distances from point to nearest point: means and medians, in scene units.

    `accuracy` is from the predicted points to the true ones, `completeness` the other way,
    `chamfer` the mean of both; `_rel` is the mean of distances divided by the true depth there (of
    the true point, in the view that shows it). `points` and `true_points` say how many counted.
    """

    accuracy: float
    accuracy_median: float
    accuracy_rel: float
    completeness: float
    completeness_median: float
    completeness_rel: float
    chamfer: float
    chamfer_median: float
    chamfer_rel: float
    points: int
    true_points: int


@dataclass(frozen=True)
class EdgeMetrics:
    """What a depth map does near the discontinuities of the true one.

    `edge_abs_rel` is the mean of |pred - truth| / truth, `flying` the share of flying points, both
    over the `edge_points` pixels that count.
    """

    edge_abs_rel: float
    flying: float
    edge_points: int


@dataclass(frozen=True)
class NormalMetrics:
    """`normals` is the mean cosine between the normals, over the `normal_points` that have both."""

    normals: float
    normal_points: int


def geometry_metrics(views: Views, prediction: Prediction) -> dict[str, float]:
    """All of the measures below, by name; `views` know some depth, `prediction` has one.

    The predicted cloud is the centres of the Gaussians where there is one for each pixel, else the
    depth unprojected. Nothing is aligned. Measures that no pixel counts for are left out; there are
    none at all where no depth is known.
    """
    assert views.depth is not None
    depth, truth, K = prediction.depths[-1].detach(), views.depth, views.cameras.K
    if not (truth > 0).any():
        return {}
    clouds = cloud_metrics(predicted_points(views, prediction), views, depth > 0)
    edges, normals = edge_metrics(depth, truth), normal_metrics(depth, truth, K)
    found = {**vars(clouds), **vars(normals), **vars(edges)}
    return {name: value for name, value in found.items() if value == value}  # not NaN


def predicted_points(
    views: Views, prediction: Prediction
) -> Float[Tensor, "batch view height width 3"]:
    """Where the answer puts each pixel of the views, in the world; without gradient."""
    depth = prediction.depths[-1].detach()
    for gaussians in prediction.gaussians[-1:]:
        means = gaussians.means.detach()
        if means.shape[1] == depth[0].numel():
            return means.view(*depth.shape, 3)
    return camera.unproject_depth(depth, views.cameras.c2w, views.cameras.K)


def cloud_metrics(
    points: Float[Tensor, "batch view height width 3"],
    views: Views,
    known: Bool[Tensor, "batch view height width"] | None = None,
) -> CloudMetrics:
    """Compares world points, a map of them for each view, with those of the views' depth.

    Where the true depth is 0 (unknown) there is no true point, and the point predicted for that
    pixel does not count in `accuracy`, though it may be the nearest to a true one. `known` is where
    there is a prediction. NaN where nothing counts on either side.
    """
    truth = views.depth
    assert truth is not None
    seen = truth > 0
    known = torch.ones_like(seen) if known is None else known
    counts = seen & known
    if not counts.any():
        nan = float("nan")
        return CloudMetrics(*[nan] * 9, points=0, true_points=int(seen.sum()))
    true_points = camera.unproject_depth(truth, views.cameras.c2w, views.cameras.K)
    middle = true_points[seen].mean(dim=0)  # small coordinates keep their digits in float32
    ours = torch.where(known[..., None], points.detach() - middle, 0)
    true_points = true_points - middle
    to_truth, at = _distances(ours, true_points, seen)
    to_ours, _ = _distances(true_points, ours, known)
    accuracy, completeness = to_truth[counts], to_ours[seen]
    depth_there = truth.flatten(1).gather(1, at.flatten(1)).view_as(truth)[counts]
    means = accuracy.mean().item(), completeness.mean().item()
    medians = accuracy.median().item(), completeness.median().item()
    shares = (accuracy / depth_there).mean().item(), (completeness / truth[seen]).mean().item()
    return CloudMetrics(
        accuracy=means[0],
        accuracy_median=medians[0],
        accuracy_rel=shares[0],
        completeness=means[1],
        completeness_median=medians[1],
        completeness_rel=shares[1],
        chamfer=sum(means) / 2,
        chamfer_median=sum(medians) / 2,
        chamfer_rel=sum(shares) / 2,
        points=int(counts.sum()),
        true_points=int(seen.sum()),
    )


def edge_metrics(
    depth: Float[Tensor, "*batch height width"],
    truth: Float[Tensor, "*batch height width"],
    within: int = WITHIN,
    jump: float = JUMP,
    tolerance: float = TOLERANCE,
) -> EdgeMetrics:
    """Error and flying points within some pixels of the discontinuities of the true depth.

    The pixels that count have known true depth and lie at most `within` columns and rows from a
    discontinuity (see `discontinuities`). A point flies where its depth lies strictly between the
    least and the greatest true depth of the square of `within` + 1 pixels around it, and differs
    from every true depth in that square by more than `tolerance` of it: in the air between two
    surfaces, however the edge itself may have moved. A prediction of 0 (none) does not fly. NaN
    where there is no discontinuity.
    """
    edges = near_edges(depth, truth, within, jump, tolerance)
    error = (depth - truth).abs() / truth
    return EdgeMetrics(
        edge_abs_rel=error[edges.band].double().mean().item(),
        flying=edges.flying[edges.band].double().mean().item(),
        edge_points=int(edges.band.sum()),
    )


@dataclass(frozen=True)
class Edges:
    """The pixels near a discontinuity, and those of them whose point flies."""

    band: Bool[Tensor, "*batch height width"]
    flying: Bool[Tensor, "*batch height width"]


def near_edges(
    depth: Float[Tensor, "*batch height width"],
    truth: Float[Tensor, "*batch height width"],
    within: int = WITHIN,
    jump: float = JUMP,
    tolerance: float = TOLERANCE,
) -> Edges:
    """The pixels that `edge_metrics` counts, and the flying points among them."""
    band = _widened(discontinuities(truth, jump), within) & (truth > 0)
    nearest, least, greatest = _surroundings(depth, truth, within + 1)
    return Edges(band, band & (depth > least) & (depth < greatest) & (nearest > tolerance))


def normal_metrics(
    depth: Float[Tensor, "*batch height width"],
    truth: Float[Tensor, "*batch height width"],
    K: Float[Tensor, "*batch 3 3"],
) -> NormalMetrics:
    """Compares the normals of two depth maps, both turned towards the camera: 1 is equal.

    Counted where both have one (the pixel and its neighbours left, right, above and below known, as
    far as the image goes), except at discontinuities of the true depth and beside them, where no
    surface is. NaN where none counts.
    """
    ours, true = camera.normals(depth, K), camera.normals(truth, K)
    has_both = (ours != 0).any(dim=-1) & (true != 0).any(dim=-1)
    counts = has_both & ~_widened(discontinuities(truth), 1)
    cosines = (ours * true).sum(dim=-1)[counts]
    return NormalMetrics(cosines.double().mean().item(), int(counts.sum()))


def discontinuities(
    depth: Float[Tensor, "*batch height width"], jump: float = JUMP
) -> Bool[Tensor, "*batch height width"]:
    """Pixels with a neighbour, left, right, above or below, more than 1 + `jump` times as far or as
    near. Both must be known (> 0). A plane seen obliquely enough counts, too.
    """
    edge = torch.zeros_like(depth, dtype=torch.bool)
    for axis in (-2, -1):
        length = depth.shape[axis] - 1
        first, second = depth.narrow(axis, 0, length), depth.narrow(axis, 1, length)
        near, far = torch.minimum(first, second), torch.maximum(first, second)
        apart = (near > 0) & (far > (1 + jump) * near)
        edge.narrow(axis, 0, length).logical_or_(apart)
        edge.narrow(axis, 1, length).logical_or_(apart)
    return edge


def _distances(points: Tensor, reference: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of every point to the nearest unmasked one of the reference, and its index."""
    height, width = points.shape[-3:-1]
    queries, keys = points.flatten(1, -2), reference.flatten(1, -2)
    at = neighbors.nearest(queries, keys, (height, width), mask.flatten(1))
    chosen = keys.gather(1, at[..., None].expand(*at.shape, 3))
    distances = (queries - chosen).double().norm(dim=-1)
    return distances.view(points.shape[:-1]), at.view(points.shape[:-1])


def _widened(mask: Tensor, by: int) -> Tensor:
    """The pixels at most so many columns and rows from a pixel of the mask."""
    images = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    return max_pool2d(images, 2 * by + 1, 1, by).view(mask.shape) > 0


def _surroundings(depth: Tensor, truth: Tensor, reach: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the known true depths in a square around each pixel: how near `depth` comes to one of
    them, as a share of it; the least; the greatest.
    """
    height, width = truth.shape[-2:]
    padded = pad(truth, (reach,) * 4)
    nearest, least = torch.full_like(truth, torch.inf), torch.full_like(truth, torch.inf)
    greatest = torch.zeros_like(truth)
    for row in range(2 * reach + 1):
        for column in range(2 * reach + 1):
            there = padded[..., row : row + height, column : column + width]
            known = there > 0
            apart = (depth - there).abs() / torch.where(known, there, 1)
            nearest = torch.where(known, torch.minimum(nearest, apart), nearest)
            least = torch.where(known, torch.minimum(least, there), least)
            greatest = torch.maximum(greatest, there)
    return nearest, least, greatest
