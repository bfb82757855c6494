"""Pretrained networks, and sensors, that say where every pixel lies: teachers of PM-Loss.

A teacher is a component (see `registry`): a module with `Config` and `build(config) -> Teacher`.
Building one reads no weights; the first question does.
"""

from typing import Protocol

from ...types import Pointmap, Views


class Teacher(Protocol):
    """Views in, their pointmap out, of the views' own size, without gradients.

    `name` and `revision` say what its answers depend on beside the views: a cache is keyed by them.
    The answer for one view may depend on all views given with it (`joint`), and on their cameras
    too (`posed`). Scenes of a batch do not look at each other.
    """

    name: str
    revision: str
    joint: bool
    posed: bool

    def __call__(self, views: Views) -> Pointmap: ...
