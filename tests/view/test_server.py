"""The page without a browser: what its controls do, and where it can be reached."""

import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.geometry import camera, gaussian, se3
from pmsplat.io.images import to_uint8
from pmsplat.io.video import read_frames
from pmsplat.render import rasterize
from pmsplat.types import Cameras
from pmsplat.view import figures
from pmsplat.view.address import check_address
from pmsplat.view.server import SPLATS, Page, Setting
from pmsplat.view.stage import ALPHA, COLOR, CONFIDENCE, DEPTH, Exhibit, Stage

from .blocks import SIZE, blocks, lookers, rated

pytest.importorskip("viser", reason="the page needs viser: pip install 'pmsplat[view]'")

UP = torch.tensor([0.0, -1, 0])


def serve(folder: Path, *names: str, port: int = 0) -> Page:
    exhibits = [
        Exhibit(name, rated(blocks()), lookers(), ("a", "b", "c"), (SIZE,) * 3, (None,) * 3)
        for name in names
    ]
    setting = Setting(lookers().at([0]), UP, folder / "view.mp4", SIZE, port=port)
    return Page(Stage(exhibits, backend="cpu"), setting)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    served = serve(tmp_path, "first", "second")
    yield served
    served.close()


def visitor(index: int = 0, page: Page | None = None, fov: float = 1.0) -> Any:
    """What the page sees of a browser that stands in a camera; `sent` holds its backgrounds."""
    c2w, unit = lookers().c2w[0, index], 1.0 if page is None else page.stage.unit
    sent: list[np.ndarray | None] = []
    view = SimpleNamespace(
        wxyz=gaussian.rotation_to_quat(c2w[:3, :3]).numpy(),
        position=c2w[:3, 3].numpy() / unit,
        fov=fov,
        aspect=SIZE[1] / SIZE[0],
        image_height=SIZE[0],
        image_width=SIZE[1],
    )
    scene = SimpleNamespace(set_background_image=lambda image, **_: sent.append(image))
    return SimpleNamespace(camera=view, scene=scene, sent=sent, atomic=threading.Lock)


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize("kind", [COLOR, DEPTH, ALPHA, CONFIDENCE])
def test_a_browser_gets_what_rasterize_draws_for_its_camera(
    page: Page, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_is_connected", lambda client: True)
    page.rooms[1].visible.value = False
    fov = 2 * math.atan(0.5 / 1.2)  # that of the cameras
    client = visitor(1, page, fov)
    page.kind.value = kind
    page._send(client, SIZE, kind)
    cameras = lookers().at([1])
    sure = rated(blocks()).confidence
    assert sure is not None
    drawn = rasterize(blocks(), cameras, SIZE, "cpu", attributes=sure[..., None])
    assert drawn.attributes is not None
    mean = drawn.attributes[0, 0, 0] / drawn.alpha[0, 0]
    surface = torch.where(drawn.alpha >= 0.5, drawn.depth, 0)[0, 0]
    near, far = figures.color_range(surface)
    wanted = {
        COLOR: drawn.color[0, 0],
        DEPTH: figures.colorize_depth(surface, near, far),
        ALPHA: drawn.alpha[0, 0].expand(3, -1, -1),
        CONFIDENCE: figures.colorize_confidence(torch.where(surface > 0, mean, torch.nan)),
    }[kind]
    (image,) = client.sent
    assert image.std() > 20
    assert np.abs(image.astype(int) - to_uint8(wanted)).mean() < 0.05
    legend = page.legend.content
    said = {
        DEPTH: f"Depth from {near:.3g} (yellow) to {far:.3g} (violet).",
        CONFIDENCE: "Confidence from 0 (violet) to 1 (yellow).",
    }
    assert legend == said.get(kind, "")
    assert page.kind.options == (SPLATS, COLOR, DEPTH, ALPHA, CONFIDENCE)


def test_a_browser_that_left_while_it_was_drawn_for_gets_nothing(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = visitor(1, page, 1.0)
    monkeypatch.setattr(page, "_is_connected", lambda client: False)
    page.kind.value = COLOR
    page._send(client, SIZE, COLOR)
    assert client.sent == []


def test_what_the_browser_draws_is_shown_and_hidden(page: Page) -> None:
    first, second = page.rooms
    assert page.kind.value == SPLATS and first.splats.visible and second.splats.visible
    second.visible.value = False
    assert first.splats.visible and not second.splats.visible and not second.group.visible
    assert page.stage.visible == [True, False]
    page.kind.value = DEPTH
    assert not first.splats.visible and first.group.visible
    page.frusta.value = False
    assert not first.group.visible
    page.kind.value = SPLATS
    assert first.splats.visible and not second.splats.visible
    assert not first.handle.visible
    first.drag.value = True
    assert first.handle.visible


def test_scenes_are_laid_beside_each_other_and_turned(page: Page) -> None:
    page.apart.value = 1.0
    step = page.stage.poses[1][:3, 3]
    assert torch.equal(page.stage.poses[0], torch.eye(4))
    assert step[0] > 10 and step[1:].abs().max() < 1e-5  # to the right, more than it is wide
    np.testing.assert_allclose(page.rooms[1].frame.position, step, atol=1e-5)

    handle, middle = page.rooms[1].handle, page.stage.middles[1]
    handle.position = middle.double().numpy()
    handle.wxyz = (0.0, 1.0, 0.0, 0.0)  # half a turn about x, around its middle
    page.rooms[1]._follow_handle()
    turned = se3.transform(page.stage.poses[1], middle[None])
    torch.testing.assert_close(turned[0], middle)
    torch.testing.assert_close(page.stage.poses[1][:3, :3], torch.diag(torch.tensor([1.0, -1, -1])))


def test_a_click_looks_through_a_camera_where_its_scene_stands(page: Page) -> None:
    page.rooms[1].move(torch.tensor([2.0, 0, 0]))
    client = visitor()
    page.look_through(client, 1, 1)
    wanted = lookers().c2w[0, 1, :3, 3] / page.stage.unit + torch.tensor([2.0, 0, 0])
    np.testing.assert_allclose(client.camera.position, wanted, atol=1e-5)
    np.testing.assert_allclose(client.camera.wxyz, [1, 0, 0, 0], atol=1e-6)
    assert client.camera.look_at[2] > client.camera.position[2]
    assert math.degrees(client.camera.fov) == pytest.approx(2 * math.degrees(math.atan(0.5 / 1.2)))
    client.camera.aspect = 0.5  # a narrow window shows all of the picture's width
    page.look_through(client, 1, 1)
    across = 2 * math.atan(0.5 * math.tan(client.camera.fov / 2))
    assert across == pytest.approx(camera.field_of_view(lookers().K[0, 1])[0].item())


def test_cameras_without_a_photo_show_what_they_see(page: Page) -> None:
    page.request_redraw()
    wait_for(lambda: not any(room.missing for room in page.rooms))
    wait_for(lambda: all(frustum.image is not None for frustum in page.rooms[1].frusta))
    wanted = rasterize(blocks(), lookers().at([2]), (96, 128), "cpu").color[0, 0]
    np.testing.assert_array_equal(page.rooms[0].frusta[2].image, to_uint8(wanted))


def test_a_camera_does_not_cover_the_view_of_who_stands_in_it(page: Page) -> None:
    room = page.rooms[0]
    room.hide_cameras_near([visitor(1, page).camera.position])
    assert [frustum.visible for frustum in room.frusta] == [True, False, True]
    room.hide_cameras_near([visitor(2, page).camera.position])
    assert [frustum.visible for frustum in room.frusta] == [True, True, False]


def test_a_recording_is_a_video_of_the_way_through_its_key_frames(
    page: Page, tmp_path: Path
) -> None:
    recorder = page.recorder
    recorder.record(SPLATS)
    assert "two key frames" in recorder.status.content and not list(tmp_path.iterdir())
    recorder.seconds.value = 0.3
    fov = 2 * math.atan(0.5 / 1.2)
    for i in range(3):
        recorder.add(page.get_camera(visitor(i, page, fov), SIZE))
    recorder.record(SPLATS)
    path = tmp_path / "view.mp4"
    assert recorder.status.content == f"Saved {path}." and recorder.save.visible
    frames = read_frames(path)
    assert len(frames) == 9
    for frame, i in ((frames[0], 0), (frames[-1], 2)):
        wanted = to_uint8(rasterize(join_twice(), lookers().at([i]), SIZE, "cpu").color[0, 0])
        assert np.abs(frame.astype(int) - wanted).mean() < 4
    recorder.record(ALPHA)
    assert recorder.status.content.endswith("view-2.mp4.")
    grey = read_frames(tmp_path / "view-2.mp4")[0].astype(int)
    assert np.abs(grey[..., 0] - grey[..., 2]).mean() < 2
    recorder.remove_keys()
    assert not recorder.keys


def join_twice() -> Any:
    """Both scenes of the page, which stand in the same place."""
    return blocks().map(lambda tensor: torch.cat([tensor, tensor], dim=1))


def test_a_recording_can_be_stopped_and_a_bad_path_is_shown(page: Page, tmp_path: Path) -> None:
    recorder = page.recorder
    for i in range(2):
        recorder.add(page.get_camera(visitor(i, page), SIZE))
    recorder.seconds.value = 600
    thread = threading.Thread(target=recorder.record, args=(COLOR,))
    thread.start()
    wait_for(lambda: recorder.status.content.startswith("Frame 3"))
    assert recorder.progress.visible and recorder.cancel.visible and not recorder.save.visible
    recorder.stop()
    thread.join(20)
    assert not thread.is_alive() and not list(tmp_path.iterdir())
    assert recorder.status.content == "Stopped; nothing was saved." and recorder.save.visible
    (tmp_path / "file").write_text("")
    recorder._path = tmp_path / "file" / "view.mp4"
    recorder.record(COLOR)
    assert "could not be written" in recorder.status.content


def test_a_recording_that_is_stopped_before_its_first_frame_stops(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The button is there from the first moment, while the cameras are still joined."""
    recorder = page.recorder
    for i in range(2):
        recorder.add(page.get_camera(visitor(i, page), SIZE))
    recorder.seconds.value = 0.2
    join = Cameras.joined

    def stop_early(parts: Any) -> Cameras:
        recorder.stop()
        return join(parts)

    monkeypatch.setattr(Cameras, "joined", staticmethod(stop_early))
    recorder.record(COLOR)
    assert recorder.status.content == "Stopped; nothing was saved." and not list(tmp_path.iterdir())
    monkeypatch.undo()
    recorder.record(COLOR)  # the stop was for the recording before
    assert recorder.status.content.startswith("Saved")


def test_only_this_machine_can_reach_it(page: Page) -> None:
    port = page.server.get_port()
    assert page.address == f"http://127.0.0.1:{port}"
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    listening = [
        line.split()[1].split(":")[0]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
    ]
    assert listening == ["0100007F"]
    assert page.server.request_share_url() is None


def test_a_port_in_use_and_addresses_of_others_are_refused(tmp_path: Path, page: Page) -> None:
    port = page.server.get_port()
    with pytest.raises(UserError, match=f"port {port} is in use"):
        serve(tmp_path, "third", port=port)
    with pytest.raises(UserError, match="cannot be served"):
        check_address("192.0.2.1", 8080)
    with pytest.raises(UserError, match="cannot be served"):
        check_address("no.such.host.invalid", 8080)
    with pytest.raises(UserError, match="`port=65536`"):
        check_address("127.0.0.1", 65536)


def test_a_closed_page_gives_its_port_back(tmp_path: Path) -> None:
    first = serve(tmp_path, "first")
    port = first.server.get_port()
    first.close()
    again = serve(tmp_path, "first", port=port)
    assert again.server.get_port() == port
    again.close()


def test_without_viser_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(UserError, match=r'not installed.*pip install "pmsplat\[view\]"'):
        serve(tmp_path, "first")
