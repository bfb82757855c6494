"""Training on photographs of your own, converted to chunks.

`pmsplat data convert PHOTOS ROOT/train` makes the chunks; their scenes carry near and far.
"""

from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from ._batches import Recipe
from ._dataset import ChunkDataset, pair
from ._sampling import Gap, Spread


@dataclass
class Config:
    """Training on your own photographs, converted to chunks."""

    root: str = "datasets/mine"
    index: str | None = None
    """Evaluation index, a JSON file (`pmsplat data index`)."""
    size: list[int] = field(default_factory=lambda: [256, 256])
    """Height and width; photos are scaled to cover it and cut around the center."""
    near: float | None = None
    far: float | None = None
    """Depth range in scene units; None: what each scene carries."""
    scale_near: bool = True
    """Scale every scene to the unit of the model (model.near), since each comes in its own."""
    views: list[int] = field(default_factory=lambda: [2, 2])
    """Fewest and most context views of a training example; all of a batch have the same number."""
    target_views: int = 4
    extrapolate: int = 0
    """Frames before the first and after the last context view that may be targets as well."""
    gap: list[int] = field(default_factory=lambda: [2, 8])
    """Fewest and most photos from the first to the last context view."""
    flip: float = 0.5
    """Probability that a training example is mirrored."""
    decode: str = "exact"
    """How training decodes photos; evaluation is always exact. "scaled": JPEG files of at least
    twice the size are scaled by 1/2 or less while they are decoded, sooner and nearly the same."""

    def __post_init__(self) -> None:
        _check_scale_near(self.scale_near)


def upgrade(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as they are; UserError for the number that `scale_near` was before."""
    if "scale_near" in settings:
        _check_scale_near(settings["scale_near"])
    return settings


def _check_scale_near(value: Any) -> None:
    if isinstance(value, bool):
        return
    remedy = "set dataset.scale_near=false to keep the units of the scenes"
    if isinstance(value, int | float):
        remedy = f"set dataset.scale_near=true and model.near={value}"
    shown = "null" if value is None else value
    raise UserError(f"dataset.scale_near={shown}", "true or false", remedy)


def build(cfg: Config) -> ChunkDataset:
    """The dataset; files are looked for when a stream is asked for."""
    shortest, longest = pair(cfg.gap, "gap")
    recipe = Recipe(
        size=pair(cfg.size, "size"),
        sampler=Spread(
            gap=Gap((shortest, shortest), (longest, longest)),
            views=pair(cfg.views, "views"),
            targets=cfg.target_views,
            extrapolate=cfg.extrapolate,
        ),
        near=cfg.near,
        far=cfg.far,
        flip=cfg.flip,
        decode=cfg.decode,
    )
    return ChunkDataset(cfg.root, recipe, cfg.index, scale_near=cfg.scale_near)
