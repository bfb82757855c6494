"""The streams behind every dataset of chunks: shuffled, shared, resumable.

An epoch is a permutation of the chunks, and of the scenes in each. What an item is depends on its
position alone. A training step takes the next items, as many as all ranks together have in their
batches: so the sequence is the same for any number of workers, and for any number of ranks with as
many scenes in a step, and it can start anywhere. A scene that cannot be used is said (`_skips`),
and the next that can takes its place.
"""

import hashlib
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..contracts import Teacher
from ..errors import UserError
from ..io.chunks import (
    INDEX,
    Chunk,
    ChunkScene,
    Split,
    open_chunk,
    read_quarantine,
    read_split,
)
from ..scene.fit import flip
from ..types import Batch, Pointmap, Views
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
from ._skips import Skip, Skips
from ._windows import Snapped, Windows

OPEN = 16  # chunks that one process keeps open: their tables, not their photographs
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
        self.split, self.recipe, self.seed = split, recipe, seed
        self.step = int(step)  # now: a process that loads begins later
        self.rank, self.ranks = rank_of_ranks()
        self.skip, self.batch_size = skip, batch_size
        self.skips = Skips()

    def __iter__(self) -> Iterator[Batch]:
        worker, workers = _worker()
        read = self.turns()
        for turn in count(worker, workers):
            yield from read(turn)

    def turns(self) -> Callable[[int], Iterator[Batch]]:
        """What reads the examples of any turn, that is of this rank's batch of a step from 0."""
        order, loader = _Order(self.split, self.seed), _Loader(self.split)
        together = self.ranks * self.batch_size

        def read(turn: int) -> Iterator[Batch]:
            first = self.skip + turn * together
            views = self._count_views(first // together)
            mine = first + self.rank * self.batch_size
            for item in range(mine, mine + self.batch_size):
                yield self._example(order, item, self.step + turn, views, loader)

        return read

    def _example(
        self, order: "_Order", item: int, step: int, views: int | None, loader: "_Loader"
    ) -> Batch:
        """The item's scene, or, where it cannot be used, the next in the order that can."""
        generator = _generator(self.seed, 0, item)
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
        return self.recipe.sampler.count_views(_generator(self.seed, 0, "batch", step))

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
        self, chunk: str, scene: ChunkScene, frames: Frames | Snapped, loader: "_Loader"
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
        self.skips = Skips()

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
        loader, reasons = _Loader(self.split), Counter[str]()
        mine = self.left[self.rank :: self.ranks][worker::workers]
        for chunk, key in mine:
            try:
                scene = loader.scene(chunk, key)
                check(scene, self.recipe)
                check_frames(self.index[key], len(scene), key)
                batch = make_evaluation_batch(scene, self.index[key], self.recipe)
            except Unusable as reason:
                reasons[str(reason)] += 1
                self.skips.add(_skip(self.split, chunk, key, reason))
                continue
            yield batch
        if reasons.total() == len(self.order):
            raise no_usable_scene(self.split, reasons)


def pair(values: list[int], name: str) -> tuple[int, int]:
    """The two whole numbers of a setting; raises UserError where there are not two."""
    if len(values) != 2:
        raise UserError(
            f"dataset.{name}={list(values)}", "two numbers", f"set dataset.{name}=[A,B]"
        )
    return values[0], values[1]


class _Loader:
    """Scenes of a split; the OPEN chunks read last stay open."""

    def __init__(self, split: Split) -> None:
        self.split, self.quarantine = split, read_quarantine(split.folder)
        self.chunks: OrderedDict[str, Chunk | UserError] = OrderedDict()
        self.reader: CacheReader | None = None

    def scene(self, name: str, key: str) -> ChunkScene:
        """Raises Damaged for a scene that cannot be read, or that a quarantine names."""
        if name in self.quarantine.chunks:
            raise DamagedChunk(self.quarantine.chunks[name])
        if key in self.quarantine.scenes:
            raise Damaged(self.quarantine.scenes[key])
        chunk = self._open(name)
        if isinstance(chunk, UserError):
            raise DamagedChunk(chunk.got) from chunk
        if key in chunk.faults:
            raise Damaged(chunk.faults[key])
        if key not in chunk.scenes:
            raise Damaged(f"no entry in its chunk, where {INDEX} says that it is")
        return chunk.scenes[key]

    def _open(self, name: str) -> Chunk | UserError:
        """A chunk, or why it cannot be read."""
        if name not in self.chunks:
            try:
                self.chunks[name] = open_chunk(self.split.folder / name)
            except UserError as error:
                self.chunks[name] = error
            if len(self.chunks) > OPEN:
                self.chunks.popitem(last=False)
        self.chunks.move_to_end(name)
        return self.chunks[name]

    def pointmap(self, cache: PointmapCache, chunk: str, key: str, snapped: Snapped) -> Pointmap:
        """A teacher's pointmap of a scene."""
        if self.reader is None:
            self.reader = cache.reader()
        return self.reader.read(self.split.folder / chunk, key, snapped)


class _Order:
    """What is read: item number -> (chunk, scene key), for ever, epoch after epoch."""

    def __init__(self, split: Split, seed: int) -> None:
        self.split, self.seed = split, seed
        self.scenes = sum(map(len, split.keys.values()))
        self._number = -1
        self._places: list[tuple[str, str]] = []

    def following(self, item: int) -> Iterator[tuple[str, str]]:
        """The place of an item, then all those after it, around the epoch, once each."""
        epoch, offset = divmod(item, self.scenes)
        if epoch != self._number:
            self._number, self._places = epoch, self._epoch(epoch)
        for i in range(self.scenes):
            yield self._places[(offset + i) % self.scenes]

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


def _skip(split: Split, chunk: str, key: str, reason: Unusable) -> Skip:
    """What is left out for that reason: a scene, or its whole chunk."""
    scenes = split.keys[chunk] if isinstance(reason, DamagedChunk) else [key]
    return Skip(chunk, tuple(scenes), str(reason), isinstance(reason, Damaged))


def no_usable_scene(split: Split, reasons: Counter[str]) -> UserError:
    """The error of a split all of whose scenes are skipped: how many for each reason."""
    counts = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    return UserError(
        f"not one scene of {split.folder} can be used: {counts}",
        "at least one",
        "look at the data with `pmsplat data info`, or choose other gaps",
    )
