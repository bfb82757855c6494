"""The first thing to try: photographs that come with pmsplat, and the model that does."""

import logging
from collections.abc import Callable
from pathlib import Path

from ..progress import Track, silently
from ..shipped_files import find_shipped
from ..zoo.shipped import DEFAULT
from .predict import Options, predict
from .results.prediction import Summary

PHOTOS = "office"
SIZE, CONTEXT = (256, 384), (0, 2, 4)  # every second one, as many as it learned from at most

log = logging.getLogger(__name__)


def sample_photos() -> Path:
    """The folder of posed photographs that comes with pmsplat; UserError where it was removed."""
    cameras = f"{PHOTOS}/transforms.json"
    return find_shipped(cameras, f"assets/{cameras}").parent


def demo(
    output: str | Path,
    device: str = "auto",
    tell: Callable[[str], None] = log.info,
    track: Track = silently,
) -> Summary:
    """Reconstructs the sample photographs with the shipped model; `output` is as `predict` has it.

    Every second one is shown to the model, and the others compared with what it renders. An earlier
    demo in `output` is replaced. Raises UserError as `predict` does.
    """
    options = Options(context=CONTEXT, size=SIZE, device=device)
    return predict(sample_photos(), DEFAULT, output, options, tell=tell, track=track)
