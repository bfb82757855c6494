"""The streams behind every dataset of chunks: sharded, shuffled, resumable.

An epoch is a permutation of the chunks, and of the scenes in each. Every shard (one worker of one
rank) takes a contiguous, equal part of it, so it opens only its part of the files and every scene
is seen once. What an item is depends on its position alone: the stream can start anywhere.
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..contracts import Teacher
from ..errors import UserError
from ..io.chunks import Chunk, ChunkScene, Split, read_split
from ..scene.fit import flip
from ..types import Batch, Pointmap, Views
from ._batches import (
    Recipe,
    Unusable,
    check,
    fitted_views,
    make_batch,
    make_evaluation_batch,
)
from ._index import Index, check_frames, check_scenes, read_index
from ._pointmaps import (
    CacheKey,
    CacheReader,
    MissingPointmaps,
    PointmapCache,
    SkippedScene,
    StalePointmaps,
)
from ._sampling import Frames
from ._windows import Snapped, Windows

log = logging.getLogger(__name__)

DRAWS = 50  # of frames of a scene, until a window of the teacher contains them


class ChunkDataset:
    """A dataset in chunks: ROOT/train, ROOT/test, and an evaluation index of the latter.

    `scale_near`: its scenes come in units of their own (see `contracts.DatasetTraits`).
    """

    def __init__(
        self,
        root: str,
        recipe: Recipe,
        index: str | None = None,
        prepare: Callable[[], None] | None = None,
        scale_near: bool = False,
    ) -> None:
        self.root, self.recipe, self.scale_near = Path(root), recipe, scale_near
        self._index, self._prepare = index, prepare

    @property
    def near(self) -> float | None:
        """The near of every scene, where it is one number for all."""
        return self.recipe.near

    @property
    def far(self) -> float | None:
        """The far of every scene, where it is one number for all."""
        return self.recipe.far

    @property
    def index(self) -> str | None:
        """The file of the evaluation index."""
        return self._index

    def train(
        self, seed: int, step: Tensor, skip: int = 0, batch_size: int = 1
    ) -> "TrainingStream":
        """An endless stream of training examples, each a Batch with a batch axis of 1.

        `step` is a shared-memory scalar that the trainer sets to its global step. To resume, `skip`
        is the number of examples consumed so far over all ranks and workers, `batch_size` that of
        the DataLoader (workers take turns by batches): then the sequence goes on as if it had never
        stopped, with as many ranks and workers as before. Where the number of context views is
        random, all examples of a batch have the same.
        """
        return TrainingStream(self.split("train"), self.recipe, seed, step, skip, batch_size)

    def split(self, name: str) -> Split:
        """The chunks of ROOT/`name`, made first where the dataset makes itself."""
        if self._prepare is not None:
            self._prepare()
        return read_split(self.root / name)

    def pointmap_cache(
        self, teacher: Teacher, folder: str, windows: Windows, required: bool = True
    ) -> PointmapCache:
        """The cache of a teacher's pointmaps of this dataset in `folder`.

        A relative folder is beside the splits, in the root of the dataset.
        """
        recipe = self.recipe
        fit = "scaled and cut" if recipe.resize else "cut"
        if teacher.posed:
            fit += ", exact principal points" if recipe.exact else ", published principal points"
        key = CacheKey(teacher.name, teacher.revision, recipe.size, fit, windows)
        return PointmapCache(self.root / folder / "train", key, required)

    def window_views(self, scene: ChunkScene, frames: tuple[int, ...]) -> Views:
        """Frames of a scene as a teacher sees them; raises Unusable where training skips it."""
        check(scene, self.recipe)
        return fitted_views(scene, frames, self.recipe)

    def with_pointmaps(self, cache: PointmapCache) -> "ChunkDataset":
        """The same dataset, whose training examples have a teacher's pointmaps."""
        recipe = replace(self.recipe, pointmaps=cache)
        return ChunkDataset(str(self.root), recipe, self._index, self._prepare, self.scale_near)

    def check_pointmaps(self) -> None:
        """Opens every file of required pointmaps, so that a missing one is an error at once."""
        cache = self.recipe.pointmaps
        if cache is not None and cache.required:
            split = self.split("train")
            cache.check([split.folder / chunk for chunk in split.keys])

    def evaluation(self, limit: int | None = None) -> "EvaluationStream":
        """One Batch, with a batch axis of 1, for each of the first `limit` scenes of the index.

        In the order of the index, but scenes of one chunk come together. Ranks and workers share
        the scenes; a DataLoader of batch size 1 or None keeps the order.
        """
        split = self.split("test")
        if self._index is None:
            raise UserError(
                f"{self.root} has no evaluation index",
                "a JSON file of context and target frames",
                "set dataset.index to the published file, or write one with "
                f"`pmsplat data index {self.root} OUT.json`",
            )
        index = read_index(self._index)
        check_scenes(index, split, self._index)
        if limit is not None:
            index = dict(list(index.items())[:limit])
        return EvaluationStream(split, self.recipe, index)


class TrainingStream(IterableDataset[Batch]):
    """See `ChunkDataset.train`."""

    def __init__(
        self, split: Split, recipe: Recipe, seed: int, step: Tensor, skip: int, batch_size: int
    ) -> None:
        self.split, self.recipe, self.seed, self.step = split, recipe, seed, step
        self.rank, self.ranks = rank_of_ranks()
        self.batches_done = skip // self.ranks // batch_size
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[Batch]:
        worker, workers = _worker()
        role = (worker + self.batches_done) % workers  # whose turn it would be, had we not stopped
        turns = (self.batches_done - role + workers - 1) // workers
        order = _Order(self.split, self.seed, self.rank * workers + role, self.ranks * workers)
        loader = _Loader(self.split)
        skipped: Counter[str] = Counter()
        item = turns * self.batch_size
        while True:
            yield self._example(order, item, loader, skipped)
            item += 1
            if item % order.share == 0 and skipped:
                log.info("%s, shard %d: skipped %s", self.split.folder, role, dict(skipped))
                skipped.clear()

    def _example(
        self, order: "_Order", item: int, loader: "_Loader", skipped: Counter[str]
    ) -> Batch:
        """The item's scene, or, where it cannot be used, the next in the order that can."""
        generator = _generator(self.seed, order.shard, item)
        count = self._count_views(order.shard, item)
        reasons: Counter[str] = Counter()
        for chunk, key in order.following(item):
            try:
                scene = loader.scene(chunk, key)
                check(scene, self.recipe)
                batch = self._batch(scene, self._frames(scene, generator, count), loader)
            except Unusable as reason:
                reasons[str(reason)] += 1
                continue
            skipped.update(reasons)
            if torch.rand((), generator=generator) < self.recipe.flip:
                batch = flip(batch)
            return batch
        raise no_usable_scene(self.split, reasons)

    def _count_views(self, shard: int, item: int) -> int | None:
        """How many context views all examples of the item's batch have; None: it is alone in it."""
        if self.batch_size == 1:
            return None
        batch = _generator(self.seed, shard, "batch", item // self.batch_size)
        return self.recipe.sampler.count_views(batch)

    def _frames(
        self, scene: ChunkScene, generator: torch.Generator, count: int | None = None
    ) -> Frames | Snapped:
        """Frames of an example; with a cache, drawn until a window of the teacher contains them."""
        cache = self.recipe.pointmaps
        for _ in range(DRAWS):
            frames = self.recipe.sampler(scene.c2w[:, :3, 3], int(self.step), generator, count)
            if frames is None:
                raise Unusable("too few frames for the gap")
            if cache is None:
                return frames
            snapped = cache.key.windows.snap(frames, len(scene))
            if snapped is not None:
                return snapped
        raise Unusable(
            "no teacher window contains the context views as distinct frames (if they are far "
            "apart, raise teacher.windows.frames or lower dataset.max_gap; if they are close, "
            "lower teacher.windows.every)"
        )

    def _batch(self, scene: ChunkScene, frames: Frames | Snapped, loader: "_Loader") -> Batch:
        if isinstance(frames, Frames):
            return make_batch(scene, frames, self.recipe)
        cache, snapped = self.recipe.pointmaps, frames
        assert cache is not None
        try:
            pointmap = loader.pointmap(cache, scene.key, snapped)
        except SkippedScene as reason:
            raise Unusable(str(reason)) from reason
        except (MissingPointmaps, StalePointmaps):
            if cache.required:
                raise
            pointmap = None
        return make_batch(scene, snapped.frames, self.recipe, pointmap)


class EvaluationStream(IterableDataset[Batch]):
    """See `ChunkDataset.evaluation`; scenes that are `done` are not read again."""

    def __init__(
        self, split: Split, recipe: Recipe, index: Index, done: Collection[str] = ()
    ) -> None:
        self.split, self.recipe, self.index = split, recipe, index
        self.rank, self.ranks = rank_of_ranks()
        chunk_of = split.chunk_of
        grouped: dict[str, list[str]] = {}
        for key in index:
            grouped.setdefault(chunk_of[key], []).append(key)
        self.order = [(chunk, key) for chunk, keys in grouped.items() for key in keys]
        self.left = [place for place in self.order if place[1] not in done]

    @property
    def keys(self) -> list[str]:
        """All scenes, of all ranks, in order."""
        return [key for _, key in self.order]

    def without(self, done: Collection[str]) -> "EvaluationStream":
        """The same without some scenes: ranks share the others."""
        return EvaluationStream(self.split, self.recipe, self.index, done)

    def __len__(self) -> int:
        return len(self.left[self.rank :: self.ranks])

    def __iter__(self) -> Iterator[Batch]:
        worker, workers = _worker()
        loader = _Loader(self.split)
        skipped: Counter[str] = Counter()
        mine = self.left[self.rank :: self.ranks][worker::workers]
        for chunk, key in mine:
            try:
                scene = loader.scene(chunk, key)
                check(scene, self.recipe)
            except Unusable as reason:
                skipped[str(reason)] += 1
                continue
            check_frames(self.index[key], len(scene), key)
            try:
                yield make_evaluation_batch(scene, self.index[key], self.recipe)
            except Unusable as reason:
                raise UserError(
                    f"scene {key!r} of {self.split.folder / chunk} has {reason}",
                    "every scene of the evaluation index whole",
                    "repair the data or leave the scene out of the index",
                ) from reason
        if skipped:
            log.info("%s: skipped %s", self.split.folder, dict(skipped))
        if skipped.total() == len(self.order):
            raise no_usable_scene(self.split, skipped)


def pair(values: list[int], name: str) -> tuple[int, int]:
    """The two whole numbers of a setting; raises UserError where there are not two."""
    if len(values) != 2:
        raise UserError(
            f"dataset.{name}={list(values)}", "two numbers", f"set dataset.{name}=[A,B]"
        )
    return values[0], values[1]


class _Loader:
    """Scenes of a split; the chunk read last stays open."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.name: str | None = None
        self.chunk = Chunk()
        self.reader: CacheReader | None = None

    def scene(self, chunk: str, key: str) -> ChunkScene:
        if chunk != self.name:
            self.name, self.chunk = chunk, self.split.chunk(chunk)
        if key in self.chunk.faults:
            raise Unusable(self.chunk.faults[key])
        return self.chunk.scenes[key]

    def pointmap(self, cache: PointmapCache, key: str, snapped: Snapped) -> Pointmap:
        """A teacher's pointmap of a scene of the chunk read last."""
        assert self.name is not None
        if self.reader is None:
            self.reader = cache.reader()
        return self.reader.read(self.split.folder / self.name, key, snapped)


class _Order:
    """What one shard reads: item number -> (chunk, scene key), for ever.

    A round is one epoch, or as many as give every shard something.
    """

    def __init__(self, split: Split, seed: int, shard: int, shards: int) -> None:
        self.split, self.seed, self.shard = split, seed, shard
        self.scenes = sum(map(len, split.keys.values()))
        self.epochs = ceil(shards / self.scenes)
        total = self.epochs * self.scenes
        self.start = shard * total // shards
        self.share = (shard + 1) * total // shards - self.start
        self._round = -1
        self._positions: list[tuple[str, str]] = []

    def following(self, item: int) -> Iterator[tuple[str, str]]:
        """The place of an item, then all those after it, around the round, once each."""
        round_, offset = divmod(item, self.share)
        if round_ != self._round:
            first = round_ * self.epochs
            self._positions = [p for e in range(self.epochs) for p in self._epoch(first + e)]
            self._round = round_
        for i in range(len(self._positions)):
            yield self._positions[(self.start + offset + i) % len(self._positions)]

    def _epoch(self, epoch: int) -> list[tuple[str, str]]:
        generator = _generator(self.seed, "epoch", epoch)
        chunks = list(self.split.keys)
        order = []
        for c in torch.randperm(len(chunks), generator=generator).tolist():
            keys = self.split.keys[chunks[c]]
            shuffled = torch.randperm(len(keys), generator=generator).tolist()
            order += [(chunks[c], keys[k]) for k in shuffled]
        return order


def rank_of_ranks() -> tuple[int, int]:
    """(rank, number of ranks) of this process; UserError where torchrun's variables are invalid."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    rank, ranks = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not rank.isdecimal() or not ranks.isdecimal() or not int(rank) < int(ranks):
        raise UserError(
            f"RANK={rank} and WORLD_SIZE={ranks} in the environment",
            "a number below that of the processes",
            "start them with torchrun, or unset both",
        )
    return int(rank), int(ranks)


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _generator(*words: int | str) -> torch.Generator:
    """A generator that depends on the words alone."""
    digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))


def no_usable_scene(split: Split, reasons: Counter[str]) -> UserError:
    """The error of a split all of whose scenes are skipped: how many for each reason."""
    counts = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    return UserError(
        f"not one scene of {split.folder} can be used: {counts}",
        "at least one",
        "look at the data with `pmsplat data info`, or choose other gaps",
    )
