"""Training: the only floor that knows Lightning, which is imported when a run begins."""

from pathlib import Path

from .settings import Component, Experiment, LossTerm, Renderer, Trainer

__all__ = ["Component", "Experiment", "LossTerm", "Renderer", "Trainer", "run"]


def run(experiment: Experiment) -> Path:
    """Trains as the experiment says; the path of the finished checkpoint (see `loop.run`)."""
    from . import loop

    return loop.run(experiment)
