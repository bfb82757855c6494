"""Several datasets in one training: steps of one, then of another, in a fixed order.

`parts` are datasets with their settings, as `dataset` has them, and how many steps of a round each
gets; one of them, `evaluate`, says what is evaluated. A part sees its own steps only, so each goes
on where it stopped, whatever the others do.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from .. import registry
from ..contracts import Dataset, dataset_traits, require
from ..errors import UserError
from ..types import Batch
from ._order import rank_of_ranks, worker_of_workers
from ._skips import Skips

NAME, SHARE = "name", "share"


@dataclass
class Config:
    """`parts`: by any name, each with the `name` of its dataset, its `share` and its settings."""

    parts: dict[str, Any] = field(default_factory=dict)
    evaluate: str = ""
    """The part whose evaluation this is; "": the first."""

    def __post_init__(self) -> None:
        for part, settings in self.parts.items():
            share = settings.get(SHARE, 1)
            if type(share) is not int or share < 0 or NAME not in settings:
                raise UserError(
                    f"dataset.parts.{part} with {dict(settings)}",
                    "the `name` of a dataset, and as `share` a whole number of steps, 0 or more",
                    f"set dataset.parts.{part}.name=folder dataset.parts.{part}.share=1",
                )
        if self.evaluate and self.evaluate not in self.parts:
            raise UserError(
                f"dataset.evaluate={self.evaluate}",
                f"one of {', '.join(self.parts)}",
                registry.suggest(self.evaluate, list(self.parts)),
            )


class Mix:
    """The dataset; UserError where no part has a share, or they disagree on units."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.parts: dict[str, Dataset] = {}
        for part, settings in cfg.parts.items():
            own = {key: value for key, value in settings.items() if key not in (NAME, SHARE)}
            config = registry.make_config("data", settings[NAME], own)
            self.parts[part] = registry.build("data", settings[NAME], config)
        self.round = _order({part: cfg.parts[part].get(SHARE, 1) for part in cfg.parts})
        scaled = {dataset_traits(part).scale_near for part in self.parts.values()}
        if not self.round or len(scaled) != 1:
            raise UserError(
                f"dataset.parts={list(self.parts)}",
                "one with a share at least, and all with scenes in units of their own, or none",
                "set scale_near of each part alike",
            )
        self.scale_near = scaled.pop()

    @property
    def evaluated(self) -> Dataset:
        """The part that is evaluated."""
        return self.parts[self.cfg.evaluate or next(iter(self.parts))]

    @property
    def index(self) -> str | None:
        """The file of the evaluation index, where there is one."""
        return dataset_traits(self.evaluated).index

    @property
    def has_test(self) -> bool:
        """Whether the part that is evaluated has a test split."""
        return dataset_traits(self.evaluated).has_test

    def train(self, seed: int, step: Tensor, skip: int = 0, batch_size: int = 1) -> "MixedStream":
        """An endless stream; see `contracts.Dataset`."""
        together = batch_size * rank_of_ranks()[1]
        done = skip // together
        streams = {}
        for part in dict.fromkeys(self.round):
            before = count_turns(self.round, part, done) * together
            stream = self.parts[part].train(seed, step, before, batch_size)
            require(stream, "turns", f"the stream of dataset.parts.{part}", "a mix")
            streams[part] = stream
        return MixedStream(streams, self.round, done)

    def evaluation(self, limit: int | None = None) -> IterableDataset[Batch]:
        """That of the part `evaluate`."""
        return self.evaluated.evaluation(limit)


class MixedStream(IterableDataset[Batch]):
    """See `Mix.train`; `done` steps were taken before. What any part leaves out is in `skips`."""

    def __init__(self, streams: dict[str, Any], round_: list[str], done: int) -> None:
        self.streams, self.round, self.done = streams, round_, done
        self.skips = Skips()
        for stream in streams.values():
            stream.skips = self.skips

    def __iter__(self) -> Iterator[Batch]:
        worker, workers = worker_of_workers()
        read: dict[str, Callable[[int], Iterator[Batch]]] = {
            part: stream.turns() for part, stream in self.streams.items()
        }
        for turn in count(self.done + worker, workers):
            part = self.round[turn % len(self.round)]
            before = count_turns(self.round, part, turn) - count_turns(self.round, part, self.done)
            for batch in read[part](before):
                yield _with_depth(batch)


def _with_depth(batch: Batch) -> Batch:
    """The same with depth 0, which means none, where a part brings no depth: losses on depth count
    nothing there."""
    context = batch.context
    if context.depth is not None:
        return batch
    return replace(batch, context=replace(context, depth=torch.zeros_like(context.images[:, :, 0])))


def count_turns(round_: list[str], part: str, turns: int) -> int:
    """How many of the first `turns` are of a part."""
    rounds, rest = divmod(turns, len(round_))
    return rounds * round_.count(part) + round_[:rest].count(part)


def _order(shares: dict[str, int]) -> list[str]:
    """The parts of a round, each as often as its share, spread evenly."""
    places = [((k + 0.5) / share, part) for part, share in shares.items() for k in range(share)]
    return [part for _, part in sorted(places)]


build = Mix
