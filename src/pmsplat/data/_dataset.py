"""The streams behind every dataset of chunks: sharded, shuffled, resumable.

An epoch is a permutation of the chunks, and of the scenes in each. Every shard (one worker of one
rank) takes a contiguous, equal part of it, so it opens only its part of the files and every scene
is seen once. What an item is depends on its position alone: the stream can start anywhere.
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil, degrees
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import UserError
from ..geometry import camera
from ..types import Batch, Cameras, Views
from . import _transforms
from ._chunks import Chunk, ChunkScene, Split, read_split
from ._index import Index, check_frames, check_scenes, read_index
from ._sampling import Frames, Sampler

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How scenes become batches.

    `size` is the (height, width) of the batch; `resize` scales photos to cover it before the centre
    is cut out, else it is cut from the photos as stored. `exact` principal points or the published
    ones: see `_transforms`. `near` and `far` in scene units, None: those that the scene carries.
    `scale_near`: scale the scene so that the nearest context view's near is this. Scenes with a
    field of view beyond `max_fov` degrees or a camera coordinate beyond `max_translation` are
    skipped. `flip` is the probability of a mirrored training example.
    """

    size: tuple[int, int]
    sampler: Sampler
    near: float | None = None
    far: float | None = None
    resize: bool = True
    exact: bool = True
    scale_near: float | None = None
    flip: float = 0.0
    max_fov: float = 100.0
    max_translation: float = float("inf")


class ChunkDataset:
    """A dataset in chunks: ROOT/train, ROOT/test, and an evaluation index of the latter."""

    def __init__(
        self,
        root: str,
        recipe: Recipe,
        index: str | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.root, self.recipe = Path(root), recipe
        self._index, self._prepare = index, prepare

    def train(
        self, seed: int, step: Tensor, skip: int = 0, batch_size: int = 1
    ) -> "TrainingStream":
        """An endless stream of training examples, each a Batch with a batch axis of 1.

        `step` is a shared-memory scalar that the trainer sets to its global step. To resume, `skip`
        is the number of examples consumed so far over all ranks and workers, `batch_size` that of
        the DataLoader (workers take turns by batches): then the sequence goes on as if it had never
        stopped, with as many ranks and workers as before.
        """
        self._make()
        return TrainingStream(
            read_split(self.root / "train"), self.recipe, seed, step, skip, batch_size
        )

    def evaluation(self, limit: int | None = None) -> "EvaluationStream":
        """One Batch, with a batch axis of 1, for each of the first `limit` scenes of the index.

        In the order of the index, but scenes of one chunk come together. Ranks and workers share
        the scenes; a DataLoader of batch size 1 or None keeps the order.
        """
        self._make()
        if self._index is None:
            raise UserError(
                f"{self.root} has no evaluation index",
                "a JSON file of context and target frames",
                "set dataset.index to the published file, or write one with "
                f"`pmsplat data index {self.root} OUT.json`",
            )
        split = read_split(self.root / "test")
        index = read_index(self._index)
        check_scenes(index, split, self._index)
        if limit is not None:
            index = dict(list(index.items())[:limit])
        return EvaluationStream(split, self.recipe, index)

    def _make(self) -> None:
        if self._prepare is not None:
            self._prepare()


class TrainingStream(IterableDataset[Batch]):
    """See `ChunkDataset.train`."""

    def __init__(
        self, split: Split, recipe: Recipe, seed: int, step: Tensor, skip: int, batch_size: int
    ) -> None:
        self.split, self.recipe, self.seed, self.step = split, recipe, seed, step
        self.rank, self.ranks = _rank()
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
                log.info("%s, shard %d: passed over %s", self.split.folder, role, dict(skipped))
                skipped.clear()

    def _example(
        self, order: "_Order", item: int, loader: "_Loader", skipped: Counter[str]
    ) -> Batch:
        """The item's scene, or, where it cannot be used, the next in the order that can."""
        generator = _generator(self.seed, order.shard, item)
        reasons: Counter[str] = Counter()
        for chunk, key in order.following(item):
            try:
                scene = loader.scene(chunk, key)
                _check(scene, self.recipe)
                frames = self.recipe.sampler(scene.c2w[:, :3, 3], int(self.step), generator)
                if frames is None:
                    raise _Unusable("too few frames for the gap")
                batch = make_batch(scene, frames, self.recipe)
            except _Unusable as reason:
                reasons[str(reason)] += 1
                continue
            skipped.update(reasons)
            if torch.rand((), generator=generator) < self.recipe.flip:
                batch = _transforms.flip(batch)
            return batch
        raise _none_usable(self.split, reasons)


class EvaluationStream(IterableDataset[Batch]):
    """See `ChunkDataset.evaluation`."""

    def __init__(self, split: Split, recipe: Recipe, index: Index) -> None:
        self.split, self.recipe, self.index = split, recipe, index
        self.rank, self.ranks = _rank()
        chunk_of = split.chunk_of
        grouped: dict[str, list[str]] = {}
        for key in index:
            grouped.setdefault(chunk_of[key], []).append(key)
        self.order = [(chunk, key) for chunk, keys in grouped.items() for key in keys]

    def __len__(self) -> int:
        return len(self.order[self.rank :: self.ranks])

    def __iter__(self) -> Iterator[Batch]:
        worker, workers = _worker()
        loader = _Loader(self.split)
        skipped: Counter[str] = Counter()
        mine = self.order[self.rank :: self.ranks][worker::workers]
        for chunk, key in mine:
            try:
                scene = loader.scene(chunk, key)
                _check(scene, self.recipe)
            except _Unusable as reason:
                skipped[str(reason)] += 1
                continue
            check_frames(self.index[key], len(scene), key)
            try:
                yield make_batch(scene, self.index[key], self.recipe)
            except _Unusable as reason:
                raise UserError(
                    f"scene {key!r} of {self.split.folder / chunk} has {reason}",
                    "every scene of the evaluation index whole",
                    "mend the data or leave the scene out of the index",
                ) from reason
        if skipped:
            log.info("%s: passed over %s", self.split.folder, dict(skipped))
        if skipped.total() == len(self.order):
            raise _none_usable(self.split, skipped)


def make_batch(scene: ChunkScene, frames: Frames, recipe: Recipe) -> Batch:
    """The context and target views of one scene, batch axis 1."""
    context = _views(scene, frames.context, recipe)
    target = _views(scene, frames.target, recipe)
    if recipe.scale_near is not None:
        factor = recipe.scale_near / float(context.cameras.near.min())
        context, target = _scaled(context, factor), _scaled(target, factor)
    return Batch(context=context, target=target, scene=[scene.key])


def collate(batches: list[Batch]) -> Batch:
    """Several batches as one, along the batch axis.

    Depth that some scenes lack is 0 there. Raises UserError where sizes or view counts differ.
    """
    return Batch(
        context=_join([batch.context for batch in batches]),
        target=_join([batch.target for batch in batches]),
        scene=[key for batch in batches for key in batch.scene],
    )


def pair(values: list[int], name: str) -> tuple[int, int]:
    """The two whole numbers of a setting; raises UserError where there are not two."""
    if len(values) != 2:
        raise UserError(
            f"dataset.{name}={list(values)}", "two numbers", f"set dataset.{name}=[A,B]"
        )
    return values[0], values[1]


class _Unusable(Exception):
    """Why a scene is passed over, in the words of the log."""


class _Loader:
    """Scenes of a split; the chunk read last stays open."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.name: str | None = None
        self.chunk = Chunk()

    def scene(self, chunk: str, key: str) -> ChunkScene:
        if chunk != self.name:
            self.name, self.chunk = chunk, self.split.chunk(chunk)
        if key in self.chunk.faults:
            raise _Unusable(self.chunk.faults[key])
        return self.chunk.scenes[key]


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


def _check(scene: ChunkScene, recipe: Recipe) -> None:
    if degrees(float(camera.field_of_view(scene.K).max())) > recipe.max_fov:
        raise _Unusable(f"a field of view beyond {recipe.max_fov:g} degrees")
    if float(scene.c2w[:, :3, 3].abs().max()) > recipe.max_translation:
        raise _Unusable(f"camera positions beyond {recipe.max_translation:g}")
    if scene.near is None and (recipe.near is None or recipe.far is None):
        raise UserError(
            f"scene {scene.key!r} carries no near and far, and none are set",
            "the depth range to search",
            "set dataset.near and dataset.far",
        )


def _views(scene: ChunkScene, frames: tuple[int, ...], recipe: Recipe) -> Views:
    images, depths, intrinsics = [], [], []
    for frame in frames:
        try:
            image, depth = scene.image(frame), scene.depth(frame)
        except UserError as error:
            raise _Unusable("an unreadable image") from error
        before = (image.shape[0], image.shape[1])
        if depth is not None and depth.shape != before:
            raise _Unusable("depth of another size than its photo")
        size = recipe.size if recipe.resize else before
        images.append(_transforms.fit_image(image, size))
        intrinsics.append(_transforms.fit_K(scene.K[frame], before, size, recipe.exact))
        if depth is not None:
            depths.append(torch.from_numpy(_transforms.fit_depth(depth, size)))
    if len({image.shape for image in images}) > 1:
        raise _Unusable("photos of different sizes")
    if any(have < want for have, want in zip(images[0].shape, recipe.size, strict=False)):
        raise _Unusable(f"photos smaller than {recipe.size[0]}x{recipe.size[1]}")
    index = list(frames)
    cameras = Cameras(
        c2w=scene.c2w[index][None],
        K=torch.stack(intrinsics)[None],
        near=_bound(scene.near, recipe.near, index),
        far=_bound(scene.far, recipe.far, index),
    )
    views = Views(
        images=_transforms.to_tensor(images),
        cameras=cameras,
        depth=torch.stack(depths)[None] if depths else None,
        names=(tuple(f"{frame:06d}" for frame in frames),),
    )
    return _transforms.crop(views, recipe.size, recipe.exact)


def _bound(carried: Tensor | None, given: float | None, index: list[int]) -> Tensor:
    if given is not None:
        return torch.full((1, len(index)), given)
    assert carried is not None
    return carried[index][None]


def _scaled(views: Views, factor: float) -> Views:
    depth = None if views.depth is None else views.depth * factor
    return replace(views, cameras=views.cameras.scaled(factor), depth=depth)


def _join(parts: list[Views]) -> Views:
    shapes = {tuple(views.images.shape[1:]) for views in parts}
    if len(shapes) > 1:
        told = " and ".join(f"{v} views of {h}x{w}" for v, _, h, w in sorted(shapes))
        raise UserError(
            f"examples of {told} in one batch",
            "one size and one number of views",
            "use batch size 1, or the same number of views for every example",
        )
    depth = None
    if any(views.depth is not None for views in parts):
        blank = torch.zeros_like(parts[0].images[:, :, 0])
        depth = torch.cat([blank if views.depth is None else views.depth for views in parts])
    pointmaps = [views.pointmap for views in parts if views.pointmap is not None]
    cameras = [views.cameras for views in parts]
    return Views(
        images=torch.cat([views.images for views in parts]),
        cameras=Cameras(
            c2w=torch.cat([c.c2w for c in cameras]),
            K=torch.cat([c.K for c in cameras]),
            near=torch.cat([c.near for c in cameras]),
            far=torch.cat([c.far for c in cameras]),
        ),
        depth=depth,
        pointmap=torch.cat(pointmaps) if len(pointmaps) == len(parts) else None,
        names=tuple(row for views in parts for row in views.names or ()) or None,
    )


def _rank() -> tuple[int, int]:
    """(rank, number of ranks) of this process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _generator(*words: int | str) -> torch.Generator:
    """A generator that depends on the words alone."""
    digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))


def _none_usable(split: Split, reasons: Counter[str]) -> UserError:
    told = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    return UserError(
        f"not one scene of {split.folder} can be used: {told}",
        "at least one",
        "look at the data with `pmsplat data info`, or choose smaller gaps",
    )
