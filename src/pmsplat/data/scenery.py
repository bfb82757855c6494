"""Endless procedural scenes with exact depth: rooms, tables, streets and clutter, drawn as needed.

Nothing is stored: an example follows from the seed and its position alone. Textures are noise,
patterns and, where a folder is given, pieces of photographs. Photographs of the context views have
noise, drift of exposure and white balance, and blur; targets are clean. `synthetic` makes simpler
rooms, as files.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import exp
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import IterableDataset

from ..registry import check_settings, number, several, whole
from ..scene.bounds import depth_range
from ..types import Batch, Cameras, Views
from . import _scenery, _textures
from ._dataset import pair
from ._order import rank_of_ranks, worker_of_workers
from ._tracer import trace

RENEWED = 512  # examples that share their textures
UNKNOWN = 0.45 * _scenery.SKY  # depth from which on there is none, in distances of the subject
BRIGHTNESS = (0.3, 0.62)  # mean of the photographs of a scene, as a camera exposes them
GUESSED = 0.6  # share of scenes whose near and far come from the cameras alone
FEWEST = 100  # pixels with depth from which near and far are taken
TEST = 1 << 40  # seeds of what is evaluated begin here

Rng = np.random.Generator
Array = Float[np.ndarray, "height width 3"]


@dataclass
class Config:
    """Endless procedural scenes."""

    photos: str | None = None
    """A folder with photographs, of which pieces become textures; None: noise and patterns."""
    photo_share: float = 0.5  # of the textures that are pieces of photographs
    textures: int = 48  # at hand at a time; they are renewed every 512 examples
    sizes: list[list[int]] = field(default_factory=lambda: [[128, 128]])
    """(height, width) of a step, drawn among these; of an evaluation the first."""
    views: list[int] = field(default_factory=lambda: [2, 2])
    """Fewest and most context views; all examples of a step have the same number."""
    target_views: int = 3
    test_scenes: int = 32  # of an evaluation
    drift: float = 1.0  # of exposure and white balance, noise and blur; 0: clean photographs

    def __post_init__(self) -> None:
        rules = {"photo_share": number(0, 1), "textures": whole(8), "target_views": whole(1)}
        rules |= {"test_scenes": whole(1), "drift": number(0), "views": several(whole(2), 2)}
        check_settings(self, rules, "dataset.")
        for size in self.sizes:
            pair(size, "sizes")


class Scenery:
    """The dataset; scenes have units of their own, so each is scaled to that of the model."""

    scale_near = True

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg

    def train(self, seed: int, step: Tensor, skip: int = 0, batch_size: int = 1) -> "SceneryStream":
        """An endless stream; see `contracts.Dataset`."""
        return SceneryStream(self.cfg, seed, skip, batch_size)

    def evaluation(self, limit: int | None = None) -> "SceneryStream":
        """Scenes that no training has, `test_scenes` or fewer."""
        scenes = min(self.cfg.test_scenes, limit or self.cfg.test_scenes)
        return SceneryStream(self.cfg, TEST, 0, 1, scenes)


class SceneryStream(IterableDataset[Batch]):
    """The examples of a seed, from number `skip` on; all of them, or as many as `stop` says."""

    def __init__(
        self, cfg: Config, seed: int, skip: int, batch_size: int, stop: int | None = None
    ) -> None:
        self.cfg, self.seed, self.skip, self.batch_size, self.stop = (
            cfg, seed, skip, batch_size, stop,
        )  # fmt: skip
        self.rank, self.ranks = rank_of_ranks()
        self.photos = [] if cfg.photos is None else _textures.read_photos(Path(cfg.photos))

    def __len__(self) -> int:
        if self.stop is None:
            raise TypeError("an endless stream has no length")
        return len(range(self.rank, self.stop, self.ranks))

    def __iter__(self) -> Iterator[Batch]:
        worker, workers = worker_of_workers()
        read = self.turns()
        for turn in count(worker, workers):
            if self.stop is not None and turn * self.ranks + self.rank >= self.stop:
                return
            yield from read(turn)

    def turns(self) -> Callable[[int], Iterator[Batch]]:
        """What makes the examples of any turn, that is of this rank's batch of a step from 0."""
        made: dict[int, np.ndarray] = {}
        together = self.ranks * self.batch_size

        def read(turn: int) -> Iterator[Batch]:
            first = self.skip + turn * together
            mine = first + self.rank * self.batch_size
            shared = np.random.default_rng([self.seed, 1, first // together])
            low, high = pair(self.cfg.views, "views")
            views = int(shared.integers(low, high + 1))
            sizes = self.cfg.sizes if self.stop is None else self.cfg.sizes[:1]
            size = pair(sizes[shared.integers(len(sizes))], "sizes")
            for item in range(mine, mine + self.batch_size):
                group = item // RENEWED
                if group not in made:
                    made.clear()
                    made[group] = self._make_textures(group)
                yield self.example(item, views, size, made[group])

        return read

    def _make_textures(self, group: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 2, group])
        cfg = self.cfg
        return _textures.make_textures(rng, cfg.textures, self.photos, cfg.photo_share)

    def example(self, item: int, views: int, size: tuple[int, int], textures: np.ndarray) -> Batch:
        """The example of a number, with a batch axis of 1."""
        rng = np.random.default_rng([self.seed, 0, item])
        targets = self.cfg.target_views
        cameras = _scenery.draw_cameras(rng, size[1] / size[0], views, targets)
        scene = _scenery.draw_scene(rng, cameras, len(textures))
        pictures = [
            trace(scene.bodies, textures, scene.light, c2w, cameras.K, size) for c2w in cameras.c2w
        ]
        depth = np.stack([picture.depth for picture in pictures])
        depth = np.where(depth < UNKNOWN * cameras.subject, depth, 0).astype(np.float32)
        near, far = _bounds(rng, depth[:views], cameras.subject)
        photos = take_photos(rng, [p.color for p in pictures], views, self.cfg.drift)
        c2w, K = torch.from_numpy(cameras.c2w).float(), torch.from_numpy(cameras.K).float()
        images = torch.from_numpy(photos).permute(0, 3, 1, 2).contiguous()

        def part(chosen: slice) -> Views:
            n = len(c2w[chosen])
            bounds = (torch.full((1, n), near), torch.full((1, n), far))
            return Views(
                images[None, chosen],
                Cameras(c2w[None, chosen], K.repeat(1, n, 1, 1), *bounds),
                torch.from_numpy(depth[None, chosen]),
            )

        key = f"scenery-{self.seed}-{item}"
        return Batch(part(slice(0, views)), part(slice(views, None)), [key])


def _bounds(rng: Rng, depth: Float[np.ndarray, "view h w"], subject: float) -> Sequence[float]:
    """Near and far as sparse points would say them, about right, or as cameras alone do: a quarter
    and four times the distance of what they look at (`scene.bounds`)."""
    if rng.random() < GUESSED:
        focus = subject * exp(rng.normal(0, 0.15))
        return focus / 4, focus * 4
    seen = depth[depth > 0]
    near, far = (0.3 * subject, 8 * subject) if len(seen) < FEWEST else depth_range(seen)
    near *= exp(rng.normal(-0.1, 0.2))
    far *= exp(rng.normal(0.1, 0.3))
    return near, max(far, 1.5 * near)


def take_photos(
    rng: Rng, colors: list[Array], context: int, drift: float
) -> Float[np.ndarray, "view height width 3"]:
    """Photographs of what the cameras see; the first `context` with the faults of real ones."""
    photos = np.clip(np.stack(colors), 0, 1)
    # one response curve for all: contrast and brightness
    photos = photos ** np.float32(exp(rng.normal(0, 0.25)))
    photos = photos * np.float32(min(rng.uniform(*BRIGHTNESS) / max(photos.mean(), 0.01), 4.0))
    if drift:
        exposure = rng.normal(0, drift * rng.choice([0, 0.02, 0.06], p=[0.4, 0.35, 0.25]), context)
        white = rng.normal(0, drift * rng.choice([0, 0.015], p=[0.6, 0.4]), (context, 3))
        gains = np.exp(exposure[:, None] + white)
        gains = np.concatenate([gains, np.tile(gains.mean(axis=0), (len(photos) - context, 1))])
        photos = photos * gains[:, None, None].astype(np.float32)
        if rng.random() < 0.25 * min(drift, 1):
            photos[:context] = _blur(photos[:context], float(rng.uniform(0.05, 0.25)))
        grain = drift * float(rng.choice([0.0, rng.uniform(0, 0.02)], p=[0.3, 0.7]))
        noise = rng.standard_normal(photos[:context].shape, np.float32)
        photos[:context] += np.float32(grain) * noise
    return np.clip(photos, 0, 1).astype(np.float32)


def _blur(photos: np.ndarray, share: float) -> np.ndarray:
    """Each pixel gives a share to each of its neighbors, along both axes."""
    for axis in (1, 2):
        wide = np.pad(photos, [(0, 0)] * axis + [(1, 1)] + [(0, 0)] * (3 - axis), mode="edge")
        n = photos.shape[axis]
        first, last = (wide.take(range(s, s + n), axis=axis) for s in (0, 2))
        photos = (1 - 2 * share) * photos + share * (first + last)
    return photos


build = Scenery
