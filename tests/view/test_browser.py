"""The page in a real browser: what is seen on it, and what clicks do."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pmsplat.geometry.camera import project_world
from pmsplat.io.images import to_uint8
from pmsplat.render import rasterize
from pmsplat.types import Cameras
from pmsplat.view import figures
from pmsplat.view.server import SPLATS, Page, Setting
from pmsplat.view.stage import ALPHA, COLOR, CONFIDENCE, DEPTH, EXTENT, Exhibit, Stage

from .blocks import SIZE, blocks, lookers, rated
from .browser import WINDOW, choose, opened, screenshot

pytest.importorskip("viser", reason="the page needs viser: pip install 'pmsplat[view]'")

FREE = slice(0, 560)  # columns of the window that the panel of controls leaves free
PATIENCE = 20  # seconds


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, Any]]:
    """The page of the blocks, and a browser that looks at it."""
    folder = tmp_path_factory.mktemp("shown")
    exhibit = Exhibit(
        "blocks", rated(blocks()), lookers(), ("a", "b", "c"), (SIZE,) * 3, (None,) * 3
    )
    setting = Setting(
        lookers().at([0]), torch.tensor([0.0, -1, 0]), folder / "view.mp4", SIZE, port=0
    )
    page = Page(Stage([exhibit], backend="cpu"), setting)
    try:
        with opened(page.address) as tab:
            page.frusta.value = False
            yield page, tab
    finally:
        page.close()


def wanted(page: Page, cameras: Cameras, kind: str) -> np.ndarray:
    """What the window should show, drawn by rasterize."""
    size = (WINDOW[1], WINDOW[0])
    shown = page.stage.exhibits[0].gaussians
    assert shown.confidence is not None
    drawn = rasterize(shown, cameras, size, "cpu", attributes=shown.confidence[..., None])
    assert drawn.attributes is not None
    sure = drawn.attributes[0, 0, 0] / drawn.alpha[0, 0]
    surface = torch.where(drawn.alpha >= 0.5, drawn.depth, 0)[0, 0]
    pictures = {
        COLOR: drawn.color[0, 0],
        DEPTH: figures.colorize_depth(surface, *figures.color_range(surface)),
        ALPHA: drawn.alpha[0, 0].expand(3, -1, -1),
        CONFIDENCE: figures.colorize_confidence(torch.where(surface > 0, sure, torch.nan)),
    }
    return to_uint8(pictures[kind])[:, FREE]


def eventually(look: Callable[[], float], most: float) -> None:
    """Looks until a difference is small enough; fails with the last of them."""
    end = time.monotonic() + PATIENCE
    while (found := look()) > most:
        assert time.monotonic() < end, f"{found:.2f} is more than {most}"
        time.sleep(0.2)


def apart(tab: Any, picture: np.ndarray, floor: int = 0) -> float:
    """Mean difference of the window from a picture, where that is not darker than `floor`."""
    seen = screenshot(tab)[:, FREE].astype(int)
    inside = picture.max(axis=-1) >= floor
    return np.abs(seen - picture)[inside].mean()


def standing(page: Page) -> Cameras:
    """Where the browser's camera is."""
    (client,) = page.server.get_clients().values()
    return page.get_camera(client, (WINDOW[1], WINDOW[0]))


def start(page: Page) -> Cameras:
    """Camera a, as wide as the window is; the browser starts there."""
    K = torch.tensor([[1.2 * WINDOW[1] / WINDOW[0], 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]])
    return replace(lookers().at([0]), K=K[None, None]).scaled(1 / page.stage.unit)


def looking_from(c2w: torch.Tensor, camera: Cameras) -> Cameras:
    """The same lens elsewhere: a scene that moved looks as if the camera had, the other way."""
    return replace(camera, c2w=c2w[None, None])


def on_screen(camera: Cameras, point: torch.Tensor) -> tuple[float, float]:
    """(column, row) in the window of a point of the page's world."""
    x, y, _ = project_world(point[None], camera.c2w[0, 0], camera.K[0, 0])[0].tolist()
    return x * WINDOW[0], y * WINDOW[1]


def test_the_splats_are_the_right_way_up(shown: tuple[Page, Any]) -> None:
    page, tab = shown
    page.kind.value = SPLATS
    picture = wanted(page, start(page), COLOR)
    eventually(lambda: apart(tab, picture, floor=200), 12)
    seen = screenshot(tab)[:, FREE].astype(int)
    assert seen.std() > 20
    red, green, blue = (
        seen[..., i] - np.delete(seen, i, axis=2).max(axis=2) > 80 for i in range(3)
    )
    (red_y, red_x), (blue_y, blue_x) = (np.argwhere(one).mean(axis=0) for one in (red, blue))
    assert red.sum() > 500 and blue.sum() > red.sum()  # nearer
    assert red_y < WINDOW[1] / 2 < blue_y and abs(red_x - blue_x) < 100
    assert green.sum() > 200 and np.argwhere(green).mean(axis=0)[1] > red_x + 100


@pytest.mark.parametrize("kind", [DEPTH, CONFIDENCE, ALPHA, COLOR])
def test_the_list_changes_the_picture_to_what_rasterize_draws(
    shown: tuple[Page, Any], kind: str
) -> None:
    page, tab = shown
    before = screenshot(tab)[:, FREE].astype(int)
    choose(tab, "Show", kind)
    picture = wanted(page, start(page), kind)
    eventually(lambda: apart(tab, picture), 2.5)
    assert np.abs(picture.astype(int) - before).mean() > 2.5
    assert ("Depth from" in tab.content()) == (kind == DEPTH)
    assert ("Confidence from" in tab.content()) == (kind == CONFIDENCE)


def test_a_click_on_a_camera_looks_through_it(shown: tuple[Page, Any]) -> None:
    page, tab = shown
    choose(tab, "Show", ALPHA)
    choose(tab, "Go to", "b")
    there = lookers().c2w[0, 1].clone()
    there[:3, 3] /= page.stage.unit
    eventually(lambda: (standing(page).c2w[0, 0] - there).abs().max().item(), 1e-3)
    eventually(lambda: apart(tab, wanted(page, standing(page), ALPHA)), 2.5)

    page.frusta.value = True  # camera a, ahead and to the left, in the middle of its thumbnail
    here = standing(page)
    frustum = page.rooms[0].frusta[0]
    eye = torch.from_numpy(np.asarray(frustum.position)).float()
    target = eye + torch.tensor([0.0, 0, page.rooms[0]._height])
    column, row = on_screen(here, target)
    assert 0 < column < FREE.stop and 0 < row < WINDOW[1]
    there = lookers().c2w[0, 0]
    end = time.monotonic() + PATIENCE
    while (standing(page).c2w[0, 0] - there).abs().max() > 1e-3:
        assert time.monotonic() < end, "the click did not move the camera"
        tab.mouse.click(column, row)
        tab.wait_for_timeout(500)
    page.frusta.value = False


def test_a_recording_is_made_from_the_page(shown: tuple[Page, Any]) -> None:
    page, tab = shown
    page.recorder.seconds.value = 0.5
    tab.get_by_role("button", name="Add key frame").click()
    tab.get_by_text("Key frames: 1.").wait_for()
    choose(tab, "Go to", "c")
    eventually(lambda: abs(standing(page).c2w[0, 0, 1, 3].item() + 1 / page.stage.unit), 1e-3)
    tab.get_by_role("button", name="Add key frame").click()
    tab.get_by_text("Key frames: 2.").wait_for()
    tab.get_by_role("button", name="Save video").click()
    tab.get_by_text("Saved ").wait_for()
    assert Path(page.setting.video).stat().st_size > 1000


def test_an_arrow_drags_the_scene(shown: tuple[Page, Any]) -> None:
    page, tab = shown
    choose(tab, "Show", COLOR)
    (client,) = page.server.get_clients().values()
    client.camera.position = (0.0, 0.0, -0.5 * EXTENT)  # back, to see the arrows
    tab.get_by_role("checkbox", name="Drag").check()
    eventually(lambda: abs(standing(page).c2w[0, 0, 2, 3].item() + 0.5 * EXTENT), 1e-3)
    tab.wait_for_timeout(1000)  # it is drawn
    grip = page.stage.middles[0] + torch.tensor([0, 0.3 * EXTENT, 0])  # of the arrow along y
    column, row = on_screen(standing(page), grip)
    _, further = on_screen(standing(page), grip + torch.tensor([0, 0.25 * EXTENT, 0]))
    assert 0 < column < FREE.stop and row + 15 < further < WINDOW[1]
    tab.mouse.move(column, row)
    tab.wait_for_timeout(300)
    tab.mouse.down()
    tab.wait_for_timeout(200)
    for step in range(1, 6):
        tab.mouse.move(column, row + (further - row) * step / 5)
        tab.wait_for_timeout(60)
    tab.mouse.up()
    eventually(lambda: abs(page.stage.poses[0][1, 3].item() - 0.25 * EXTENT), 0.1 * EXTENT)
    tab.get_by_role("checkbox", name="Drag").uncheck()
    moved = page.stage.poses[0]
    assert torch.equal(moved[:3, :3], torch.eye(3)) and moved[[0, 2], 3].abs().max() < 1e-3
    camera = standing(page)
    stays = looking_from(torch.linalg.inv(moved) @ camera.c2w[0, 0], camera)
    eventually(lambda: apart(tab, wanted(page, stays, COLOR)), 2.5)
    page.rooms[0].move(torch.zeros(3))
