"""Quaternions (w, x, y, z) and covariances of 3D Gaussians."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from . import products
from .constants import keep_results

FLATTEST = 1e-8  # the smallest variance of a Gaussian, of its largest


def quat_to_rotation(quats_wxyz: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "*_ 3 3"]:
    """Returns rotation matrices; quaternions are normalised first, with gradients."""
    w, x, y, z = normalize(quats_wxyz, dim=-1).unbind(dim=-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def rotation_to_quat(rotation: Float[Tensor, "*#batch 3 3"]) -> Float[Tensor, "*_ 4"]:
    """Returns unit quaternions with w >= 0, stable for every angle.

    All four of Shepperd's branches are evaluated and the best conditioned one is chosen, without
    data-dependent control flow.
    """
    if products.rounds_products(rotation):  # on CUDA, where a sum of two numbers costs a launch
        table, offset = _shepperd_table(rotation.dtype, rotation.device)
        candidates = products.einsum("...m,mqc->...qc", rotation.flatten(-2), table) + offset
    else:
        candidates = _shepperd(rotation)
    best = torch.diagonal(candidates, dim1=-2, dim2=-1).argmax(dim=-1)
    chosen = torch.take_along_dim(candidates, best[..., None, None], dim=-2).squeeze(-2)
    quats = normalize(chosen, dim=-1)
    return torch.where(quats[..., :1] < 0, -quats, quats)


def rotation_angle(rotation: Float[Tensor, "*#batch 3 3"]) -> Float[Tensor, "*_"]:
    """Returns the angles by which matrices turn, from 0 to π (rad), exact near both ends."""
    quats = rotation_to_quat(rotation)
    return 2 * torch.atan2(quats[..., 1:].norm(dim=-1), quats[..., 0])


def _shepperd(rotation: Tensor) -> Float[Tensor, "*batch 4 4"]:
    """Returns the quaternion times four times w, x, y or z, in the rows."""
    m = rotation.unbind(dim=-2)
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = (row.unbind(dim=-1) for row in m)
    return torch.stack(
        [
            torch.stack([1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01], dim=-1),
            torch.stack([m21 - m12, 1 + m00 - m11 - m22, m10 + m01, m02 + m20], dim=-1),
            torch.stack([m02 - m20, m10 + m01, 1 - m00 + m11 - m22, m21 + m12], dim=-1),
            torch.stack([m10 - m01, m02 + m20, m21 + m12, 1 - m00 - m11 + m22], dim=-1),
        ],
        dim=-2,
    )


@keep_results
def _shepperd_table(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns that function, which is linear but for an offset: [9, 4, 4] and [4, 4]."""
    offset = _shepperd(torch.zeros(3, 3, dtype=dtype))
    table = _shepperd(torch.eye(9, dtype=dtype).unflatten(-1, (3, 3))) - offset
    return table.to(device), offset.to(device)


def quat_multiply(
    left: Float[Tensor, "*#batch 4"], right: Float[Tensor, "*#batch 4"]
) -> Float[Tensor, "*_ 4"]:
    """Returns the rotation that applies `right`, then `left`."""
    w1, x1, y1, z1 = left.unbind(dim=-1)
    w2, x2, y2, z2 = right.unbind(dim=-1)
    return torch.stack(
        [
            w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
            w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
            w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
            w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
        ],
        dim=-1,
    )


def slerp(
    start: Float[Tensor, "*#batch 4"],
    end: Float[Tensor, "*#batch 4"],
    fraction: Float[Tensor, "*#batch"],
) -> Float[Tensor, "*_ 4"]:
    """Returns unit quaternions along the shorter arc, or along the chord where the arc vanishes."""
    cosine = (start * end).sum(dim=-1, keepdim=True)
    end = torch.where(cosine < 0, -end, end)
    angle = cosine.abs().clamp(max=1).acos()
    sine = angle.sin()
    t = fraction[..., None]
    tiny = sine < 1e-6
    safe = torch.where(tiny, torch.ones_like(sine), sine)
    a = torch.where(tiny, 1 - t, ((1 - t) * angle).sin() / safe)
    b = torch.where(tiny, t, (t * angle).sin() / safe)
    return normalize(a * start + b * end, dim=-1)


def covariance(
    scales: Float[Tensor, "*#batch 3"], quats_wxyz: Float[Tensor, "*#batch 4"]
) -> Float[Tensor, "*_ 3 3"]:
    """Returns R S Sᵀ Rᵀ of linear scales and quaternions."""
    root = quat_to_rotation(quats_wxyz) * scales[..., None, :]
    return products.matmul(root, root.transpose(-1, -2))


def decompose_covariance(
    covariances: Float[Tensor, "gaussian 3 3"],
) -> tuple[Float[Tensor, "gaussian 3"], Float[Tensor, "gaussian 4"]]:
    """Returns scales and quaternions of covariances: the inverse of `covariance`, smallest first.

    Differentiable once, also where variances are equal: axes that could as well be others then get
    no gradient, while those of eigh would be infinite. Variances below FLATTEST of the largest are
    raised to that.
    """
    with torch.no_grad():
        axes = torch.linalg.eigh(covariances).eigenvectors
        third = torch.linalg.cross(axes[..., 0], axes[..., 1])
        axes = torch.cat([axes[..., :2], third[..., None]], dim=-1)  # a rotation, no reflection
    rotated = products.matmul(axes.transpose(-1, -2), products.matmul(covariances, axes))
    variances = torch.diagonal(rotated, dim1=-2, dim2=-1)
    largest = variances[..., 2:].clamp_min(torch.finfo(variances.dtype).tiny)
    variances = torch.maximum(variances, FLATTEST * largest)
    # To first order, a change of the covariance turns the axes by its share off the diagonal
    gaps = (variances[..., None, :] - variances[..., :, None]).detach()
    distinct = gaps.abs() > FLATTEST * largest[..., None].detach()
    change = (rotated - rotated.detach()) / torch.where(distinct, gaps, torch.inf)
    turned = axes + products.matmul(axes, change)
    return variances.sqrt(), rotation_to_quat(turned)
