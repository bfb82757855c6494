"""Pretrained networks, and sensors, that say where every pixel lies: teachers of PM-Loss.

A teacher is a component (see `registry`): a module with `Config` and `build(config) -> Teacher`
(see `contracts`). Building one reads no weights; its first call does.
"""

import torch

from ...contracts import Teacher
from ...errors import UserError
from ...types import Pointmap, Views


@torch.no_grad()
def query_teacher(teacher: Teacher, views: Views) -> Pointmap:
    """The pointmap of `views` from `teacher`, without gradients, outside of any autocast.

    Raises UserError where the teacher returns anything but a Pointmap of the size of the views.
    """
    with torch.autocast(views.images.device.type, enabled=False):
        found = teacher(views)
    name = f"the teacher {teacher.name!r}"
    if not isinstance(found, Pointmap):
        raise UserError(
            f"a value of type {type(found).__name__} from {name}",
            "a pmsplat.Pointmap",
            "return Pointmap(points, confidence)",
        )
    size = (*views.images.shape[:2], *views.size)
    for part, wanted in (("points", (*size, 3)), ("confidence", size)):
        got = getattr(found, part)
        if not isinstance(got, torch.Tensor) or got.shape != wanted:
            shape = getattr(got, "shape", None)
            raise UserError(
                f"{part} of {f'shape {tuple(shape)}' if shape is not None else got} from {name}",
                f"{wanted}, one for each pixel of the images",
                "return maps of the size of the images",
            )
    return found.detach()
