"""Models that come with pmsplat: their weights lie in the clone's `pretrained/` or in the wheel."""

from dataclasses import dataclass
from pathlib import Path

from ..shipped_files import find_shipped


@dataclass(frozen=True)
class Shipped:
    """What a list says of a model that ships; docs/models.md has its card."""

    parameters: int
    data: str


SHIPPED = {"pmsplat-small-v1": Shipped(2_135_701, "procedural, 5 real")}
"""Names that `pmsplat.load` takes without any download."""
DEFAULT = "pmsplat-small-v1"
"""The model where nobody names one."""


def shipped_file(name: str) -> Path:
    """The checkpoint of a shipped model; UserError where it was removed."""
    return find_shipped(f"weights/{name}.safetensors", f"pretrained/{name}.safetensors")
