"""Datasets, one file each; and what they share: streams, sampling, indices, cached pointmaps."""

from ._batches import Poses, Recipe, Unusable, collate, make_batch
from ._convert import to_chunk_scene
from ._dataset import ChunkDataset, no_usable_scene, pair
from ._examine import ChunkFacts, SceneFacts, examine_chunk, find_fault, find_remarks, share_photos
from ._index import (
    Index,
    check_scenes,
    make_index,
    make_outside_index,
    make_regular_index,
    make_spread_index,
    read_index,
    write_index,
)
from ._order import rank_of_ranks
from ._pointmaps import (
    CacheKey,
    CacheReader,
    DamagedPointmaps,
    MissingPointmaps,
    PointmapCache,
    SkippedEntry,
    SkippedScene,
    StalePointmaps,
    WindowPointmap,
    write_pointmaps,
)
from ._sampling import Bounded, Frames, Gap, Sampler, Spread
from ._skips import Skip, Skips
from ._windows import Snapped, Windows

__all__ = [
    "Bounded",
    "CacheKey",
    "CacheReader",
    "ChunkDataset",
    "ChunkFacts",
    "DamagedPointmaps",
    "Frames",
    "Gap",
    "Index",
    "MissingPointmaps",
    "PointmapCache",
    "Poses",
    "Recipe",
    "Sampler",
    "SceneFacts",
    "Skip",
    "SkippedEntry",
    "SkippedScene",
    "Skips",
    "Snapped",
    "Spread",
    "StalePointmaps",
    "Unusable",
    "WindowPointmap",
    "Windows",
    "check_scenes",
    "collate",
    "examine_chunk",
    "find_fault",
    "find_remarks",
    "make_batch",
    "make_index",
    "make_outside_index",
    "make_regular_index",
    "make_spread_index",
    "no_usable_scene",
    "pair",
    "rank_of_ranks",
    "read_index",
    "share_photos",
    "to_chunk_scene",
    "write_index",
    "write_pointmaps",
]
