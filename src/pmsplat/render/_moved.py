"""Scenes carried into the axes of a camera, so that a backend's gradients reach the camera.

What a moved camera sees of a scene, the camera at rest sees of the scene moved the other way. No
backend has to know of it. Moving harmonics would take a product of 16 x 16 for each Gaussian and
target; but as a camera sees each Gaussian from one side, the color of that side will do, which is a
harmonic of degree 0, the same in all axes.
"""

from dataclasses import replace

import torch

from ..geometry import gaussian, se3, sh
from ..types import Cameras, Gaussians
from ._projection import view_color


def carry_into_cameras(
    gaussians: Gaussians, cameras: Cameras, sh_degree: int | None
) -> tuple[Gaussians, Cameras]:
    """The scenes in the axes of each target, and the cameras there: [batch · target], one each.

    Gradients flow to Gaussians and to `cameras.c2w`. Gaussians must be `finite`.
    """
    batch, targets = cameras.near.shape
    if gaussians.sh.device.type != "cpu":  # `finite` leaves harmonics alone there
        gaussians = replace(gaussians, sh=gaussians.sh.nan_to_num(0.0, 0.0, 0.0))

    def spread(tensor: torch.Tensor) -> torch.Tensor:
        """One for each target, without a copy where torch can do without."""
        return tensor[:, None].expand(-1, targets, *tensor.shape[1:]).flatten(0, 1)

    w2c = se3.invert(cameras.c2w)
    quats = gaussian.rotation_to_quat(w2c[..., :3, :3])[:, :, None]
    color = view_color(gaussians, cameras, sh_degree)
    seen = Gaussians(
        means=se3.transform(w2c, gaussians.means[:, None]).flatten(0, 1),
        scales=spread(gaussians.scales),
        quats_wxyz=gaussian.quat_multiply(quats, gaussians.quats_wxyz[:, None]).flatten(0, 1),
        opacities=spread(gaussians.opacities),
        sh=((color - 0.5) / sh.C0).flatten(0, 1)[:, :, None],
        rules=gaussians.rules,
    )
    eye = torch.eye(4, device=w2c.device, dtype=w2c.dtype).expand(batch * targets, 1, 4, 4)
    at_rest = replace(
        cameras,
        c2w=eye,
        **{name: getattr(cameras, name).flatten(0, 1)[:, None] for name in ("K", "near", "far")},
    )
    return seen, at_rest
