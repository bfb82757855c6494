"""One visitor's request after another, by the same functions as `pmsplat predict`."""

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError
from ...io.files import named
from ...scene import Scene, open_scene
from ...scene.overlap import overlaps
from ...zoo.trained import trained_on
from .. import predict as prediction
from ..options import SHORTEST, pick_device
from ._intake import check_inside, take_in
from ._job import Job
from ._limits import Limits
from ._results import Results, collect
from ._sessions import Sessions
from ._understanding import describe_understanding, understand

UPLOAD = "your files"  # how messages call the folder of an upload
GRID = 16  # sides of pictures are multiples of it
MOST_WAITING = 20


@dataclass(frozen=True)
class Request:
    """What a visitor wants: a scene of uploaded files, or `example`, which opens one.

    `views` are shown to the network; `longest` is the longer side of pictures.
    """

    files: tuple[Path, ...] = ()
    example: Callable[[], Scene] | None = None
    views: int = 4
    longest: int = 256


class Room:
    """The work of one app, one request at a time; `root` is the folder of all its sessions."""

    def __init__(self, root: Path, model: str, device: str, limits: Limits) -> None:
        self.model, self.device, self.limits = model, device, limits
        self.sessions = Sessions(root, 60.0 * limits.minutes)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="work")
        self._jobs: list[Job[Results]] = []
        self._lock = threading.Lock()

    def start(self, key: str, request: Request) -> Job[Results]:
        """Begins a visitor's work, or lets it wait; an earlier one of the same visitor is stopped.

        Raises UserError where too many are waiting.
        """
        with self._lock:
            self._jobs = [job for job in self._jobs if job.is_running]
            if len(self._jobs) > MOST_WAITING:
                raise UserError(
                    f"{len(self._jobs)} others are waiting", "fewer", "come back in a few minutes"
                )
            session = self.sessions.visit(key)
            if session.job is not None:
                session.job.stop()
            job = Job(self._pool, lambda job: self._work(job, key, request))
            session.job = job
            self._jobs.append(job)
            return job

    def count_before(self, job: Job[Results]) -> int:
        """How many requests come before that of a job."""
        with self._lock:
            before = self._jobs[: self._jobs.index(job)] if job in self._jobs else []
            return sum(other.is_running for other in before)

    def close(self) -> None:
        """Stops all work and deletes all folders; returns when the last step has ended."""
        self.sessions.close_all()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _work(self, job: Job[Results], key: str, request: Request) -> Results:
        folder = self.sessions.start_run(key)
        try:
            return self._reconstruct(job, folder, request)
        except BaseException:  # stopped, or not possible: nothing of it stays
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _reconstruct(self, job: Job[Results], folder: Path, request: Request) -> Results:
        job.begin("Reading your files")
        upload = folder / "upload"

        def tell(text: str) -> None:
            job.tell(text.replace(str(upload), UPLOAD))

        with named(upload, Path(UPLOAD)):
            scene = request.example() if request.example else self._open(job, upload, request, tell)
            size = choose_size(scene.size, request.longest)
            options = prediction.Options(
                views=min(request.views, len(scene)), size=size, device=self.device
            )
            learned = trained_on(self.model)
            context = prediction.choose_views(scene, overlaps(scene.cameras), options, learned)
            job.publish(describe_understanding(understand(scene, context)))
            job.begin("Predicting depth and Gaussians")
            result = folder / "result"
            summary = prediction.predict(
                scene, self.model, result, options, tell=tell, track=job.track
            )
            job.begin("Preparing what you see and download")
            return collect(result, scene, summary)

    def _open(
        self, job: Job[Results], upload: Path, request: Request, tell: Callable[[str], None]
    ) -> Scene:
        source = take_in(request.files, upload, self.limits, tell)
        device = pick_device(self.device)
        cache = upload.parent / "posed"
        scene = open_scene(source, cache=cache, tell=tell, device=device, track=job.track)
        check_inside(scene, upload.parent)
        return scene


def choose_size(photo: tuple[int, int], longest: int) -> tuple[int, int]:
    """(height, width) of nearly the shape of a photo, the longer side `longest` at most."""
    factor = min(1.0, longest / max(photo))
    height, width = (max(SHORTEST, round(side * factor / GRID) * GRID) for side in photo)
    return height, width
