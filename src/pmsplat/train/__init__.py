"""Training: the only floor that knows Lightning, which is imported when a run begins.

What stands above it checks what a run needs, so that a mistake is told before those seconds.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from .settings import Component, Experiment, LossTerm, Renderer, Trainer

__all__ = ["LAST", "Component", "Experiment", "LossTerm", "Renderer", "Trainer", "run"]

LAST = "last.ckpt"  # in the output folder of a run: what it goes on from

log = logging.getLogger(__name__)


def run(experiment: Experiment, tell: Callable[[str], None] = log.info) -> Path:
    """Trains as the experiment says; the path of the finished checkpoint (see `loop.run`)."""
    from .devices import check_devices, check_renderer
    from .resume import find_checkpoint
    from .start import open_data

    check_renderer(experiment.renderer.name, check_devices(experiment.trainer))
    find_checkpoint(Path(experiment.output), experiment.trainer)
    data = open_data(experiment, tell)

    from . import loop

    return loop.run(data, tell)
