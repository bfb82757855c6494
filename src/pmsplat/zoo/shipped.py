"""Models that come with pmsplat: their weights lie in the clone's `pretrained/` or in the wheel."""

from pathlib import Path

from ..errors import UserError
from ..io.weights import pretrained_folder

SHIPPED = ("pmsplat-small-v1",)
"""Names that `pmsplat.load` takes without any download."""
PACKAGED = Path(__file__).resolve().parents[1] / "weights"  # of a wheel


def shipped_file(name: str) -> Path:
    """The checkpoint of a shipped model; UserError where it was removed."""
    places = [folder / f"{name}.safetensors" for folder in (PACKAGED, pretrained_folder())]
    for path in places:
        if path.is_file():
            return path
    raise UserError(
        f"no {places[-1].name} in {places[0].parent} or {places[-1].parent}",
        "the file that comes with pmsplat",
        "install pmsplat again, or restore it with `git checkout pretrained`",
    )
