"""How the frames of an evaluation are chosen: rules as values, each makes an index from cameras.

A rule sees the cameras of whole scenes, by key. It leaves out scenes that are too short, as the
functions of `_index` do, and depends on nothing else than the cameras, the keys and its own fields.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from ..errors import UserError
from ..scene.overlap import overlaps_of
from ..types import Cameras
from ._index import (
    Index,
    make_even_index,
    make_outside_index,
    make_path_index,
    make_regular_index,
    make_spread_index,
)
from ._order import make_generator
from ._sampling import Frames
from ._walks import centers_of

Walks = Mapping[str, Cameras]  # the cameras of every frame of a scene, in order, batch 1


class Rule(Protocol):
    """Makes an index; UserError where no scene is long enough."""

    def __call__(self, walks: Walks) -> Index: ...

    def say(self) -> str:
        """The rule in a few words."""
        ...


@dataclass(frozen=True)
class Farthest:
    """Farthest points of the camera centers among the `first` frames (`make_spread_index`)."""

    first: int
    views: int
    targets: int

    def __call__(self, walks: Walks) -> Index:
        return make_spread_index(centers_of(walks), self.first, self.views, self.targets)

    def say(self) -> str:
        return f"farthest points of {self.first} frames; every n-th of the others, {self.targets}"


@dataclass(frozen=True)
class AllOf:
    """The same; all of the `first` frames are targets (`make_path_index`)."""

    first: int
    views: int
    inside: bool = False

    def __call__(self, walks: Walks) -> Index:
        return make_path_index(centers_of(walks), self.first, self.views, self.inside)

    def say(self) -> str:
        shown = "all from first to last of these" if self.inside else f"all {self.first}"
        return f"farthest points of {self.first} frames; {shown}"


@dataclass(frozen=True)
class Every:
    """Every `every`-th frame is a target, farthest points of the others are context views.

    Among the `first` frames, None: all; from frame `start` on (`make_regular_index`).
    """

    first: int | None
    views: int
    every: int
    start: int | None = None

    def __call__(self, walks: Walks) -> Index:
        return make_regular_index(centers_of(walks), self.first, self.views, self.every, self.start)

    def say(self) -> str:
        where = "the whole scene" if self.first is None else f"{self.first} frames"
        return f"farthest points of {where}; every {self.every}th frame"


@dataclass(frozen=True)
class Even:
    """Evenly in order (`make_even_index`); `targets` None: all frames."""

    first: int | None
    views: int
    targets: int | None

    def __call__(self, walks: Walks) -> Index:
        return make_even_index(_lengths(walks), self.views, self.targets, self.first)

    def say(self) -> str:
        where = "the whole scene" if self.first is None else f"{self.first} frames"
        shown = (
            "all frames" if self.targets is None else f"every n-th of the others, {self.targets}"
        )
        return f"evenly over {where}; {shown}"


@dataclass(frozen=True)
class Outside:
    """Targets before the first and after the last context view (`make_outside_index`)."""

    start: int
    gap: int
    beyond: int
    targets: int
    views: int = 2
    seed: int = 0

    def __call__(self, walks: Walks) -> Index:
        return make_outside_index(
            _lengths(walks), self.gap, self.views, self.targets, self.beyond,
            torch.Generator().manual_seed(self.seed), self.start,
        )  # fmt: skip

    def say(self) -> str:
        return (
            f"frames {self.start} and {self.start + self.gap}; {self.targets} of the "
            f"{self.beyond} before and after them"
        )


@dataclass(frozen=True)
class Fixed:
    """The same frames of every scene that has them."""

    context: tuple[int, ...]
    target: tuple[int, ...]

    def __call__(self, walks: Walks) -> Index:
        last, lengths = max(*self.context, *self.target), _lengths(walks)
        frames = Frames(self.context, self.target)
        if index := {key: frames for key, count in lengths.items() if count > last}:
            return index
        raise UserError(
            f"no scene has more than {last} frames, the longest {max(lengths.values(), default=0)}",
            f"scenes that have frame {last}",
            "choose another protocol",
        )

    def say(self) -> str:
        return f"frames {_list(self.context)}; {_list(self.target)}"


@dataclass(frozen=True)
class Overlapping:
    """Two context views that share `low` to `high` of what they see; targets between them.

    As pixelSplat's index of RealEstate10K was made (Charatan et al., arXiv 2312.12337): of frames
    in random order the first that has a partner, `shortest` to `longest` frames away; walking on
    from frame to frame ends where less is shared. Of all partners one is drawn, and `targets`
    different frames from the one to the other, these included. Scenes without such a pair are left
    out. What is shared is estimated by `scene.overlap` from cameras, near and far, where pixelSplat
    counts epipolar lines that meet the other image and NoPoSplat dense matches of the photographs.
    Every scene draws for itself, by its key.
    """

    low: float
    high: float
    shortest: int = 45
    longest: int = 135
    targets: int = 3
    seed: int = 0

    def __call__(self, walks: Walks) -> Index:
        found = {key: self._choose(key, cameras) for key, cameras in walks.items()}
        if index := {key: frames for key, frames in found.items() if frames is not None}:
            return index
        raise UserError(
            f"no scene of {len(walks)} has two frames, {self.shortest} to {self.longest} apart, "
            f"that share {self.low:.0%} to {self.high:.0%} of what they see",
            "longer scenes, or another range",
            "choose another protocol",
        )

    def say(self) -> str:
        return (
            f"2 frames that share {self.low:.0%} to {self.high:.0%}, {self.shortest} to "
            f"{self.longest} apart; {self.targets} drawn between them"
        )

    def _choose(self, key: str, cameras: Cameras) -> Frames | None:
        count = cameras.c2w.shape[1]
        generator = make_generator(self.seed, "overlapping", key)
        for first in torch.randperm(count, generator=generator).tolist():
            partners = self._partners(first, count, cameras)
            if not partners:
                continue
            drawn = int(torch.randint(len(partners), (), generator=generator))
            left, right = sorted((first, partners[drawn]))
            between = torch.randperm(right - left + 1, generator=generator)[: self.targets]
            return Frames((left, right), tuple(sorted((left + between).tolist())))
        return None

    def _partners(self, first: int, count: int, cameras: Cameras) -> list[int]:
        """Frames that go with a first one, on either side."""
        reach = [first]
        for step in (1, -1):
            reach += range(first + step * self.shortest, first + step * (self.longest + 1), step)
        reach = [first, *(i for i in reach[1:] if 0 <= i < count)]
        shares = dict(zip(reach, overlaps_of(cameras.at(reach), 0).tolist(), strict=True))
        partners = []
        for step in (1, -1):
            for frame in (i for i in reach[1:] if (i - first) * step > 0):
                if shares[frame] < self.low:
                    break
                if shares[frame] <= self.high:
                    partners.append(frame)
        return partners


def _lengths(walks: Walks) -> dict[str, int]:
    return {key: cameras.c2w.shape[1] for key, cameras in walks.items()}


def _list(frames: tuple[int, ...]) -> str:
    return ", ".join(map(str, frames))
