"""How far predicted cameras are from given ones, which may be in another world."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry import gaussian, products, se3

APART = 1e-6  # least distance of cameras that stand apart, as a share of that from the origin
AUC = (5, 10, 20)  # degrees


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
    rotation = gaussian.rotation_angle(turned)
    translation = torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(dim=-1))
    translation = torch.where(a.norm(dim=-1) > 0, translation, math.pi)
    rotation, translation = rotation[apart].rad2deg(), translation[apart].rad2deg()
    worse = torch.maximum(rotation, translation)
    areas = {f"auc_{limit}": (1 - worse / limit).clamp_min(0).mean().item() for limit in AUC}
    means = {"rotation_deg": rotation.mean().item(), "translation_deg": translation.mean().item()}
    return means | areas
