"""Which frames of a scene a teacher sees together, and examples moved onto them."""

from dataclasses import dataclass

from ..errors import UserError
from ..registry import check_settings, whole
from ._sampling import Frames


@dataclass
class Windows:
    """Which frames of a scene a teacher sees together: every `every`-th, at most `frames` of them.

    Of longer scenes the next window begins `hop` of those frames later, at most `frames`, so
    context views up to (`frames` - `hop`) · `every` frames apart always fit into one.
    """

    frames: int = 24
    every: int = 8
    hop: int = 7

    def __post_init__(self) -> None:
        check_settings(
            self, {"frames": whole(2), "every": whole(1), "hop": whole(1)}, "teacher.windows."
        )
        if self.hop > self.frames:
            raise UserError(
                f"teacher.windows.hop={self.hop} beyond teacher.windows.frames={self.frames}",
                "windows without gaps between them",
                "choose a hop of at most as many frames as a window has",
            )

    def of(self, count: int) -> list[tuple[int, ...]]:
        """The windows of a scene of `count` frames, in order.

        The last of them ends with the last `every`-th frame.
        """
        kept = tuple(range(0, count, self.every))
        if len(kept) <= self.frames:
            return [kept]
        last = len(kept) - self.frames
        starts = [*range(0, last, self.hop), last]
        return [kept[start : start + self.frames] for start in starts]

    def snap(self, frames: Frames, count: int) -> "Snapped | None":
        """The example moved onto the frames of the window that moves its context views least.

        Context views go to the nearest frames of the window, targets with them: their place
        between the outer context views, or beyond, stays. None where in every window two context
        views meet, or one has no frame less than `every` away: baselines keep their length.
        """
        found: tuple[int, int, tuple[int, ...]] | None = None
        for number, window in enumerate(self.of(count)):
            context = tuple(min(window, key=lambda w: (abs(w - f), w)) for f in frames.context)
            moves = [abs(a - b) for a, b in zip(context, frames.context, strict=True)]
            if len(set(context)) < len(context) or max(moves) >= self.every:
                continue
            if found is None or sum(moves) < found[0]:
                found = sum(moves), number, context
        if found is None:
            return None
        _, number, context = found
        old, new = (
            (min(views), max(views) - min(views) or 1) for views in (frames.context, context)
        )
        stretched = (new[0] + round((t - old[0]) * new[1] / old[1]) for t in frames.target)
        target = tuple(min(max(t, 0), count - 1) for t in stretched)
        return Snapped(Frames(context, target), number, count)


@dataclass(frozen=True)
class Snapped:
    """Frames whose context views lie in one window, its number, and the length of the scene."""

    frames: Frames
    window: int
    count: int
