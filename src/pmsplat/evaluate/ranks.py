"""The processes that share an evaluation, as torchrun starts them: what one knows, all learn."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from torch import distributed

from ..data import rank_of_ranks

T = TypeVar("T")

PATIENCE = timedelta(days=2)  # that the first to be done waits for the others


@dataclass(frozen=True)
class Ranks:
    """This process, the `rank`-th of `count`."""

    rank: int = 0
    count: int = 1
    group: distributed.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The value of every process, in order; all of them must call it."""
        if self.count == 1:
            return [value]
        values = [value] * self.count
        distributed.all_gather_object(values, value, group=self.group)
        return values


@contextmanager
def open_ranks() -> Iterator[Ranks]:
    """The processes that torchrun started, able to speak with each other, or this one alone.

    They exchange a few numbers for each scene over gloo, on any device. UserError where the
    variables of torchrun are invalid.
    """
    rank, count = rank_of_ranks()
    if count == 1:
        yield Ranks()
        return
    started = not distributed.is_initialized()
    if started:
        distributed.init_process_group("gloo", timeout=PATIENCE)
    group = None if started else distributed.new_group(timeout=PATIENCE, backend="gloo")
    try:
        yield Ranks(rank, count, group)
    finally:
        distributed.destroy_process_group(group)
