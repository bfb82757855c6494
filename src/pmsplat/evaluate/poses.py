"""Predicted cameras beside given ones: a fit, errors, and a search by the pictures.

Methods without poses are measured in two ways that give numbers several dB apart (Ye et al., "No
Pose, No Problem", ICLR 2025, does the second). Either the cameras of the targets are brought into
the world of the prediction by a fit in closed form; or they are then moved until the Gaussians look
most like the photographs of the targets, which forgives what is wrong with the predicted cameras.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry import gaussian, products, se3
from ..render import rasterize, rasterize_moved
from ..types import Cameras, Gaussians, Views

APART = 1e-6  # least distance of cameras that stand apart, as a share of that from the origin
AUC = (5, 10, 20)  # degrees
RATE = 0.005  # of the search's first steps: rad, and shares of the depth; that of Ye et al.
BETAS = (0.9, 0.9)  # of Adam; with its usual 0.999, 100 steps leave three times the error here
TARGETS_AT_ONCE = 8  # moved together: each needs a copy of the Gaussians


def bring(
    similarity: Float[Tensor, "*#batch 4 4"], c2w: Float[Tensor, "*#batch view 4 4"]
) -> Float[Tensor, "*_ view 4 4"]:
    """Returns cameras in the world into which the similarity leads, in the dtype of `c2w`."""
    moved = similarity[..., None, :, :] @ c2w.to(similarity)
    scale = se3.similarity_scale(similarity)[..., None, None, None]
    return se3.compose(moved[..., :3, :3] / scale, moved[..., :3, 3]).to(c2w)


def pose_errors(
    found: Float[Tensor, "view 4 4"], given: Float[Tensor, "view 4 4"]
) -> dict[str, float]:
    """Errors of the c2w of one scene, of all pairs of cameras; nothing where none stand apart.

    `rotation_deg` and `translation_deg` are mean angles: between the relative rotations, and
    between the directions from one camera to the other (180 where the found ones stand at one
    place). `auc_5`, `auc_10` and `auc_20` are areas under the curve of the share of pairs whose
    larger angle is below so many degrees (Sarlin et al., "SuperGlue", CVPR 2020), of the whole
    curve, not of its corners. Means over scenes of equally many views are those of all pairs.
    """
    found, given = found.double(), given.double()
    one, other = torch.triu_indices(len(given), len(given), 1, device=given.device)
    pair_found, pair_given = (
        products.matmul(se3.invert(c2w[one]), c2w[other]) for c2w in (found, given)
    )
    a, b = pair_found[:, :3, 3], pair_given[:, :3, 3]
    apart = b.norm(dim=-1) > APART * given[..., :3, 3].norm(dim=-1).max()
    if not apart.any():
        return {}
    turned = products.matmul(pair_found[:, :3, :3], pair_given[:, :3, :3].mT)
    quat = gaussian.rotation_to_quat(turned)
    rotation = 2 * torch.atan2(quat[:, 1:].norm(dim=-1), quat[:, 0])
    translation = torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(dim=-1))
    translation = torch.where(a.norm(dim=-1) > 0, translation, math.pi)
    rotation, translation = rotation[apart].rad2deg(), translation[apart].rad2deg()
    worse = torch.maximum(rotation, translation)
    areas = {f"auc_{limit}": (1 - worse / limit).clamp_min(0).mean().item() for limit in AUC}
    means = {"rotation_deg": rotation.mean().item(), "translation_deg": translation.mean().item()}
    return means | areas


def search_cameras(
    gaussians: Gaussians,
    views: Views,
    steps: int,
    backend: str = "auto",
    background: Tensor | Sequence[float] | None = None,
) -> Cameras:
    """Returns the cameras of `views`, moved until the Gaussians look most like the photographs.

    Each camera is moved by itself, by so many steps of Adam on its mean squared error, whose rate
    falls to 0 along a cosine; its best place on the way is returned, which may be the first.
    Intrinsics and Gaussians stay. Ye et al. add LPIPS to the error, with a constant rate; here no
    network is needed, and of the three metrics only PSNR is what is searched by.
    """
    gaussians, count = gaussians.detach(), views.images.shape[1]
    some = [slice(start, start + TARGETS_AT_ONCE) for start in range(0, count, TARGETS_AT_ONCE)]
    parts = [_search(gaussians, views.at(part), steps, backend, background) for part in some]
    return Cameras.joined(parts)


def _search(
    gaussians: Gaussians,
    views: Views,
    steps: int,
    backend: str,
    background: Tensor | Sequence[float] | None,
) -> Cameras:
    """That of targets which fit into memory together."""
    # Translations are counted in the median depth of what is seen
    cameras, size = views.cameras, views.size
    with torch.no_grad():
        depth = rasterize(gaussians, cameras, size, backend).depth.flatten(2)
        depth = torch.where(depth > 0, depth, torch.nan).nanmedian(dim=-1).values
        depth = torch.where(depth > 0, depth, cameras.near)
    unit = torch.stack([depth, torch.ones_like(depth)], dim=-1).repeat_interleave(3, dim=-1)
    # Walk, and remember the best place of each camera
    twists = torch.zeros_like(unit, requires_grad=True)
    best, least = torch.zeros_like(twists), torch.full_like(depth, torch.inf)
    optimizer = torch.optim.Adam([twists], lr=RATE, betas=BETAS)
    for step in range(steps + 1):
        with torch.enable_grad():
            drawn = rasterize_moved(gaussians, cameras, twists * unit, size, backend, background)
            error = (drawn.color - views.images).square().mean(dim=(2, 3, 4))
            total = error.sum()
        better = error.detach() < least
        least = torch.where(better, error.detach(), least)
        best = torch.where(better[..., None], twists.detach(), best)
        if step == steps:
            break
        (twists.grad,) = torch.autograd.grad(total, twists)
        optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.step()
    moved = products.matmul(cameras.c2w.double(), se3.exp((best * unit).double()))
    return Cameras(moved.to(cameras.c2w), cameras.K, cameras.near, cameras.far)
