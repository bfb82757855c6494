"""RealEstate10K (and ACID) in pixelSplat's chunks, as MVSplat and DepthSplat train on them."""

from dataclasses import dataclass, field

from ._batches import Recipe
from ._dataset import ChunkDataset, pair
from ._sampling import Gap, make_sampler


@dataclass
class Config:
    """Defaults: DepthSplat's training at 256x256 (arXiv 2410.13862)."""

    root: str = "datasets/re10k"
    index: str | None = None
    """Evaluation index, a JSON file."""
    size: list[int] = field(default_factory=lambda: [256, 256])
    """Height and width; photos are scaled to cover it and cut around the center."""
    near: float = 0.5
    far: float = 100.0
    views: list[int] = field(default_factory=lambda: [2, 2])
    """Fewest and most context views of a training example; all of a batch have the same number."""
    target_views: int = 4
    extrapolate: int = 0
    """Frames before the first and after the last context view that may be targets as well."""
    min_gap: list[int] = field(default_factory=lambda: [25, 45])
    """Fewest frames from first to last context view: at the start, after `gap_warm_up` steps."""
    max_gap: list[int] = field(default_factory=lambda: [45, 135])
    """Most frames between them, likewise."""
    gap_warm_up: int = 30_000
    flip: float = 0.5
    """Probability that a training example is mirrored."""
    decode: str = "exact"
    """How training decodes photos; evaluation is always exact. "scaled": JPEG files of at least
    twice the size are scaled by 1/2 or less while they are decoded, sooner and nearly the same."""
    exact_crop: bool = False
    """Move the principal point with the crop; the published code leaves it at the center."""


def build(cfg: Config) -> ChunkDataset:
    """The dataset; files are looked for when a stream is asked for."""
    recipe = Recipe(
        size=pair(cfg.size, "size"),
        sampler=make_sampler(
            gap=Gap(pair(cfg.min_gap, "min_gap"), pair(cfg.max_gap, "max_gap"), cfg.gap_warm_up),
            views=pair(cfg.views, "views"),
            targets=cfg.target_views,
            extrapolate=cfg.extrapolate,
        ),
        near=cfg.near,
        far=cfg.far,
        exact=cfg.exact_crop,
        flip=cfg.flip,
        decode=cfg.decode,
    )
    return ChunkDataset(cfg.root, recipe, cfg.index)
