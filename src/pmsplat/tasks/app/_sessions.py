"""The folders of visitors: made at their first upload, gone when they leave or stay away."""

import itertools
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ._job import Job

SWEEP = 30.0  # seconds between two looks for visitors who stayed away


@dataclass
class Session:
    """What one visitor has here: a folder, uploaded files, perhaps work that goes on."""

    folder: Path
    uploads: set[Path] = field(default_factory=set)
    job: Job | None = None
    seen: float = 0.0
    runs: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))


class Sessions:
    """The sessions of one app in its folder `root`; `seconds` after the last visit they end.

    `now` is the clock. All methods may be called from any thread.
    """

    def __init__(
        self, root: Path, seconds: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.root, self.seconds, self._now = root, seconds, now
        self._open: dict[str, Session] = {}
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._sweeper = threading.Thread(target=self._run_sweeper, name="sweeper", daemon=True)
        self._sweeper.start()

    def visit(self, key: str) -> Session:
        """The session of a visitor, a new one where there is none."""
        with self._lock:
            if key not in self._open:
                self._open[key] = Session(self.root / f"session-{secrets.token_urlsafe(16)}")
            session = self._open[key]
            session.seen = self._now()
            return session

    def register(self, key: str, files: Iterable[Path]) -> None:
        """Notes uploaded files; those of before that are not among them are deleted."""
        with self._lock:
            session = self.visit(key)
            before, session.uploads = session.uploads, set(files)
            self._delete_files(before - session.uploads)

    def start_run(self, key: str) -> Path:
        """A new folder for one piece of work; those of earlier ones of the visitor are deleted."""
        with self._lock:
            session = self.visit(key)
            shutil.rmtree(session.folder, ignore_errors=True)
            folder = session.folder / f"{next(session.runs)}-{secrets.token_urlsafe(8)}"
            folder.mkdir(parents=True)
            return folder

    def close(self, key: str) -> None:
        """Ends a session: stops its work, deletes its folder and its uploads."""
        with self._lock:
            session = self._open.pop(key, None)
            if session is None:
                return
            self._delete_files(session.uploads)
        if session.job is None:
            shutil.rmtree(session.folder, ignore_errors=True)
        else:
            session.job.stop()
            session.job.when_done(lambda: shutil.rmtree(session.folder, ignore_errors=True))

    def sweep(self) -> None:
        """Ends the sessions of visitors who stayed away; work that goes on is a visit."""
        with self._lock:
            for session in self._open.values():
                if session.job is not None and session.job.is_running:
                    session.seen = self._now()
            limit = self._now() - self.seconds
            late = [key for key, session in self._open.items() if session.seen < limit]
        for key in late:
            self.close(key)
        self._delete_strays()

    def close_all(self) -> None:
        """Ends all sessions, and the looking for late ones."""
        self._closing.set()
        self._sweeper.join()
        for key in list(self._open):
            self.close(key)

    def _delete_files(self, files: Iterable[Path]) -> None:
        """Deletes uploads inside of `root` that no other session has, with their folders."""
        held = {path for session in self._open.values() for path in session.uploads}
        for path in set(files) - held:
            if path.is_relative_to(self.root):
                path.unlink(missing_ok=True)
                with suppress(OSError):  # another file is in it, or it is gone
                    path.parent.rmdir()

    def _delete_strays(self) -> None:
        """Deletes what is old in `root` and belongs to nobody: uploads that were broken off."""
        with self._lock:
            held = {path for session in self._open.values() for path in session.uploads}
            kept = {path.parent for path in held} | {s.folder for s in self._open.values()}
        limit = time.time() - self.seconds
        for path in self.root.iterdir() if self.root.is_dir() else ():
            if path not in kept | held and path.stat().st_mtime < limit:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _run_sweeper(self) -> None:
        while not self._closing.wait(SWEEP):
            self.sweep()
