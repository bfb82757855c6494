"""Rigid motions as 4x4 matrices."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from . import gaussian
from .constants import constant
from .products import einsum, matmul

LAST_ROW = (0.0, 0.0, 0.0, 1.0)  # of every motion
SMALL = 2.5e-3  # squared angle (rad²) up to which four terms of a series are exact in float64


def compose(
    rotation: Float[Tensor, "*#batch 3 3"], translation: Float[Tensor, "*#batch 3"]
) -> Float[Tensor, "*_ 4 4"]:
    """Returns the motion x -> rotation · x + translation."""
    top = torch.cat([rotation, translation[..., None]], dim=-1)
    bottom = constant(LAST_ROW, top).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, bottom], dim=-2)


def invert(motion: Float[Tensor, "*#batch 4 4"]) -> Float[Tensor, "*_ 4 4"]:
    """Returns the inverse of a rigid motion; its rotation must be orthonormal."""
    rotation = motion[..., :3, :3].transpose(-1, -2)
    return compose(rotation, -einsum("...ij,...j->...i", rotation, motion[..., :3, 3]))


def exp(twist: Float[Tensor, "*#batch 6"]) -> Float[Tensor, "*_ 4 4"]:
    """Returns the motion of a twist: a translation (3), then a rotation vector (3, radians).

    It is the end of the screw that starts with these velocities (Solà et al., "A micro Lie theory
    for state estimation in robotics", 2018): 0 is no motion, and the rotation is about the origin.
    Differentiable everywhere, also at 0.
    """
    translation, rotation = twist.split(3, dim=-1)
    squared = rotation.square().sum(dim=-1)[..., None, None]
    tiny = squared < SMALL
    t = torch.where(tiny, squared, 0)
    angle = torch.where(tiny, 1, squared).sqrt()
    # sin a / a, (1 - cos a) / a² and (a - sin a) / a³
    first = 1 - t / 6 * (1 - t / 20 * (1 - t / 42))
    second = 0.5 - t / 24 * (1 - t / 30 * (1 - t / 56))
    third = 1 / 6 - t / 120 * (1 - t / 42 * (1 - t / 72))
    sine = angle.sin() / angle
    first = torch.where(tiny, first, sine)
    second = torch.where(tiny, second, 0.5 * ((angle / 2).sin() / (angle / 2)).square())
    third = torch.where(tiny, third, (1 - sine) / angle.square())
    x, y, z = rotation.unbind(dim=-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    eye = torch.eye(3, device=twist.device, dtype=twist.dtype)
    twice = matmul(cross, cross)
    spread = eye + second * cross + third * twice
    return compose(
        eye + first * cross + second * twice, einsum("...ij,...j->...i", spread, translation)
    )


def transform(
    motion: Float[Tensor, "*#batch 4 4"], points: Float[Tensor, "*#batch point 3"]
) -> Float[Tensor, "*_ point 3"]:
    """Moves points by an affine 4x4 matrix; its last row is ignored."""
    rotated = einsum("...ij,...nj->...ni", motion[..., :3, :3], points)
    return rotated + motion[..., None, :3, 3]


def look_at(
    eye: Float[Tensor, "*#batch 3"],
    target: Float[Tensor, "*#batch 3"],
    up: Float[Tensor, "*#batch 3"],
) -> Float[Tensor, "*_ 4 4"]:
    """Returns OpenCV c2w of a camera at `eye` looking at `target`; `up` points up in the image."""
    forward = normalize(target - eye, dim=-1)
    right = normalize(torch.linalg.cross(forward, up.expand_as(forward)), dim=-1)
    down = torch.linalg.cross(forward, right)
    return compose(torch.stack([right, down, forward], dim=-1), eye)


def upright(up: Float[Tensor, "3"]) -> Float[Tensor, "4 4"]:
    """Returns the smallest turn that takes `up` to -y, up in OpenCV axes; from +y about x.

    Turns from an axis are exact.
    """
    x, y, z = normalize(up, dim=-1).unbind()
    if 1 - y < 1e-12:
        return torch.diag(torch.stack([1 + 0 * y, -1 + 0 * y, -1 + 0 * y, 1 + 0 * y]))
    zero = torch.zeros_like(y)
    cross = torch.stack([zero, x, zero, -x, zero, -z, zero, z, zero]).reshape(3, 3)
    turn = torch.eye(3).to(up) + cross + matmul(cross, cross) / (1 - y)
    return compose(turn, torch.zeros_like(up))


def interpolate(
    start: Float[Tensor, "*#batch 4 4"],
    end: Float[Tensor, "*#batch 4 4"],
    fraction: Float[Tensor, "*#batch"],
) -> Float[Tensor, "*_ 4 4"]:
    """Returns the pose at `fraction` of the way, by slerp and along a straight line."""
    q0 = gaussian.rotation_to_quat(start[..., :3, :3])
    q1 = gaussian.rotation_to_quat(end[..., :3, :3])
    rotation = gaussian.quat_to_rotation(gaussian.slerp(q0, q1, fraction))
    t0, t1 = start[..., :3, 3], end[..., :3, 3]
    return compose(rotation, t0 + (t1 - t0) * fraction[..., None])


def is_rigid(motion: Float[Tensor, "*#batch 4 4"], tolerance: float = 1e-3) -> Tensor:
    """Returns whether each matrix is finite and a proper rotation, a translation and 0 0 0 1."""
    rotation = motion[..., :3, :3]
    eye = torch.eye(3, device=motion.device, dtype=motion.dtype)
    error = (matmul(rotation, rotation.transpose(-1, -2)) - eye).abs().amax(dim=(-1, -2))
    last = motion[..., 3, :] - constant(LAST_ROW, motion)
    finite = motion.isfinite().all(dim=-1).all(dim=-1)
    proper = torch.linalg.det(torch.where(finite[..., None, None], rotation, eye)) > 0
    return finite & (error < tolerance) & proper & (last.abs().amax(dim=-1) < tolerance)


def similarity_scale(motion: Float[Tensor, "*#batch 4 4"]) -> Float[Tensor, "*_"]:
    """Returns the scale factor of a similarity; 0 for a reflection, which is not one."""
    return torch.linalg.det(motion[..., :3, :3]).clamp_min(0) ** (1 / 3)


def is_similarity(motion: Float[Tensor, "*#batch 4 4"], tolerance: float = 1e-3) -> Tensor:
    """Returns whether each matrix is finite and a rigid motion with one uniform scale."""
    finite = motion.isfinite().all(dim=-1).all(dim=-1)
    safe = torch.where(finite[..., None, None], motion, torch.zeros_like(motion))
    scale = similarity_scale(safe)
    rotation = safe[..., :3, :3] / scale.clamp_min(torch.finfo(motion.dtype).tiny)[..., None, None]
    rigid = torch.cat([torch.cat([rotation, safe[..., :3, 3:]], -1), safe[..., 3:, :]], -2)
    return finite & (scale > 0) & is_rigid(rigid, tolerance)
