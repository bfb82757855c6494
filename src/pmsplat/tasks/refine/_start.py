"""The Gaussians that an optimisation starts from: a prediction, sparse points, points at random.

Sizes and opacity: Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering".
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from scipy.spatial import KDTree
from torch import Tensor, nn

from ...contracts import encoder_traits
from ...errors import UserError
from ...geometry import camera, products, sh
from ...scene.overlap import group_views, overlaps
from ...types import Cameras, Gaussians, Views
from ...zoo import memory
from ...zoo.infer import reconstruct

CONTEXT = 4  # photos shown to an encoder at a time, at most

OPACITY = 0.1
NEIGHBORS = 3  # whose mean square distance is the scale of a Gaussian
TRIES = 16  # at random for each point that is wanted
GRAY = 0.5  # of points that no photo shows


def from_prediction(
    encoder: nn.Module, views: Views, room: int, generator: torch.Generator
) -> Gaussians:
    """An encoder's prediction for every photo, on its device: as many Gaussians for each.

    Photos are shown to it in groups of neighbours that see the same things. Of more Gaussians than
    there is `room` for, some are kept at random, larger by as much as they stand farther apart.
    Batch 1. Raises UserError for a model that predicts depth alone.
    """
    device = next(encoder.parameters()).device
    groups = group_views(overlaps(views.cameras), CONTEXT)
    traits = encoder_traits(encoder)
    anchors = CONTEXT if traits.anchors else None  # so that every photo gets Gaussians
    plan = memory.Plan(CONTEXT, views.size, traits.multiple, anchors=anchors)
    memory.check(encoder, plan, device, fewer_views=False)
    parts, share = [], 1.0
    for group in groups:
        shown = views.at(group.views)
        prediction = reconstruct(encoder, shown, device, anchors=anchors).prediction
        whole, order = prediction.gaussians[-1], prediction.indices(shown)
        fresh = torch.tensor([group.views[at] in group.fresh for at in order])
        of_each = whole.means.shape[1] // len(order)
        share = min(1.0, room / (views.images.shape[1] * of_each))
        kept = fresh.repeat_interleave(of_each)
        kept &= torch.rand(len(kept), generator=generator) < share
        parts.append(whole.map(lambda values, kept=kept.to(device): values[:, kept]))
    joined = Gaussians.joined(parts)
    return replace(joined, scales=joined.scales * share**-0.5)


def from_points(points: Float[Tensor, "point 3"], views: Views, degree: int) -> Gaussians:
    """Round, faint Gaussians at points, as large as the gaps to their neighbours.

    Their colour is the median of the photos at the places where they would be seen if nothing hid
    them. Batch 1; SH of `degree`, 0 above the first.
    """
    if len(points) < NEIGHBORS + 1:
        raise UserError(
            f"{len(points)} points to start from",
            f"at least {NEIGHBORS + 1}",
            "start from random ones: `start=random`",
        )
    gaps = torch.from_numpy(
        KDTree(points.double().numpy()).query(points.double().numpy(), NEIGHBORS + 1)[0][:, 1:]
    )
    scales = gaps.square().mean(dim=-1).sqrt().float()
    scales = scales.clamp_min(1e-3 * scales.median().clamp_min(1e-12))
    coefficients = torch.zeros(len(points), (degree + 1) ** 2, 3)
    coefficients[:, 0] = (find_colors(points, views) - 0.5) / sh.C0
    return Gaussians(
        means=points[None].float(),
        scales=scales[None, :, None].repeat(1, 1, 3),
        quats_wxyz=torch.tensor([1.0, 0, 0, 0]).repeat(1, len(points), 1),
        opacities=torch.full((1, len(points)), OPACITY),
        sh=coefficients[None],
    )


def sample_points(
    cameras: Cameras, count: int, generator: torch.Generator
) -> Float[Tensor, "point 3"]:
    """`count` points that two cameras or more have in their pictures, between near and far.

    Drawn from a camera at random, even in its picture and in inverse depth, so that there are as
    many to a pixel near and far. Batch 1. Raises UserError where the cameras have nothing in
    common.
    """
    found, missing = [], count
    for _ in range(TRIES):
        which = torch.randint(cameras.c2w.shape[1], (count,), generator=generator)
        xy = torch.rand(count, 2, generator=generator)
        share = torch.rand(count, generator=generator)
        near, far = cameras.near[0, which], cameras.far[0, which]
        depth = 1 / ((1 - share) / near + share / far)
        local = camera.unproject(xy, depth, cameras.K[0, which])
        c2w = cameras.c2w[0, which]
        points = products.einsum("pij,pj->pi", c2w[:, :3, :3], local) + c2w[:, :3, 3]
        points = points[_count_cameras(points, cameras) >= 2][:missing]
        found.append(points)
        missing -= len(points)
        if not missing:
            return torch.cat(found)
    raise UserError(
        f"cameras that share too little of what they see for {count} random points",
        "photos that overlap",
        "check the cameras, or their near and far",
    )


def find_colors(points: Float[Tensor, "point 3"], views: Views) -> Float[Tensor, "point 3"]:
    """The median, over the photos that have a point in their picture, of its pixel; else grey."""
    height, width = views.size
    samples = []
    for v in range(views.images.shape[1]):
        seen, inside = _project(points, views.cameras, v)
        column = (seen[:, 0] * width).long().clamp(0, width - 1)
        row = (seen[:, 1] * height).long().clamp(0, height - 1)
        pixel = views.images[0, v, :, row, column].T
        samples.append(torch.where(inside[:, None], pixel, torch.nan))
    return torch.stack(samples).nanmedian(dim=0).values.nan_to_num(GRAY)


def measure_extent(cameras: Cameras) -> float:
    """1.1 times the distance of the farthest camera from their mean: the size of a scene.

    Raises UserError for cameras in one place.
    """
    centers = cameras.c2w[0, :, :3, 3]
    radius = 1.1 * (centers - centers.mean(dim=0)).norm(dim=-1).max().item()
    if radius <= 1e-4 * cameras.near.min().item():
        raise UserError(
            "photos that are all taken from one place",
            "photos from places apart, which show depth",
            "add photos that were taken a step aside",
        )
    return radius


def _count_cameras(points: Tensor, cameras: Cameras) -> Tensor:
    """How many cameras have each point in their picture."""
    views = range(cameras.c2w.shape[1])
    return torch.stack([_project(points, cameras, v)[1] for v in views]).sum(dim=0)


def _project(points: Tensor, cameras: Cameras, view: int) -> tuple[Tensor, Tensor]:
    """(x, y, z) in a camera, and whether that is in its picture and beyond its near."""
    seen = camera.project_world(points, cameras.c2w[0, view], cameras.K[0, view])
    inside = (seen[:, :2] >= 0).all(-1) & (seen[:, :2] < 1).all(-1)
    return seen, inside & (seen[:, 2] >= cameras.near[0, view])
