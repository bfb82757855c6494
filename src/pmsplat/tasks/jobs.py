"""The same work on many things, in processes of their own."""

import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch

from ..errors import UserError

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2  # things that are given to each process before their results are taken
_PACKAGE = __name__.partition(".")[0]


def count_jobs(jobs: int | None) -> int:
    """The number of processes: as many as there are processors, if None; UserError below one."""
    if jobs is None:
        return (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
    if jobs < 1:
        raise UserError(f"`jobs={jobs}`", "1 or more", "leave it out to use every processor")
    return jobs


def run_jobs(work: Callable[[T], R], things: Sequence[T], jobs: int) -> Iterator[R]:
    """The results of `work` on all things, in their order; `jobs` processes share them.

    `work` and the results are pickled; of one process, or one thing, all is done in this one. The
    processes end with this one, however it ends. Raises what `work` raises, and UserError where a
    process dies, as for want of memory.
    """
    jobs = min(jobs, len(things))
    if jobs < 2:
        yield from map(work, things)
        return
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_begin)
    rest = iter(things)
    waiting: deque[tuple[T, Future[bytes]]] = deque()
    try:
        while True:
            for thing in islice(rest, _AHEAD * jobs - len(waiting)):
                waiting.append((thing, pool.submit(_run, work, thing)))
            if not waiting:
                break
            thing, future = waiting.popleft()
            try:
                yield pickle.loads(future.result())
            except BrokenProcessPool as error:
                raise UserError(
                    f"a process ended while it worked on {thing} or one of the next",
                    "memory for all processes",
                    "use fewer `jobs`; what was done is kept",
                ) from error
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _run(work: Callable[[T], R], thing: T) -> bytes:
    """The result as plain bytes: tensors would be shared between processes as open files."""
    return pickle.dumps(work(thing))


def _begin() -> None:
    """Of a process: one thread, no message at Ctrl-C, an end when its parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Inside, warnings of the package are gathered in the list instead of being shown."""
    logger, found = logging.getLogger(_PACKAGE), []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler, before = Collector(logging.WARNING), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
