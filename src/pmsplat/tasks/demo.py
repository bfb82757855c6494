"""The first thing to try: photographs that come with pmsplat, and the model that does."""

import logging
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError
from ..progress import Track, silently
from ..zoo.shipped import DEFAULT
from .predict import Options, predict
from .results.prediction import Summary

PHOTOS = "office"
PACKAGE = Path(__file__).resolve().parents[1]
PLACES = (PACKAGE / PHOTOS, PACKAGE.parents[1] / "assets" / PHOTOS)  # of a wheel, of a clone
SIZE, CONTEXT = (256, 384), (0, 2, 4)  # every second one, as many as it learned from at most

log = logging.getLogger(__name__)


def sample_photos() -> Path:
    """The folder of posed photographs that comes with pmsplat; UserError where it was removed."""
    for place in PLACES:
        if (place / "transforms.json").is_file():
            return place
    raise UserError(
        f"no photographs in {PLACES[0]} or {PLACES[1]}",
        "those that come with pmsplat",
        "install pmsplat again, or restore them with `git checkout assets`",
    )


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
