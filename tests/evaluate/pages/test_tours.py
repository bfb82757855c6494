"""Scenes to turn and videos: written beside results, found again, and shown by a browser."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.evaluate import tours
from pmsplat.evaluate.pages import _tours
from pmsplat.evaluate.pages.report import write_report
from pmsplat.evaluate.pictures import read_pictures, write_pictures
from pmsplat.evaluate.runs import Run, read_run
from pmsplat.evaluate.tours import SCENE, START, VIDEO, Drawing
from pmsplat.io.gaussians import load_gaussians
from pmsplat.io.images import read_image
from pmsplat.io.video import read_frames
from pmsplat.render import rasterize
from pmsplat.types import Batch, Gaussians, Prediction, StepOutput, Views
from tests.evaluate.pages.html import levels, read_page
from tests.evaluate.results import gains, write_results
from tests.view.blocks import SIZE, blocks, lookers
from tests.view.browser import FLAGS, launched

SCENES = ("a",)
FRAMES = 12  # of videos, one way; fewer than those of users


def predict(scene: str, gaussians: Gaussians, background: float = 0.0) -> StepOutput:
    """A step whose answer are these Gaussians; context views are numbered from right to left."""
    cameras = lookers()
    drawn = rasterize(gaussians, cameras, SIZE, "cpu", torch.full((3,), background))
    target = Views(drawn.color, cameras, names=(("0", "1", "2"),))
    context = Views(drawn.color[:, :2], cameras.at([1, 0]), names=(("10", "9"),))
    return StepOutput(Batch(context, target, [scene]), Prediction((), (gaussians,)), (drawn,))


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tours, "FRAMES", FRAMES)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two models with tours of two scenes, and one with pictures alone."""
    folder, found = tmp_path_factory.mktemp("runs"), []
    gray = replace(blocks(), sh=torch.zeros(1, 900, 1, 3))
    for name, gaussians in (("colored", blocks()), ("gray", gray), ("flat", None)):
        path = write_results(folder / name, gains(20, 21, 22), name)
        for scene in SCENES:
            step = predict(scene, gaussians or blocks())
            if gaussians is None:
                step = replace(step, prediction=Prediction((), ()))
            write_pictures(path.parent / "pictures" / scene, step)
        found.append(read_run(path))
    return found


def test_a_tour_is_of_the_scene_and_read_back(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tours, "BUDGET", 600)
    gaussians, behind = blocks(degree=1), (0.5, 0.5, 0.5)
    step = predict("a", gaussians, 0.5)
    folder = tmp_path / "pictures" / "a"
    tour = write_pictures(folder, step, drawing=Drawing("cpu", behind)).tour
    assert tour is not None and (tour.view, tour.of) == ("1", 900)
    assert read_pictures(tmp_path)["a"].tour == tour

    # The start shows the middle target, a little worse, and turns about what is seen there
    start = torch.from_numpy(read_image(folder / START) / 255.0).permute(2, 0, 1)
    wrong = (start - step.rendering.color[0, 1].clamp(0, 1)).square().mean()
    assert 20 < tour.psnr < 60 and -10 * wrong.log10() > min(tour.psnr, 30) - 3
    assert tour.start.focus == pytest.approx(4.0, abs=3.0) and tour.start.background == behind
    assert tour.start.up == pytest.approx((0, -1, 0), abs=1e-3)
    assert load_gaussians(folder / SCENE).means.shape[1] == tour.gaussians <= 600

    # The video goes in the order of the frames' numbers, and comes back
    frames = [frame / 255.0 for frame in read_frames(folder / VIDEO)]
    assert len(frames) == pytest.approx(tour.seconds * tours.FPS)
    for frame, view in ((0, 0), (FRAMES - 1, 1)):
        wanted = step.rendering.color[0, view].clamp(0, 1).permute(1, 2, 0).numpy()
        assert ((frames[frame] - wanted) ** 2).mean() < 1e-3
    assert np.abs(frames[-1] - frames[1]).mean() < 0.01

    (folder / VIDEO).unlink()
    with pytest.raises(UserError, match=r"names between\.mp4, which is missing"):
        read_pictures(tmp_path)


def test_one_view_has_no_video_and_few_are_drawn_as_they_are_kept(tmp_path: Path) -> None:
    step = predict("a", blocks())
    context = step.batch.context
    alone = Views(context.images[:, :1], context.cameras.at([0]), names=(("10",),))
    step = replace(step, batch=replace(step.batch, context=alone))
    tour = tours.write_tour(tmp_path, step, 0, Drawing("cpu", keep=0.5))
    assert tour is not None and tour.seconds == 0 and not (tmp_path / VIDEO).exists()
    assert tour.of == tour.gaussians == 450 and tour.psnr > 50
    assert tours.parse_tour({**vars(tour), "start": vars(tour.start)}) == tour


def test_the_page_says_whose_scenes_do_not_turn(
    runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = read_page(write_report(tmp_path / "all", runs))
    scene, *_ = page.all("article", class_="scene")
    assert [s.attributes.get("data-name") for s in scene.all("script")] == ["colored", "gray"]
    assert len(scene.all("video")) == 2 and "all 900 Gaussians" in scene.text
    assert "no videos of flat" in page.all("section", id="scenes")[0].text
    found = levels(page)
    assert all(after <= before + 1 for before, after in pairwise(found))
    (policy,) = page.all("meta", http_equiv="Content-Security-Policy")
    assert "connect-src" not in (policy.attributes["content"] or "")
    assert "default-src 'none'" in (policy.attributes["content"] or "")

    # Without any, there is no renderer in it; too large ones are left out
    text = write_report(tmp_path / "flat", runs[2:]).read_text()
    assert "gsplat" not in text and len(text) < 300_000
    size = sum(_tours._count_bytes(p) for p in read_pictures(runs[0].folder).values())
    monkeypatch.setattr(_tours, "HELD", size)
    page = read_page(write_report(tmp_path / "small", runs[:2]))
    assert len(page.all("video")) == 1
    assert "videos of gray are left out" in page.all("section", id="scenes")[0].text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched(*FLAGS) as browser:
        yield browser


def test_a_browser_turns_and_plays_them(browser: Any, runs: list[Run], tmp_path: Path) -> None:
    path, said = write_report(tmp_path, runs[:2]), []
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.get_by_role("button", name="Turn scene a").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn[data-drawn='0']")
    scene = page.locator(".scene").first
    scene.get_by_role("radio", name="gray").check()
    page.wait_for_selector(".turn[data-drawn='1']")
    assert "Showing gray" in scene.get_by_role("status").inner_text()

    video = scene.locator("video").first
    assert video.evaluate("v => v.paused && v.muted && v.controls && !v.autoplay")
    scene.get_by_role("button", name="Play all").click()
    for _ in range(100):
        if scene.locator("video").evaluate_all("all => all.every(v => v.currentTime > 0.05)"):
            break
        page.wait_for_timeout(50)
    else:
        pytest.fail("the videos do not play")
    seconds, width = video.evaluate("v => [v.duration, v.videoWidth]")
    assert seconds == pytest.approx((2 * FRAMES - 2) / tours.FPS, abs=0.1)
    assert width == SIZE[1]
    page.close()
    assert [text for text in said if not re.search("GPU stall", text)] == []
