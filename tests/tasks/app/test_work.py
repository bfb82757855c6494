"""Work beside the page: its progress, its end, and that nothing of it stays."""

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import ZipFile

import pytest

from pmsplat.errors import UserError
from pmsplat.io.cameras.survey import LeftOut
from pmsplat.io.gaussians import load_gaussians
from pmsplat.scene import open_scene
from pmsplat.tasks.app import Limits, _job
from pmsplat.tasks.app._fragments import describe_error
from pmsplat.tasks.app._job import Job, Stopped
from pmsplat.tasks.app._results import rephrase
from pmsplat.tasks.app._room import Request, Room, choose_size
from pmsplat.tasks.app._sessions import Sessions
from pmsplat.tasks.app._understanding import advise, describe_understanding, understand
from pmsplat.zoo.shipped import DEFAULT

PATIENCE = 60  # seconds


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadPoolExecutor]:
    monkeypatch.setattr(_job, "PACE", 0.01)
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield pool


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Sessions]:
    """Sessions that end 10 seconds after a visit; the clock stands at `clock[0]`."""
    found = Sessions(tmp_path / "root", 10.0, lambda: clock[0])
    clock[0] = 0.0
    yield found
    found.close_all()


clock = [0.0]


def finish(job: Job) -> None:
    """Waits for its end."""
    for _ in job.watch():
        pass


def test_work_says_how_far_it_is(pool: ThreadPoolExecutor) -> None:
    def work(job: Job[int]) -> int:
        job.tell("begun")
        total = sum(job.track([1, 2, 3], "adding", 3))
        logging.getLogger("pmsplat.scene").warning("one is %s", "missing")
        warnings.warn("not of this package", stacklevel=1)
        job.publish("<b>three</b>")
        return total

    job = Job(pool, work)
    *_, last = job.watch()
    assert job.result() == 6 and not job.is_running
    assert (last.step, last.done, last.total) == ("adding", 3, 3)
    assert last.said == ("begun", "one is missing") and last.shown == "<b>three</b>"


def test_work_stops_between_steps(pool: ThreadPoolExecutor) -> None:
    reached, go, steps = threading.Event(), threading.Event(), []

    def work(job: Job[None]) -> None:
        for step in job.track(range(5), "counting", 5):
            steps.append(step)
            reached.set()
            go.wait(PATIENCE)

    job, waiting = Job(pool, work), Job(pool, work)
    assert reached.wait(PATIENCE)
    waiting.stop()
    job.stop()
    go.set()
    for stopped in (job, waiting):
        with pytest.raises(Stopped):
            finish(stopped)
            stopped.result()
    assert steps == [0]  # of the first alone


def test_a_visitor_leaves_nothing(sessions: Sessions, tmp_path: Path) -> None:
    uploads = [sessions.root / name / "a.png" for name in ("x", "y", "z")]
    outside = tmp_path / "mine.png"
    for path in (*uploads, outside):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    sessions.register("one", [*uploads[:2], outside])
    sessions.register("two", uploads[1:])
    first = sessions.start_run("one")
    (first / "result.ply").touch()
    assert sessions.start_run("one") != first and not first.exists()
    sessions.register("one", uploads[1:2])  # other files instead
    assert not uploads[0].parent.exists() and outside.exists()
    sessions.close("one")
    assert uploads[1].exists()  # of another visitor too
    assert not any("session" in path.name for path in sessions.root.iterdir())
    sessions.close("two")
    assert not [*sessions.root.iterdir()]


def test_visitors_who_stay_away_are_forgotten(sessions: Sessions, pool: ThreadPoolExecutor) -> None:
    away, busy = sessions.start_run("away"), sessions.start_run("busy")
    go = threading.Event()
    sessions.visit("busy").job = job = Job(pool, lambda _: go.wait(PATIENCE))
    clock[0] = 11.0
    sessions.sweep()
    assert not away.exists() and busy.exists()  # work is a visit
    sessions.close("busy")
    assert busy.exists()  # until its last step has ended
    go.set()
    finish(job)
    assert not busy.exists()


def test_uploads_that_were_broken_off_are_deleted(sessions: Sessions) -> None:
    files = [sessions.root / name / "a.png" for name in ("left", "held", "new")]
    for path in files:
        path.parent.mkdir(parents=True)
        path.touch()
    sessions.register("one", files[1:2])
    for path in files[:2]:
        os.utime(path.parent, (0, 0))
    sessions.sweep()
    assert [path.exists() for path in files] == [False, True, True]


@pytest.mark.parametrize(
    ("remedy", "said"),
    [
        ("use `size=256x256`", "Choose another size in the options"),
        ("take photos closer together, or try `views=6`", "see 6 photos: see the options"),
        ("take photos closer together, or leave `context` out", "Take photos closer together"),
        (
            "take photos closer together, or name views that are closer with `context`",
            "Take photos closer together",
        ),
    ],
)
def test_remedies_are_of_the_page(remedy: str, said: str) -> None:
    assert rephrase(remedy).endswith(said) and "`" not in rephrase(remedy)


def test_a_request_becomes_a_scene(
    room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_job, "PACE", 0.01)
    place = Room(tmp_path / "root", DEFAULT, "cpu", Limits())
    scene = open_scene(room)
    job = place.start("a", Request(example=lambda: scene, views=2, longest=64))
    steps = [state.step for state in job.watch()]
    results = job.result()
    assert {"rendering the video", "Preparing what you see and download"} & set(steps)
    folder = results.video.parent
    names = [path.name for path in results.files]
    assert names == [
        "gaussians.ply", "gaussians.spz", "scene.html", "video.mp4", "sheet.png", "everything.zip",
    ]  # fmt: skip
    assert all(path.stat().st_size for path in results.files)
    count = load_gaussians(folder / "gaussians.ply").means.shape[1]
    assert load_gaussians(folder / "gaussians.spz").means.shape[1] == count == 2 * 48 * 64
    inside = ZipFile(folder / "everything.zip").namelist()
    assert "pmsplat-scene/cameras.json" in inside and "pmsplat-scene/everything.zip" not in inside
    assert results.viewer.count("<iframe") == 1 and 'sandbox="allow-scripts"' in results.viewer
    assert results.depth.count("<img") == 4
    assert results.compared is not None and " dB" in results.compared
    place.close()
    assert not folder.exists()


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    place = Room(tmp_path / "root", DEFAULT, "cpu", Limits())
    files = (tmp_path / "a.png", tmp_path / "b.png")
    for file in files:
        file.write_bytes(b"no photo")
    job = place.start("a", Request(files))
    finish(job)
    with pytest.raises(UserError, match="your files") as caught:
        job.result()
    assert str(tmp_path) not in str(caught.value)
    session = place.sessions.visit("a").folder
    assert not [*session.iterdir()]
    place.close()


def test_photos_are_described(model_folder: Path) -> None:
    scene = open_scene(model_folder)
    found = understand(scene, [0, 3])
    assert all(0 <= share <= 1 for share in found.nearest) and 0 < found.covered <= 1
    shown = describe_understanding(found)
    assert shown.count("<img") == len(scene) and shown.count("pm-seen") == 2
    assert "10 of 10 photos can be used" in shown and "file beside them" in shown


@pytest.mark.parametrize(
    "reason",
    [
        "it has hardly any detail: 12 points that can be matched",
        "no other photo shows the same",
        "it is one of 3 photos that fit each other, but not the rest",
        "it shares too little with the other photos",
    ],
)
def test_there_is_advice_for_what_was_left_out(reason: str) -> None:
    assert advise(LeftOut("a.jpg", reason).reason)


def test_errors_are_sentences_and_data() -> None:
    shown = describe_error(UserError("`size=3` of <b>", "larger ones", "choose another `size`"))
    assert "Size=3 of &lt;b&gt;." in shown and "Choose another size." in shown


def test_pictures_have_the_shape_of_photos() -> None:
    assert choose_size((3024, 4032), 256) == (192, 256)
    assert choose_size((4032, 3024), 512) == (512, 384)
    assert choose_size((100, 120), 256) == (96, 128)
    assert choose_size((20, 4000), 256) == (16, 256)
