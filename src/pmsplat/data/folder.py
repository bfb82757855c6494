"""Training on photographs of your own, converted to chunks.

`pmsplat data convert PHOTOS ROOT/train` makes the chunks; their scenes carry near and far.
"""

from dataclasses import dataclass, field

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
    scale_near: float | None = 0.5
    """Scale every scene so that its nearest near is this; None: leave its unit."""
    views: list[int] = field(default_factory=lambda: [2, 2])
    """Fewest and most context views of a training example; a range wants batch size 1."""
    target_views: int = 4
    extrapolate: int = 0
    """Frames before the first and after the last context view that may be targets as well."""
    gap: list[int] = field(default_factory=lambda: [2, 8])
    """Fewest and most photos from the first to the last context view."""
    flip: float = 0.5
    """Probability that a training example is mirrored."""


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
        scale_near=cfg.scale_near,
        flip=cfg.flip,
    )
    return ChunkDataset(cfg.root, recipe, cfg.index)
