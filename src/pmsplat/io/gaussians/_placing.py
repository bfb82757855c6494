"""Places parts of a scene: the transforms of nodes, which formats with a scene graph have."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import UserError
from ...geometry import gaussian, se3
from ...geometry.origin import local_origin
from ...types import NO_OFFSET, Gaussians, as_triple
from ._blocks import drop_unusable
from ._facts import tell_origin

FLATTEST = 1e-9  # of the product of its axes' lengths: the volume of a transform that keeps all


def place(
    path: str | Path, name: str, part: Gaussians, to_world: Float[Tensor, "4 4"]
) -> Gaussians:
    """The part of a file moved by a float64 transform, counted from a local origin where it is far.

    Any transform of Gaussians without harmonics is exact: they stay Gaussians. Harmonics allow
    rotations times one scale only; UserError for others, and for transforms that flatten.
    """
    if bool(se3.is_similarity(to_world)):
        placed = part.transformed(to_world)
    elif part.sh_degree == 0 and _keeps_volume(to_world):
        placed = _stretch(part, to_world)
    else:
        raise UserError(
            f"{path}: {name} mirrors, shears or stretches Gaussians, or makes them flat",
            "rotations, translations and one scale for all axes, where colours have harmonics",
            "apply the transform in the program that wrote the file",
        )
    return placed


def join(path: str | Path, parts: Sequence[Gaussians]) -> Gaussians:
    """All placed parts as one scene, without those that became too large for float32.

    Means count from the origin of the largest part; a warning says it, if there is one. Raises
    UserError for parts that are drawn by different rules.
    """
    if len({part.rules for part in parts}) > 1:
        raise UserError(
            f"{path} holds Gaussians that are drawn by different rules",
            "the same rules for all Gaussians of a scene",
            "export those that are drawn alike as a file of their own",
        )
    origin = max(parts, key=lambda part: part.means.shape[1]).origin
    joined = Gaussians.joined([part.at_origin(origin) for part in parts])
    whole = drop_unusable(path, joined)
    if whole.origin != NO_OFFSET:
        tell_origin(path, whole.origin)
    return whole


def _keeps_volume(motion: Float[Tensor, "4 4"]) -> bool:
    last = motion[3] - motion.new_tensor([0, 0, 0, 1])
    volume = torch.linalg.det(motion[:3, :3]).abs()
    most = motion[:3, :3].norm(dim=0).prod()
    return bool(motion.isfinite().all() and not last.any() and volume > FLATTEST * most > 0)


def _stretch(part: Gaussians, motion: Float[Tensor, "4 4"]) -> Gaussians:
    """Σ becomes A Σ Aᵀ: the singular values of A R S are the scales, its left vectors the axes."""
    root = motion[:3, :3] @ gaussian.quat_to_rotation(part.quats_wxyz.double())
    axes, scales, _ = torch.linalg.svd(root * part.scales.double()[..., None, :])
    proper = torch.ones_like(scales)
    proper[..., 2] = torch.linalg.det(axes).sign()
    moved = se3.transform(motion, part.means.double() + motion.new_tensor(part.origin))
    origin = local_origin(moved[0])
    return replace(
        part,
        means=(moved - origin).to(part.means),
        scales=scales.to(part.scales),
        quats_wxyz=gaussian.rotation_to_quat(axes * proper[..., None, :]).to(part.quats_wxyz),
        origin=as_triple(origin),
    )
