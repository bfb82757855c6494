"""Errors of a predicted surface: of its points, of its normals, and at depth edges.

Point clouds are compared in both directions as in Aanæs et al., "Large-Scale Data for Multiple-View
Stereopsis", IJCV 2016 (DTU), but without subsampling and without a cap on distances; normals by
cosine as in Mescheder et al., "Occupancy Networks", CVPR 2019, but per pixel. A discontinuity is
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

JUMP = 0.1  # least difference of neighbouring depths at an edge, as a share of the nearer depth
WITHIN = 2  # pixels up to which a point is near an edge
TOLERANCE = 0.03  # least distance of a flying point from surfaces nearby, as a share of their depth


@dataclass(frozen=True)
class CloudMetrics:
    """Distances from point to nearest point: means and medians, in scene units.

    `accuracy` is measured from predicted to true points, `completeness` from true to predicted
    points; `chamfer` is the mean of both. `_rel` is the mean of distances divided by the depth of
    the true point in its own view. `points` and `true_points` are the numbers of counted points.
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
    """Errors of a depth map near discontinuities of the true one.

    `edge_abs_rel` is the mean of |pred - truth| / truth and `flying` the share of flying points,
    both over the `edge_points` counted pixels.
    """

    edge_abs_rel: float
    flying: float
    edge_points: int


@dataclass(frozen=True)
class NormalMetrics:
    """`normals` is the mean cosine between normals, over the `normal_points` pixels with both."""

    normals: float
    normal_points: int


def geometry_metrics(views: Views, prediction: Prediction) -> dict[str, float]:
    """Returns all metrics below by name; `views` and `prediction` must have depth.

    `views` are those that the prediction speaks of (`Prediction.select`).

    The predicted cloud are the centres of the Gaussians if there is one per pixel, else the
    unprojected depth. Nothing is aligned. Metrics without counted pixels are left out; the result
    is empty if no true depth is known.
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
    """Returns the predicted world point of each pixel, without gradient."""
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
    """Compares maps of world points, one per view, with the unprojected depth of the views.

    Where the true depth is 0 (unknown) there is no true point, and the predicted point does not
    count in `accuracy`, but can be the nearest to a true point. `known` is True where there is a
    prediction. All is NaN if no pixel has both.
    """
    truth = views.depth
    assert truth is not None
    seen = truth > 0
    known = torch.ones_like(seen) if known is None else known
    counts = seen & known
    if not counts.any():
        nan = float("nan")
        return CloudMetrics(*[nan] * 9, points=0, true_points=int(seen.sum()))
    # Unproject the truth; small coordinates keep their digits in float32, so centre both clouds.
    true_points = camera.unproject_depth(truth, views.cameras.c2w, views.cameras.K)
    middle = true_points[seen].mean(dim=0)
    ours = torch.where(known[..., None], points.detach() - middle, 0)
    true_points = true_points - middle
    # Find nearest points in both directions.
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
    """Measures the error and the share of flying points near discontinuities of the true depth.

    Counted pixels have known true depth and lie at most `within` columns and rows from a
    discontinuity (see `discontinuities`). A point is flying, i.e. in the air between two surfaces,
    if its depth lies strictly between the least and the greatest true depth within `within` + 1
    columns and rows, and differs from each true depth there by more than `tolerance` of it. A
    shifted edge does not make points fly, nor does a prediction of 0 (none). NaN if there is no
    discontinuity.
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
    """The pixels near a discontinuity, and those among them with a flying point."""

    band: Bool[Tensor, "*batch height width"]
    flying: Bool[Tensor, "*batch height width"]


def near_edges(
    depth: Float[Tensor, "*batch height width"],
    truth: Float[Tensor, "*batch height width"],
    within: int = WITHIN,
    jump: float = JUMP,
    tolerance: float = TOLERANCE,
) -> Edges:
    """Returns the pixels that `edge_metrics` counts, and the flying points among them."""
    band = _dilate(discontinuities(truth, jump), within) & (truth > 0)
    nearest, least, greatest = _surroundings(depth, truth, within + 1)
    return Edges(band, band & (depth > least) & (depth < greatest) & (nearest > tolerance))


def normal_metrics(
    depth: Float[Tensor, "*batch height width"],
    truth: Float[Tensor, "*batch height width"],
    K: Float[Tensor, "*batch 3 3"],
) -> NormalMetrics:
    """Compares the normals of two depth maps, both facing the camera: 1 means equal.

    Pixels count where both maps have a normal, i.e. where the depth of the pixel and of its up to
    four neighbours is known, except at discontinuities of the true depth and next to them. NaN if
    no pixel counts.
    """
    ours, true = camera.normals(depth, K), camera.normals(truth, K)
    has_both = (ours != 0).any(dim=-1) & (true != 0).any(dim=-1)
    counts = has_both & ~_dilate(discontinuities(truth), 1)
    cosines = (ours * true).sum(dim=-1)[counts]
    return NormalMetrics(cosines.double().mean().item(), int(counts.sum()))


def discontinuities(
    depth: Float[Tensor, "*batch height width"], jump: float = JUMP
) -> Bool[Tensor, "*batch height width"]:
    """Returns pixels whose depth differs by a factor above 1 + `jump` from one of four neighbours.

    Both depths must be known (> 0). Planes at grazing angles can have such pixels, too.
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
    """Returns distances from points to the nearest unmasked reference points, and their indices."""
    height, width = points.shape[-3:-1]
    queries, keys = points.flatten(1, -2), reference.flatten(1, -2)
    at = neighbors.nearest(queries, keys, (height, width), mask.flatten(1))
    chosen = keys.gather(1, at[..., None].expand(*at.shape, 3))
    distances = (queries - chosen).double().norm(dim=-1)
    return distances.view(points.shape[:-1]), at.view(points.shape[:-1])


def _dilate(mask: Tensor, by: int) -> Tensor:
    """Returns the pixels at most `by` columns and rows from a pixel of the mask."""
    images = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    return max_pool2d(images, 2 * by + 1, 1, by).view(mask.shape) > 0


def _surroundings(depth: Tensor, truth: Tensor, reach: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compares `depth` with the known true depths in a square around each pixel.

    Returns the least relative difference to one of them, the least and the greatest of them.
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
