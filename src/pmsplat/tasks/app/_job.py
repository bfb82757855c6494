"""Work in a thread of its own that says how far it is, and that stops between its steps."""

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from ...shipped_files import PACKAGE

T = TypeVar("T")

PACE = 0.25  # seconds between two looks


class Stopped(Exception):
    """Somebody stopped the work."""


@dataclass(frozen=True)
class State:
    """How far work is: `done` of `total` in `step` (0 of 0: not known), and what was said so far.

    `shown` is what it published for the page, if anything.
    """

    step: str = ""
    done: int = 0
    total: int = 0
    said: tuple[str, ...] = ()
    shown: str = ""


class Job(Generic[T]):
    """One piece of work; `work` gets the job, and calls its `tell`, `track` and `publish`.

    Warnings of this package count as said. `tell` and `track` raise Stopped after `stop`.
    """

    def __init__(self, pool: ThreadPoolExecutor, work: Callable[["Job[T]"], T]) -> None:
        self._state, self._changed = State(), threading.Condition()
        self._stopping = threading.Event()
        self._future: Future[T] = pool.submit(self._run, work)
        self._future.add_done_callback(lambda _: self._wake())

    def tell(self, text: str) -> None:
        """A sentence for the visitor."""
        self._check()
        self._note(text)

    def track(self, sequence: Iterable[Any], description: str, total: int) -> Iterator[Any]:
        """A `progress.Track`."""
        self._set(step=description, done=0, total=total)
        for done, item in enumerate(sequence, start=1):
            self._check()
            yield item
            self._set(step=description, done=min(done, total), total=total)
        self._check()

    def begin(self, step: str) -> None:
        """A step of which nobody knows how long it takes."""
        self._check()
        self._set(step=step, done=0, total=0)

    def publish(self, shown: str) -> None:
        """Something for the page, before the work is done."""
        self._check()
        self._set(shown=shown)

    def stop(self) -> None:
        """Ends the work at its next step; at once where it has not begun."""
        self._stopping.set()
        self._future.cancel()
        self._wake()

    @property
    def is_running(self) -> bool:
        return not self._future.done()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def when_done(self, call: Callable[[], None]) -> None:
        """Calls it when the work has ended in whatever way, now if it has."""
        self._future.add_done_callback(lambda _: call())

    def watch(self) -> Iterator[State]:
        """The state now and after every change, no faster than PACE, until the work has ended."""
        seen: State | None = None
        while not self._future.done():
            if self._state is seen:
                with self._changed:
                    self._changed.wait(timeout=10 * PACE)
            if (now := self._state) is not seen:
                yield now
                seen = now
            time.sleep(PACE)
        yield self._state

    def result(self) -> T:
        """What the work returned; raises what it raised, and Stopped where it was stopped."""
        if self._future.cancelled():
            raise Stopped
        return self._future.result()

    def _run(self, work: Callable[["Job[T]"], T]) -> T:
        with _listening(self._note):
            return work(self)

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Stopped

    def _note(self, text: str) -> None:
        self._set(said=(*self._state.said, text))

    def _set(self, **changes: Any) -> None:
        with self._changed:
            self._state = replace(self._state, **changes)
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class _Listener(logging.Handler):
    """Passes on what is logged in the thread that made it."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.note, self.thread = note, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            self.note(record.getMessage())


@contextmanager
def _listening(note: Callable[[str], None]) -> Iterator[None]:
    """Inside, warnings of this package are noted, logged ones and those of `warnings`."""
    listener, logger = _Listener(note), logging.getLogger(PACKAGE.name)
    logger.addHandler(listener)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for warning in caught:
            if Path(warning.filename).is_relative_to(PACKAGE):
                note(str(warning.message))
    finally:
        logger.removeHandler(listener)
