"""The page in a real browser: real photographs go in, a scene that turns comes out."""

import gc
import io
import json
import socket
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pmsplat.errors import UserError
from pmsplat.tasks.app import Limits, Options, app
from tests.view.browser import FLAGS, launched

pytest.importorskip("gradio", reason="the app needs gradio: pip install 'pmsplat[app]'")

# gradio leaves event loops of its threads to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PATIENCE = 120_000  # milliseconds
SMALLER = 4  # times: sides of photos
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def served(said: list[str]) -> Iterator[Any]:
    page = app(Options(port=0, device="cpu", limits=Limits(photos=10)), said.append)
    yield page
    page.close()
    assert not page.root.exists()
    gc.collect()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched(*FLAGS) as browser:
        yield browser


@pytest.fixture
def tab(served: Any, browser: Any) -> Iterator[Any]:
    """The page on a phone; nothing may be asked of another machine, nor of a guest's."""
    page = browser.new_page(viewport=PHONE)
    asked: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(served.address)
    page.get_by_role("button", name="Make the scene").wait_for()
    yield page
    page.close()
    own = (served.address, "data:", "blob:", "about:")
    assert [url for url in asked if not url.startswith(own)] == []
    assert faults == []


@pytest.fixture(scope="module")
def office(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real photographs, small ones, with their cameras in a .zip."""
    folder = shared / "scenes" / "hololens_office"
    path = tmp_path_factory.mktemp("zip") / "office.zip"
    content = json.loads((folder / "transforms.json").read_text())
    frames = sorted(content["frames"], key=lambda frame: frame["file_path"])[0:12:2]
    content["frames"] = [{k: v for k, v in f.items() if "depth" not in k} for f in frames]
    content |= {name: content[name] / SMALLER for name in ("w", "h", "fl_x", "fl_y", "cx", "cy")}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("office/transforms.json", json.dumps(content))
        for frame in frames:
            with Image.open(folder / frame["file_path"]) as photo, io.BytesIO() as stream:
                photo.reduce(SMALLER).save(stream, "JPEG")
                archive.writestr(f"office/{frame['file_path']}", stream.getvalue())
    return path


def upload(tab: Any, *files: Path) -> None:
    tab.locator("#files input[type=file]").set_input_files([str(file) for file in files])


def folders(served: Any) -> list[Path]:
    return [path for path in served.root.glob("session-*") if any(path.rglob("*"))]


def test_it_serves_this_machine_alone(served: Any, said: list[str]) -> None:
    assert served.address.startswith("http://127.0.0.1:") and said == []
    port = int(served.address.rpartition(":")[2])
    with pytest.raises(UserError, match=f"port {port} is in use"):
        app(Options(port=port))
    others = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    for other in others - {"127.0.0.1", "::1"}:
        with pytest.raises(OSError), socket.create_connection((other, port), timeout=1):
            pass


def test_photos_become_a_scene_that_turns(served: Any, tab: Any, office: Path) -> None:
    upload(tab, office)
    tab.get_by_text("Ready: a .zip").wait_for()
    tab.get_by_role("button", name="Make the scene").click()
    tab.get_by_text("6 of 6 photos can be used").wait_for(timeout=PATIENCE)
    tab.get_by_text("Done. The scene is below.").wait_for(timeout=PATIENCE)
    assert tab.locator("#understood .pm-photos img").count() == 6
    # It turns, in a frame of its own
    frame = tab.frame_locator("#viewer iframe")
    frame.get_by_role("button", name="Turn the scene").click()
    frame.locator(".turn[data-drawn='0']").wait_for(timeout=PATIENCE)
    # Depth, what is compared, the video and the files are there
    assert tab.locator("#depth img").count() == 8
    assert tab.locator("#compared img").count() > 0
    tab.locator("#video video").wait_for()
    seconds = tab.evaluate("document.querySelector('#video video').duration")
    assert seconds is None or seconds > 1
    with tab.expect_download() as download:
        tab.locator("#kept a").first.click()
    assert Path(download.value.path()).read_bytes()[:3] == b"ply"
    # Nothing is wider than a phone
    wide = tab.evaluate("document.documentElement.scrollWidth")
    assert wide <= PHONE["width"]
    # Who leaves, leaves nothing
    assert folders(served)
    uploaded = [path for path in served.root.rglob("office.zip")]
    assert uploaded
    tab.goto("about:blank")
    for _ in range(100):
        if not folders(served) and not any(path.exists() for path in uploaded):
            break
        tab.wait_for_timeout(200)
    assert folders(served) == [] and not any(path.exists() for path in uploaded)


def test_what_cannot_be_used_is_said_at_once(tab: Any, office: Path, shared: Path) -> None:
    photos = shared / "scenes" / "hololens_office" / "images"
    upload(tab, photos / "0000.jpg")
    tab.get_by_text("1 photo. Wanted: two or more").wait_for()
    tab.get_by_role("button", name="Make the scene").click()
    tab.get_by_role("alert").get_by_text("Wanted: two or more").wait_for()
    tab.get_by_role("button", name="Make the scene").click(trial=True)  # waits until it can be


def test_work_can_be_stopped(served: Any, tab: Any) -> None:
    tab.get_by_role("button", name="A computed room").click()
    tab.get_by_role("button", name="Stop").click()
    tab.get_by_text("Stopped. Nothing of it was kept.").wait_for(timeout=PATIENCE)
    assert folders(served) == []


@pytest.mark.slow
def test_photos_without_cameras_are_posed(tab: Any, shared: Path) -> None:
    pytest.importorskip("pycolmap")
    photos = sorted((shared / "scenes" / "sceaux_photos").glob("*.jpg"))
    upload(tab, *photos[:6])
    tab.get_by_text("Ready: 6 photos").wait_for()
    tab.get_by_role("button", name="Make the scene").click()
    tab.get_by_text("found from points that several photos show").wait_for(timeout=PATIENCE)
    tab.get_by_text("Done. The scene is below.").wait_for(timeout=PATIENCE)


def test_other_machines_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    page = app(Options(host="0.0.0.0", port=0, device="cpu"), said.append)
    page.close()
    assert any("there is no password" in text for text in said)


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"extra `app`.*pmsplat\[app\]"):
        app()
