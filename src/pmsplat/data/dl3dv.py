"""DL3DV in chunks, as DepthSplat trains on it: a few views spread over a walk."""

from dataclasses import dataclass, field

from ._batches import Poses, Recipe
from ._dataset import ChunkDataset, pair
from ._sampling import Gap, Spread

_MAX_TRANSLATION = 1e3  # camera coordinates beyond this are failed reconstructions


@dataclass
class Config:
    """Defaults: DepthSplat's fine-tuning at 256x448, cut from 270x480 without scaling."""

    root: str = "datasets/dl3dv"
    index: str | None = None
    """Evaluation index, a JSON file."""
    size: list[int] = field(default_factory=lambda: [256, 448])
    """Height and width."""
    resize: bool = False
    """Scale photos to cover `size` first, instead of cutting it from the photos as stored."""
    context_size: list[int] | None = None
    """In evaluation, height and width to which context views are stretched; null: `size`."""
    poses: Poses = field(default_factory=Poses)
    """How cameras are read: `frame` and `only_positive`."""
    near: float = 0.5
    far: float = 200.0
    views: list[int] = field(default_factory=lambda: [2, 6])
    """Fewest and most context views of a training example; all of a batch have the same number."""
    target_views: int = 8
    extrapolate: int = 0
    """Frames before the first and after the last context view that may be targets as well."""
    min_gap: list[int] = field(default_factory=lambda: [15, 20])
    """Fewest frames from first to last context view: at the start, after `gap_warm_up` steps."""
    max_gap: list[int] = field(default_factory=lambda: [30, 50])
    """Most frames between them, likewise."""
    gap_warm_up: int = 10_000
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
        sampler=Spread(
            gap=Gap(pair(cfg.min_gap, "min_gap"), pair(cfg.max_gap, "max_gap"), cfg.gap_warm_up),
            views=pair(cfg.views, "views"),
            targets=cfg.target_views,
            extrapolate=cfg.extrapolate,
        ),
        near=cfg.near,
        far=cfg.far,
        resize=cfg.resize,
        exact=cfg.exact_crop,
        flip=cfg.flip,
        decode=cfg.decode,
        max_translation=_MAX_TRANSLATION,
        poses=cfg.poses,
        context_size=pair(cfg.context_size, "context_size") if cfg.context_size else None,
    )
    return ChunkDataset(cfg.root, recipe, cfg.index)
