"""Pretrained networks, and sensors, that say where every pixel lies: teachers of PM-Loss.

A teacher is a component (see `registry`): a module with `Config` and `build(config) -> Teacher`.
Building one reads no weights; the first question does.
"""

from typing import Protocol

import torch

from ...errors import UserError
from ...types import Pointmap, Views


class Teacher(Protocol):
    """Views in, their pointmap out, of the views' own size, without gradients.

    `name` and `revision` say what its answers depend on beside the views: a cache is keyed by them.
    The answer for one view may depend on all views given with it, and on their cameras too
    (`posed`). Scenes of a batch do not look at each other.
    """

    name: str
    revision: str
    posed: bool

    def __call__(self, views: Views) -> Pointmap: ...


@torch.no_grad()
def ask(teacher: Teacher, views: Views) -> Pointmap:
    """What `teacher` says of `views`, without gradients, whatever autocast its caller computes in.

    Raises UserError for an answer that is no Pointmap of the size of the views.
    """
    with torch.autocast(views.images.device.type, enabled=False):
        answer = teacher(views)
    name = f"the teacher {teacher.name!r}"
    if not isinstance(answer, Pointmap):
        raise UserError(
            f"an answer of type {type(answer).__name__} from {name}",
            "a pmsplat.Pointmap",
            "let it answer Pointmap(points, confidence)",
        )
    size = (*views.images.shape[:2], *views.size)
    for part, wanted in (("points", (*size, 3)), ("confidence", size)):
        got = getattr(answer, part)
        if not isinstance(got, torch.Tensor) or got.shape != wanted:
            shape = getattr(got, "shape", None)
            raise UserError(
                f"{part} of {f'shape {tuple(shape)}' if shape is not None else got} from {name}",
                f"{wanted}, one for each pixel of the images",
                "let it answer in their size",
            )
    return answer.detach()
