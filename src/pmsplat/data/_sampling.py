"""Which frames of a scene are looked at, and which are to be reproduced.

`Bounded` is the sampler of RealEstate10K training (pixelSplat, MVSplat, DepthSplat), `Spread` the
"boundedv2" of DepthSplat's DL3DV training. MVSplat's code overwrites its longest gap by the
shortest, so that its gap never varies (a fault inherited from pixelSplat); that is not reproduced.

Either may draw targets from outside the baseline too (`extrapolate`): for views from there Ren et
al., "TokenGS", CVPR 2026 (arXiv 2604.15239), fine-tune so, with no other supervision.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class Frames:
    """Frame numbers of one scene."""

    context: tuple[int, ...]
    target: tuple[int, ...]


class Sampler(Protocol):
    """Chooses frames of a scene from its camera centers; None where the scene is too short.

    `count_views` draws how many of them are context views, and a call takes that number, so that
    all scenes of a batch can have the same; None: the call draws its own.
    """

    def __call__(
        self,
        centers: Float[Tensor, "frame 3"],
        step: int,
        generator: torch.Generator,
        count: int | None = None,
    ) -> Frames | None: ...

    def count_views(self, generator: torch.Generator) -> int: ...


@dataclass(frozen=True)
class Gap:
    """The range of the distance, in frames, between the first and the last context view.

    `shortest` and `longest` are (at the start, after `warm_up` training steps), linear between.
    UserError where they are not 1 <= shortest <= longest all the way.
    """

    shortest: tuple[int, int]
    longest: tuple[int, int]
    warm_up: int = 0

    def __post_init__(self) -> None:
        for step in (0, self.warm_up):
            shortest, longest = self.at(step)
            if not 1 <= shortest <= longest:
                raise UserError(
                    f"gaps of {shortest} to {longest} frames between context views at step {step}",
                    "a shortest gap of 1 frame or more, and a longest one no shorter",
                    "set dataset.gap=[SHORTEST,LONGEST], or dataset.min_gap and dataset.max_gap",
                )

    def at(self, step: int) -> tuple[int, int]:
        """(shortest, longest), both inclusive, at a training step."""
        return self._interpolate(self.shortest, step), self._interpolate(self.longest, step)

    def _interpolate(self, ends: tuple[int, int], step: int) -> int:
        initial, final = ends
        if step >= self.warm_up:
            return final
        return initial + int((final - initial) * step / self.warm_up)


@dataclass(frozen=True)
class Bounded:
    """Two context views a random gap apart; targets between them, drawn with replacement.

    The context frames themselves may be targets, and so may the `extrapolate` frames before the
    first and after the last, as far as the scene goes.
    """

    gap: Gap
    targets: int
    extrapolate: int = 0

    def __post_init__(self) -> None:
        _check_targets(self.targets, self.extrapolate)

    def __call__(
        self,
        centers: Float[Tensor, "frame 3"],
        step: int,
        generator: torch.Generator,
        count: int | None = None,
    ) -> Frames | None:
        assert count in (None, 2)
        ends = _ends(len(centers), self.gap.at(step), generator)
        if ends is None:
            return None
        left, right = ends
        first, last = _reach(ends, self.extrapolate, len(centers))
        target = torch.randint(first, last + 1, (self.targets,), generator=generator)
        return Frames((left, right), tuple(target.tolist()))

    def count_views(self, generator: torch.Generator) -> int:
        return 2


@dataclass(frozen=True)
class Spread:
    """A random number of context views, spread over the camera path between two ends.

    The gap shrinks with fewer views (divided by most // views). Of more than two views all are
    chosen by farthest point sampling of the camera centers between the ends. Targets are drawn
    from there, and from the `extrapolate` frames before and after as far as the scene goes, without
    replacement; where there are too few frames some come again.
    """

    gap: Gap
    views: tuple[int, int]
    targets: int
    extrapolate: int = 0

    def __post_init__(self) -> None:
        fewest, most = self.views
        if not 2 <= fewest <= most:
            raise UserError(
                f"dataset.views=[{fewest},{most}]",
                "2 or more context views at the least, and no fewer at the most",
                "set dataset.views=[2,2] for two, always",
            )
        for step in (0, self.gap.warm_up):
            longest = self.gap.at(step)[1]
            if longest < most - 1:
                raise UserError(
                    f"{most} context views at most {longest} frames apart at step {step}",
                    f"{most - 1} frames or more",
                    "raise dataset.gap (or dataset.max_gap), or lower dataset.views",
                )
        _check_targets(self.targets, self.extrapolate)

    def __call__(
        self,
        centers: Float[Tensor, "frame 3"],
        step: int,
        generator: torch.Generator,
        count: int | None = None,
    ) -> Frames | None:
        fewest, most = self.views
        drawn = self.count_views(generator)  # in any case: what follows does not depend on it
        views = drawn if count is None else count
        shrink = max(most // views, 1) if fewest < most else 1
        shortest, longest = self.gap.at(step)
        ends = _ends(
            len(centers), (max(shortest // shrink, views - 1), longest // shrink), generator
        )
        if ends is None:
            return None
        left, right = ends
        context = [left, right]
        if views > 2:
            chosen = farthest_points(centers[left : right + 1], views)
            context = sorted(left + index for index in chosen)
        first, last = _reach(ends, self.extrapolate, len(centers))
        order = torch.randperm(last - first + 1, generator=generator).tolist()
        repeated = [first + order[i % len(order)] for i in range(self.targets)]
        return Frames(tuple(context), tuple(sorted(repeated)))

    def count_views(self, generator: torch.Generator) -> int:
        return _uniform(*self.views, generator)


def make_sampler(gap: Gap, views: tuple[int, int], targets: int, extrapolate: int) -> Sampler:
    """The sampler of RealEstate10K where there are always two context views, else that of DL3DV."""
    if views == (2, 2):
        return Bounded(gap, targets, extrapolate)
    return Spread(gap, views, targets, extrapolate)


def farthest_points(points: Float[Tensor, "point 3"], count: int) -> list[int]:
    """`count` indices, each the point farthest from those before; the first from the barycenter."""
    distance = (points - points.mean(dim=0)).norm(dim=-1)
    chosen = [int(distance.argmax())]
    distance = torch.full_like(distance, torch.inf)
    while len(chosen) < count:
        distance = torch.minimum(distance, (points - points[chosen[-1]]).norm(dim=-1))
        distance[chosen[-1]] = -1  # never twice, even where cameras coincide
        chosen.append(int(distance.argmax()))
    return chosen


def _ends(count: int, gaps: tuple[int, int], generator: torch.Generator) -> tuple[int, int] | None:
    shortest, longest = gaps[0], min(gaps[1], count - 1)
    if longest < shortest:
        return None
    gap = _uniform(shortest, longest, generator)
    left = _uniform(0, count - gap - 1, generator)
    return left, left + gap


def _reach(ends: tuple[int, int], beyond: int, count: int) -> tuple[int, int]:
    """The first and the last frame that may be a target."""
    return max(ends[0] - beyond, 0), min(ends[1] + beyond, count - 1)


def _check_targets(targets: int, extrapolate: int) -> None:
    if targets < 1:
        raise UserError(
            f"dataset.target_views={targets}",
            "1 or more views to reproduce",
            "leave it at 1 where nothing is rendered",
        )
    if extrapolate < 0:
        raise UserError(
            f"dataset.extrapolate={extrapolate}",
            "0 or more frames beyond the context views",
            "leave it at 0 for targets between them",
        )


def _uniform(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))
