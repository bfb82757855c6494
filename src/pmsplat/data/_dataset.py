"""The streams behind every dataset of chunks: shuffled, shared, resumable.

An epoch is a permutation of the chunks, and of the scenes in each. What an item is depends on its
position alone. A training step takes the next items, as many as all ranks together have in their
batches: so the sequence is the same for any number of workers, and for any number of ranks with as
many scenes in a step, and it can start anywhere. A scene that cannot be used is said (`_skips`),
and the next that can takes its place.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ..contracts import Teacher
from ..errors import UserError, name_some
from ..io.chunks import ChunkScene, Split, has_split, is_remote, read_split
from ..scene.fit import flip
from ..types import Batch, Views
from ._batches import (
    Damaged,
    DamagedChunk,
    Recipe,
    Unusable,
    check,
    fitted_views,
    make_batch,
    make_evaluation_batch,
)
from ._index import Index, Listed, Listing, check_scenes, read_listing
from ._loader import SceneLoader
from ._order import Order, make_generator, rank_of_ranks, worker_of_workers
from ._pointmaps import (
    CacheKey,
    MissingPointmaps,
    PointmapCache,
    SkippedScene,
    StalePointmaps,
)
from ._sampling import Frames
from ._skips import Skip, Skips
from ._windows import Snapped, Windows

DRAWS = 50  # of frames of a scene, until a window of the teacher contains them


class ChunkDataset:
    """A dataset in chunks: ROOT/train, ROOT/test, and an evaluation index of the latter.

    ROOT is a folder, or an address (`io._objects`), of which only the photographs used are read.
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
        self.root, self.recipe, self.scale_near = root, recipe, scale_near
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

    @cached_property
    def has_test(self) -> bool:
        """Whether there is a test split; one that is made is taken to be there."""
        return self._prepare is not None or has_split(self._place("test"))

    def train(
        self, seed: int, step: Tensor, skip: int = 0, batch_size: int = 1
    ) -> "TrainingStream":
        """An endless stream of training examples, each a Batch with a batch axis of 1.

        `step` is the trainer's global step where the stream begins; each batch is one more. To
        resume, `skip` is the number of examples consumed so far over all ranks, `batch_size` that
        of the DataLoader (whose workers take turns by batches): then the sequence goes on as if it
        had never stopped. Where the number of context views is random, all examples of a step have
        the same. Scenes that are left out are in `skips` of the stream.
        """
        return TrainingStream(self.split("train"), self.recipe, seed, step, skip, batch_size)

    def split(self, name: str) -> Split:
        """The chunks of ROOT/`name`, made first where the dataset makes itself."""
        if self._prepare is not None:
            self._prepare()
        return read_split(self._place(name))

    def _place(self, name: str) -> str | Path:
        remote = is_remote(self.root)
        return f"{self.root.rstrip('/')}/{name}" if remote else Path(self.root) / name

    def pointmap_cache(
        self, teacher: Teacher, folder: str, windows: Windows, required: bool = True
    ) -> PointmapCache:
        """The cache of a teacher's pointmaps of this dataset in `folder`.

        A relative folder is beside the splits, in the root of the dataset. Raises UserError for a
        root elsewhere.
        """
        if is_remote(self.root):
            raise UserError(
                f"teacher.cache with the data at {self.root}",
                "chunks on this machine, beside which pointmaps are kept",
                "download them, or leave teacher.cache out: the teacher then runs while training",
            )
        recipe = self.recipe
        fit = "scaled and cut" if recipe.resize else "cut"
        if teacher.posed:
            fit += ", exact principal points" if recipe.exact else ", published principal points"
        key = CacheKey(teacher.name, teacher.revision, recipe.size, fit, windows)
        return PointmapCache(Path(self.root) / folder / "train", key, required)

    def window_views(self, scene: ChunkScene, frames: tuple[int, ...]) -> Views:
        """Frames of a scene as a teacher sees them; raises Unusable where training skips it."""
        check(scene, self.recipe)
        return fitted_views(scene, frames, replace(self.recipe, decode="exact"))

    def with_pointmaps(self, cache: PointmapCache) -> "ChunkDataset":
        """The same dataset, whose training examples have a teacher's pointmaps."""
        recipe = replace(self.recipe, pointmaps=cache)
        return ChunkDataset(self.root, recipe, self._index, self._prepare, self.scale_near)

    def check_pointmaps(self) -> None:
        """Opens every file of required pointmaps, so that a missing one is an error at once."""
        cache = self.recipe.pointmaps
        if cache is not None and cache.required:
            split = self.split("train")
            cache.check([split.folder / chunk for chunk in split.keys])

    def evaluation(self, limit: int | None = None) -> "EvaluationStream":
        """One Batch, with a batch axis of 1, for each of the first `limit` scenes of the index.

        In the order of the index, but scenes of one chunk come together. Ranks and workers share
        the scenes; a DataLoader of batch size 1 or None keeps the order. Scenes that the data lacks
        are passed over and counted in `listed`; UserError where it lacks all.
        """
        split, listing = self.split("test"), self._listing
        assert self._index is not None
        check_scenes(listing.index, split, self._index)
        here, missing = listing.split(split.chunk_of)
        index = here if limit is None else dict(list(here.items())[:limit])
        beyond = len(here) - len(index)
        listed = Listed(listing.index, len(listing.null), missing, beyond, listing.digest)
        return EvaluationStream(split, self.recipe, index, listed=listed)

    @cached_property
    def _listing(self) -> Listing:
        """The index, which is read once: it may lie at an address. UserError without one."""
        if self._index is None:
            raise UserError(
                f"{self.root} has no evaluation index",
                "a JSON file of context and target frames",
                "set dataset.index to the published file, or write one with "
                f"`pmsplat data index {self.root} OUT.json`",
            )
        return read_listing(self._index)


class TrainingStream(IterableDataset[Batch]):
    """See `ChunkDataset.train`."""

    def __init__(
        self, split: Split, recipe: Recipe, seed: int, step: Tensor, skip: int, batch_size: int
    ) -> None:
        self.split, self.recipe, self.seed = split, recipe, seed
        self.step = int(step)  # now: a process that loads begins later
        self.rank, self.ranks = rank_of_ranks()
        self.skip, self.batch_size = skip, batch_size
        self.skips = Skips()

    def __iter__(self) -> Iterator[Batch]:
        worker, workers = worker_of_workers()
        read = self.turns()
        for turn in count(worker, workers):
            yield from read(turn)

    def turns(self) -> Callable[[int], Iterator[Batch]]:
        """What reads the examples of any turn, that is of this rank's batch of a step from 0."""
        order, loader = Order(self.split, self.seed), SceneLoader(self.split)
        together = self.ranks * self.batch_size

        def read(turn: int) -> Iterator[Batch]:
            first = self.skip + turn * together
            views = self._count_views(first // together)
            mine = first + self.rank * self.batch_size
            for item in range(mine, mine + self.batch_size):
                yield self._example(order, item, self.step + turn, views, loader)

        return read

    def _example(
        self, order: Order, item: int, step: int, views: int | None, loader: SceneLoader
    ) -> Batch:
        """The item's scene, or, where it cannot be used, the next in the order that can."""
        generator = make_generator(self.seed, 0, item)
        reasons: Counter[str] = Counter()
        for chunk, key in order.following(item):
            try:
                scene = loader.scene(chunk, key)
                check(scene, self.recipe)
                frames = self._frames(scene, generator, step, views)
                batch = self._batch(chunk, scene, frames, loader)
            except Unusable as reason:
                reasons[str(reason)] += 1
                self.skips.add(_skip(self.split, chunk, key, reason))
                continue
            if torch.rand((), generator=generator) < self.recipe.flip:
                batch = flip(batch)
            return batch
        raise no_usable_scene(self.split, reasons)

    def _count_views(self, step: int) -> int | None:
        """How many context views all examples of a step have; None: each its own, alone in it."""
        if self.batch_size * self.ranks == 1:
            return None
        return self.recipe.sampler.count_views(make_generator(self.seed, 0, "batch", step))

    def _frames(
        self, scene: ChunkScene, generator: torch.Generator, step: int, views: int | None
    ) -> Frames | Snapped:
        """Frames of an example; with a cache, drawn until a window of the teacher contains them."""
        cache = self.recipe.pointmaps
        for _ in range(DRAWS):
            frames = self.recipe.sampler(scene.c2w[:, :3, 3], step, generator, views)
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

    def _batch(
        self, chunk: str, scene: ChunkScene, frames: Frames | Snapped, loader: SceneLoader
    ) -> Batch:
        if isinstance(frames, Frames):
            return make_batch(scene, frames, self.recipe)
        cache, snapped = self.recipe.pointmaps, frames
        assert cache is not None
        try:
            pointmap = loader.pointmap(cache, chunk, scene.key, snapped)
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
        self,
        split: Split,
        recipe: Recipe,
        index: Index,
        done: Collection[str] = (),
        listed: Listed | None = None,
    ) -> None:
        self.split, self.recipe, self.index = split, recipe, index
        self.listed = listed or Listed(index)
        self.rank, self.ranks = rank_of_ranks()
        chunk_of = split.chunk_of
        grouped: dict[str, list[str]] = {}
        for key in index:
            grouped.setdefault(chunk_of[key], []).append(key)
        self.order = [(chunk, key) for chunk, keys in grouped.items() for key in keys]
        self.left = [place for place in self.order if place[1] not in done]
        self.skips = Skips()

    @property
    def keys(self) -> list[str]:
        """All scenes, of all ranks, in order."""
        return [key for _, key in self.order]

    def without(self, done: Collection[str]) -> "EvaluationStream":
        """The same without some scenes: ranks share the others."""
        return EvaluationStream(self.split, self.recipe, self.index, done, self.listed)

    def __len__(self) -> int:
        return len(self.left[self.rank :: self.ranks])

    def __iter__(self) -> Iterator[Batch]:
        worker, workers = worker_of_workers()
        loader, reasons = SceneLoader(self.split), Counter[str]()
        mine = self.left[self.rank :: self.ranks][worker::workers]
        for chunk, key in mine:
            try:
                scene = loader.scene(chunk, key)
                check(scene, self.recipe)
                _check_frames(self.index[key], len(scene))
                batch = make_evaluation_batch(scene, self.index[key], self.recipe)
            except Unusable as reason:
                reasons[str(reason)] += 1
                self.skips.add(_skip(self.split, chunk, key, reason))
                continue
            yield batch
        if reasons.total() == len(self.order):
            raise no_usable_scene(self.split, reasons, "use the index that belongs to it")


def pair(values: list[int], name: str) -> tuple[int, int]:
    """The two whole numbers of a setting; raises UserError where there are not two."""
    if len(values) != 2:
        raise UserError(
            f"dataset.{name}={list(values)}", "two numbers", f"set dataset.{name}=[A,B]"
        )
    return values[0], values[1]


def _check_frames(frames: Frames, count: int) -> None:
    """Raises Damaged where a scene of so many frames lacks one that the index names."""
    beyond = [i for i in (*frames.context, *frames.target) if not 0 <= i < count]
    if beyond:
        lacking = "not all frames that the evaluation index names"
        raise Damaged(lacking, f"frame {beyond[0]} of 0 to {count - 1}")


def _skip(split: Split, chunk: str, key: str, reason: Unusable) -> Skip:
    """What is left out for that reason: a scene, or its whole chunk."""
    whole = isinstance(reason, DamagedChunk)
    scenes = tuple(split.keys[chunk]) if whole else (key,)
    return Skip(chunk, scenes, str(reason), isinstance(reason, Damaged), reason.detail, whole)


def no_usable_scene(
    split: Split, reasons: Counter[str], remedy: str = "choose other gaps"
) -> UserError:
    """The error of a split all of whose scenes are skipped: how many for each reason."""
    counts = name_some([f"{reason} ({count})" for reason, count in reasons.most_common()])
    return UserError(
        f"not one scene of {split.place} can be used: {counts}",
        "at least one",
        f"look at the data with `pmsplat data info {split.place}`, or {remedy}",
    )
