"""PM-Loss (`losses/pointmap.py`) for other people's trainers: points and photographs in, loss out.

The call is that of the package `pmloss` (dc-walker/pmloss) of Shi et al., "Revisiting Depth
Representations for Feed-Forward 3D Gaussian Splatting", 3DV 2026.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from . import registry
from .contracts import Teacher, check_teacher
from .errors import UserError
from .foundation.teachers import query_teacher
from .losses.pointmap import Options, compare
from .types import Cameras, Pointmap, Views


class PointmapLoss(nn.Module):
    """`PointmapLoss(teacher="vggt")(points, images) -> [batch]`: how far points lie from where a
    teacher sees the photographs' surfaces, in squared units of the points.

    `teacher` is a name (`vggt`, `depth_anything_3`) with `settings` of its Config, or an object
    that follows `pmsplat.contracts.Teacher`. It runs on `device` (by default that of the images).
    `model` is what the published package calls it. `robust`, `detach` and `trim` are those of
    `pointmap_loss`. `alignment` is "similarity", or "scale" for a teacher that knows the cameras;
    `confidence` weighs pixels as the teacher trusts them; `distrust` masks that share of each
    scene's pixels, the least trusted; `border` masks that many pixels at the images' edges. The
    defaults are the published loss. Raises UserError for invalid options, device or teacher.

    It has no parameters and no state: a checkpoint, an optimizer or `.to(device)` does not see the
    teacher.
    """

    def __init__(
        self,
        teacher: str | Teacher = "vggt",
        device: str | torch.device | None = None,
        *,
        model: str | None = None,
        settings: Mapping[str, Any] | None = None,
        alignment: str = Options.alignment,
        confidence: bool = Options.confidence,
        robust: int = Options.robust,
        detach: bool = Options.detach,
        trim: float = Options.trim,
        distrust: float = Options.distrust,
        border: int = Options.border,
    ) -> None:
        super().__init__()
        self.options = Options(
            alignment=alignment,
            confidence=confidence,
            robust=robust,
            detach=detach,
            trim=trim,
            distrust=distrust,
            border=border,
        )
        _check_device(device)
        chosen = model or teacher
        if isinstance(chosen, str):
            chosen = registry.build("foundation.teachers", chosen.lower(), settings)
        # Past nn.Module, which would adopt the teacher's weights.
        object.__setattr__(self, "teacher", check_teacher(chosen))
        self.teacher: Teacher
        self.device = device

    def forward(
        self,
        predict_points: Float[Tensor, "batch n 3"],
        context_images: Float[Tensor, "batch view 3 height width"],
        loss_mode: str = "3d",
        ignore_large_loss: float | None = 100.0,
        cameras: Cameras | None = None,
    ) -> Float[Tensor, " batch"]:
        """The loss of each scene; gradients go to the points.

        One point for each pixel, view after view, row by row; images in [0, 1]. `cameras` are those
        of the images, for a teacher that looks at them. Losses above `ignore_large_loss` count 1e-5
        of their value; a scene whose alignment is undefined counts 0. Raises UserError for points
        that are no such map, for another `loss_mode`, for missing cameras, and for a teacher that
        gives anything but a `Pointmap` of the images.
        """
        if context_images.dim() != 5:
            raise UserError(
                f"images of shape {tuple(context_images.shape)}",
                "[batch, view, 3, height, width]",
                "for one scene, put images[None]",
            )
        batch, views, _, height, width = context_images.shape
        if predict_points.shape != (batch, views * height * width, 3):
            raise UserError(
                f"points of shape {tuple(predict_points.shape)} for images of shape "
                f"{tuple(context_images.shape)}",
                f"{batch} × {views * height * width} × 3, one point for each pixel",
                "leave none out and add none: points and pixels correspond by their order",
            )
        if loss_mode != "3d":
            raise UserError(f"loss_mode {loss_mode!r}", "'3d'", "leave it out: there is no other")
        pointmap, cameras = self._query(context_images, cameras)
        device = predict_points.device
        return compare(
            predict_points.reshape(batch, views, height, width, 3),
            pointmap.to(device),
            replace(self.options, clip=ignore_large_loss),
            cameras.to(device),
        )[0]

    def _query(self, images: Tensor, cameras: Cameras | None) -> tuple[Pointmap, Cameras]:
        """The teacher's pointmap of the images, without gradients, and the cameras it was given."""
        alignment = self.options.alignment
        if cameras is None:
            if self.teacher.posed or alignment == "scale":
                raise UserError(
                    f"the teacher {self.teacher.name!r} with alignment {alignment!r} and no "
                    "cameras",
                    "the cameras of the images",
                    "pass cameras=pmsplat.Cameras(…), or choose the teacher 'vggt', which is not "
                    "posed",
                )
            cameras = _placeholder_cameras(images)
        views = Views(images.detach().float(), cameras)
        views = views if self.device is None else views.to(self.device)
        return query_teacher(self.teacher, views), cameras


def _check_device(device: str | torch.device | None) -> None:
    if device is None:
        return
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"device {device!r}", "'cpu', 'cuda' or a torch.device", str(error)
        ) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device {str(device)!r} where torch sees no CUDA device",
            "one that is there",
            "choose 'cpu', or leave it out: the teacher then runs where the images are",
        )


def _placeholder_cameras(images: Tensor) -> Cameras:
    """Cameras for a teacher that does not look at them."""
    batch, views = images.shape[:2]
    eye = torch.eye(4, device=images.device).expand(batch, views, 4, 4)
    one = torch.ones(batch, views, device=images.device)
    return Cameras(eye, eye[..., :3, :3], near=one, far=one)
