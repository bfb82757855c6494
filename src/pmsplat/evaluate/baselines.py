"""Baselines without learning: the nearest photo, and a plane sweep.

Both use the context views only, and can take the place of a model in `protocol.evaluate`.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from ..geometry import camera, products, se3, sh, sweep
from ..geometry.constants import constant
from ..nn.maps import resize
from ..render import rasterize
from ..types import Batch, Gaussians, Prediction, Rendering, StepOutput, Views

PLANES_AT_ONCE = 16  # planes held in memory at once
NO_MATCH = 4.0  # largest best cost of a match, in medians of the image's best costs
FOOTPRINT = 0.2  # standard deviation of a pixel's Gaussian, in pixels


def nearest_view(batch: Batch) -> StepOutput:
    """Renders every target as the context photo with the nearest pose.

    The distance of two poses is the angle between their viewing directions, plus the angle by which
    the distance of their centres moves a point at middle depth. The photo is resized to the target
    where sizes differ. There is no prediction; alpha is 1 and depth 0 (none).
    """
    context, target = batch.context.cameras, batch.target.cameras
    middle = 0.5 * (1 / context.near + 1 / context.far)[:, None]  # of inverse depth
    apart = torch.cdist(target.c2w[..., :3, 3], context.c2w[..., :3, 3]) * middle
    cosine = products.einsum("btx,bvx->btv", target.c2w[..., :3, 2], context.c2w[..., :3, 2])
    nearest = (apart + cosine.clamp(-1, 1).acos()).argmin(dim=-1)
    color = torch.take_along_dim(batch.context.images, nearest[..., None, None, None], dim=1)
    if batch.context.size != batch.target.size:
        resized = resize(color.flatten(0, 1), batch.target.size)
        color = resized.unflatten(0, color.shape[:2])
    plain = color[:, :, 0]
    rendering = Rendering(color, torch.zeros_like(plain), torch.ones_like(plain))
    return StepOutput(batch, Prediction((), ()), (rendering,))


def plane_sweep(batch: Batch, planes: int = 64, window: int = 7) -> StepOutput:
    """Predicts depth of least photometric cost over inverse-depth planes, and one splat per pixel.

    Collins, "A Space-Sweep Approach to True Multi-Image Matching", CVPR 1996; the cost of a plane
    is the squared colour difference, averaged over a window and over the better half of the other
    views that see the point (Kang et al., "Handling Occlusions in Dense Multi-view Stereo", 2001).
    A pixel without a match (no other view sees it) gets the depth of the nearest pixel with one.
    """
    depth = sweep_depth(batch.context, planes, window)
    gaussians = pixel_splats(batch.context, depth)
    rendering = rasterize(gaussians, batch.target.cameras, batch.target.size)
    return StepOutput(batch, Prediction((depth,), (gaussians,)), (rendering,))


@torch.no_grad()
def sweep_depth(
    views: Views, planes: int = 64, window: int = 7
) -> Float[Tensor, "batch view height width"]:
    """Returns z of the best plane of every pixel; each view has planes between its near and far."""
    cameras = views.cameras
    depths = []
    for reference in range(views.images.shape[1]):
        inv_depth = sweep.inverse_depth_planes(
            cameras.near[:, reference], cameras.far[:, reference], planes
        )
        costs = torch.cat(
            [
                _costs(views, reference, part, window)
                for part in inv_depth.split(PLANES_AT_ONCE, dim=1)
            ],
            dim=1,
        )
        best, plane = costs.min(dim=1)
        depth = 1 / torch.take_along_dim(inv_depth[..., None, None], plane[:, None], dim=1)[:, 0]
        depths.append(_fill(depth, _find_matches(best)))
    return torch.stack(depths, dim=1)


def _costs(
    views: Views,
    reference: int,
    inv_depth: Float[Tensor, "batch plane"],
    window: int,
) -> Float[Tensor, "batch plane height width"]:
    """Returns costs of some planes for one view; infinite where no other view sees the point."""
    # Project the planes into the other views, and sample those.
    height, width = views.size
    cameras, images = views.cameras, views.images
    K = camera.K_px(cameras.K, height, width)
    c2w, one = cameras.c2w, slice(reference, reference + 1)
    ref_to_src = products.matmul(se3.invert(_without(c2w, reference)), c2w[:, one])
    lines = sweep.homography(ref_to_src, K[:, one], _without(K, reference))
    xy = sweep.source_coordinates(lines, inv_depth[:, None, :, None, None], height, width)
    extent = constant((width, height), xy)
    seen = ((xy >= 0) & (xy <= extent - 1)).all(dim=-1)  # b v d h w
    grid = rearrange((2 * xy + 1) / extent - 1, "b v d h w c -> (b v) (d h) w c")
    source = rearrange(_without(images, reference), "b v c h w -> (b v) c h w")
    warped = grid_sample(source, grid.clamp(-2, 2), align_corners=False, padding_mode="border")
    warped = rearrange(warped, "(b v) c (d h) w -> b v d c h w", v=seen.shape[1], h=height)
    # Average the error over the window, then over the better half of the views that see the point.
    error = (warped - images[:, reference, None, None]).square().mean(dim=3) * seen
    cost = _average(error, window) / _average(seen.to(error), window).clamp_min(1e-6)
    cost = torch.where(seen, cost, torch.inf)
    kept = cost.sort(dim=1).values[:, : math.ceil(seen.shape[1] / 2)]
    visible = kept.isfinite()
    total = torch.where(visible, kept, 0).sum(dim=1)
    count = visible.sum(dim=1)
    return torch.where(count > 0, total / count.clamp_min(1), torch.inf)


def _without(tensor: Tensor, view: int) -> Tensor:
    """The other views; by slices, since a list of indices would be sent to the device."""
    return torch.cat([tensor[:, :view], tensor[:, view + 1 :]], dim=1)


def _find_matches(cost: Float[Tensor, "batch height width"]) -> Bool[Tensor, "batch height width"]:
    """Returns where the best cost is at most NO_MATCH times its median in the image."""
    known = torch.where(cost.isfinite(), cost, torch.nan).flatten(1)
    return cost <= NO_MATCH * known.nanmedian(dim=1).values[:, None, None]


def _average(values: Float[Tensor, "b v d h w"], window: int) -> Float[Tensor, "b v d h w"]:
    """Returns means over a square window, at borders over the part inside the image."""
    flat = values.flatten(0, 2)[:, None]
    pooled = avg_pool2d(flat, window, 1, window // 2, count_include_pad=False)
    return pooled[:, 0].reshape(values.shape)


def _fill(
    depth: Float[Tensor, "batch height width"], known: Bool[Tensor, "batch height width"]
) -> Float[Tensor, "batch height width"]:
    """Fills unknown pixels with the nearest known value of their image, if there is any."""
    filled = depth.clone()
    for image, mask in zip(filled, known, strict=True):
        if mask.any() and not mask.all():
            nearest = np.empty((2, *mask.shape), dtype=np.int32)
            distance_transform_edt(~mask.cpu().numpy(), None, False, True, indices=nearest)
            rows, columns = torch.from_numpy(nearest).long().to(image.device)
            image.copy_(image[rows, columns])
    return filled


def pixel_splats(views: Views, depth: Float[Tensor, "batch view height width"]) -> Gaussians:
    """Returns one opaque, round Gaussian per pixel, of its depth and colour and about its size."""
    means = camera.unproject_depth(depth, views.cameras.c2w, views.cameras.K)
    focal = (views.cameras.K[..., 0, 0] * views.size[1]) * (
        views.cameras.K[..., 1, 1] * views.size[0]
    )
    radius = FOOTPRINT * depth / focal.sqrt()[..., None, None]
    color = rearrange(views.images, "b v c h w -> b (v h w) 1 c")
    radius = rearrange(radius, "b v h w -> b (v h w)")
    identity = constant((1.0, 0.0, 0.0, 0.0), radius)
    return Gaussians(
        means=rearrange(means, "b v h w c -> b (v h w) c"),
        scales=repeat(radius, "b g -> b g c", c=3),
        quats_wxyz=identity.expand(*radius.shape, 4),
        opacities=torch.ones_like(radius),
        sh=(color - 0.5) / sh.C0,
    )


BASELINES: dict[str, Callable[[Batch], StepOutput]] = {
    "nearest photo": nearest_view,
    "plane sweep": plane_sweep,
}
