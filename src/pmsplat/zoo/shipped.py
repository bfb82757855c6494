"""Models that come with pmsplat: their weights lie in the clone's `pretrained/` or in the wheel."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..io.weights import pretrained_folder


@dataclass(frozen=True)
class Shipped:
    """What a list says of a model that ships; docs/models.md has its card."""

    parameters: int
    data: str


SHIPPED = {"pmsplat-small-v1": Shipped(2_135_701, "procedural, 5 real")}
"""Names that `pmsplat.load` takes without any download."""
DEFAULT = "pmsplat-small-v1"
"""The model where nobody names one."""
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
