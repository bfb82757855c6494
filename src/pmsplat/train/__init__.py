"""Training: the only floor that knows Lightning, which is imported when a run begins."""

import logging
from collections.abc import Callable
from pathlib import Path

from .settings import Component, Experiment, LossTerm, Renderer, Trainer

__all__ = ["Component", "Experiment", "LossTerm", "Renderer", "Trainer", "run"]


log = logging.getLogger(__name__)


def run(experiment: Experiment, tell: Callable[[str], None] = log.info) -> Path:
    """Trains as the experiment says; the path of the finished checkpoint (see `loop.run`)."""
    from . import loop

    return loop.run(experiment, tell)
