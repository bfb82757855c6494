"""PM-Loss for somebody else's trainer: predicted points and photographs in, a loss out.

The call is that of the package `pmloss` (dc-walker/pmloss) of Shi et al., "Revisiting Depth
Representations for Feed-Forward 3D Gaussian Splatting", 3DV 2026.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from . import registry
from .errors import UserError
from .foundation.teachers import Teacher, ask
from .losses.pointmap import check_options, pointmap_loss, trusted_pixels
from .types import Cameras, Pointmap, Views


class PointmapLoss(nn.Module):
    """`PointmapLoss(teacher="vggt")(points, images) -> [batch]`: how far points lie from where a
    teacher sees the photographs' surfaces, in squared units of the points.

    `teacher` is a name (`vggt`, `depth_anything_3`) with `settings` of its Config, or anything that
    follows `foundation.teachers.Teacher`; it answers on `device` (that of the images by default).
    `model` is what the published package calls it. The other options are those of `pointmap_loss`:
    `alignment` "similarity", or "scale" for a teacher that knows the cameras; `confidence` weighs
    pixels as the teacher trusts them; `distrust` masks that share of each scene's pixels, the least
    trusted, and `border` so many pixels at the images' edges. The defaults are the published loss.
    Raises UserError for options, a device or a teacher that are none.

    No parameters and no state: the teacher is in nobody's checkpoint, optimiser or `.to(device)`.
    """

    def __init__(
        self,
        teacher: str | Teacher = "vggt",
        device: str | torch.device | None = None,
        *,
        model: str | None = None,
        settings: Mapping[str, Any] | None = None,
        alignment: str = "similarity",
        confidence: bool = False,
        robust: int = 0,
        detach: bool = False,
        trim: float = 0.0,
        distrust: float = 0.0,
        border: int = 0,
    ) -> None:
        super().__init__()
        options = {"robust": robust, "detach": detach, "trim": trim}
        masking = {"distrust": distrust, "border": border}
        check_options(
            "PointmapLoss: ", alignment=alignment, confidence=confidence, **options, **masking
        )
        _check_device(device)
        asked = model or teacher
        if isinstance(asked, str):
            asked = registry.build("foundation.teachers", asked.lower(), settings)
        elif not callable(asked) or not all(hasattr(asked, name) for name in ("name", "posed")):
            raise UserError(
                f"a teacher of type {type(asked).__name__}",
                "a name, or an object to call that has `name` and `posed`",
                "see pmsplat.foundation.teachers.Teacher",
            )
        object.__setattr__(self, "teacher", asked)  # past nn.Module, which would adopt its weights
        self.teacher: Teacher
        self.device, self.alignment, self.confidence = device, alignment, confidence
        self.options, self.masking = options, masking

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
        answers with anything but a `Pointmap` of the images.
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
        answer = self._asked(context_images, cameras).to(predict_points.device)
        centers = None
        if self.alignment == "scale":
            assert cameras is not None
            centers = cameras.c2w[..., :3, 3].to(predict_points.device)
        return pointmap_loss(
            predict_points,
            answer.points.flatten(1, 3),
            answer.confidence.flatten(1) if self.confidence else None,
            trusted_pixels(answer.confidence, **self.masking).flatten(1),
            grid=(height, width),
            centers=centers,
            clip=ignore_large_loss,
            **self.options,
        )

    def _asked(self, images: Tensor, cameras: Cameras | None) -> Pointmap:
        """What the teacher says of the images, without gradients."""
        if cameras is None:
            if self.teacher.posed or self.alignment == "scale":
                raise UserError(
                    f"the teacher {self.teacher.name!r} with alignment {self.alignment!r} and no "
                    "cameras",
                    "the cameras of the images",
                    "pass cameras=pmsplat.Cameras(…), or choose the teacher 'vggt', which is not "
                    "posed",
                )
            cameras = _anywhere(images)
        views = Views(images.detach().float(), cameras)
        return ask(self.teacher, views if self.device is None else views.to(self.device))


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
            "choose 'cpu', or leave it out: the teacher answers where the images are",
        )


def _anywhere(images: Tensor) -> Cameras:
    """Cameras for a teacher that does not look at them."""
    batch, views = images.shape[:2]
    eye = torch.eye(4, device=images.device).expand(batch, views, 4, 4)
    one = torch.ones(batch, views, device=images.device)
    return Cameras(eye, eye[..., :3, :3], near=one, far=one)
