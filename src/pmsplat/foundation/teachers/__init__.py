"""Pretrained networks, and sensors, that say where every pixel lies: teachers of PM-Loss.

A teacher is a component (see `registry`): a module with `Config` and `build(config) -> Teacher`.
"""

from typing import Protocol

from ...types import Pointmap, Views


class Teacher(Protocol):
    """Views in, their pointmap out, of the views' own size, without gradients.

    `name` and `revision` say what its answers depend on beside the views: a cache is keyed by them.
    The answer for one view may depend on all views given with it (`joint`).
    """

    name: str
    revision: str
    joint: bool

    def __call__(self, views: Views) -> Pointmap: ...
