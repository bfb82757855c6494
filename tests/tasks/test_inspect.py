"""`pmsplat data inspect`: the page of a small data set, taken apart, and in a real browser."""

import base64
import io
import math
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pmsplat.cli import main
from pmsplat.errors import UserError
from pmsplat.io.chunks import Quarantine, write_quarantine
from pmsplat.tasks.inspect import inspect
from pmsplat.tasks.inspect._survey import choose_evenly, share_evenly
from pmsplat.tasks.verify import verify
from tests.evaluate.pages.html import Element, levels, read_page
from tests.evaluate.pages.test_browser import contrast
from tests.tasks.test_verify import scene, write
from tests.view.browser import launched

EVIL = "<script>alert('a')</script>"
LONG = "a_scene_with_a_name_that_is_longer_than_any_phone_is_wide_and_has_no_space_in_it"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """train: a and b in a chunk, one with a damaged photo and one without poses; test: one."""
    a, b = scene("a", 1, count=6), scene(EVIL, 2)
    a |= {"near": torch.full((6,), 0.5), "far": torch.full((6,), 80.0)}
    bad, lost = scene("bad", 3), scene("lost", 4)
    bad["images"][0] = bad["images"][0][:40]
    lost["cameras"][1, 6:] = float("nan")
    write(tmp_path / "mine" / "train", [a, b], [bad, lost])
    write(tmp_path / "mine" / "test", [scene(LONG, 5, count=9)])
    return tmp_path / "mine"


def read(dataset: Path, **options: Any) -> Element:
    return read_page(inspect(dataset, dataset.parent / "page.html", **options))


def card(page: Element, key: str) -> Element:
    (found,) = [c for c in page.all("article", class_="sample") if c.all("h3")[0].text == key]
    return found


def facts(card: Element) -> dict[str, str]:
    names, values = ([e.text for e in card.all(kind)] for kind in ("dt", "dd"))
    return dict(zip(names, values, strict=True))


def tiles(page: Element) -> dict[str, str]:
    return {
        tile.all("h3")[0].text: tile.all("span", class_="figure")[0].text
        for tile in page.all("article", class_="tile")
    }


def test_a_page_shows_every_scene_with_its_facts(dataset: Path) -> None:
    page = read(dataset)
    keys = [c.all("h3")[0].text for c in page.all("article", class_="sample")]
    assert keys == [LONG, "a", EVIL, "bad", "lost"]
    # Square pixels at 12x16 and fy of 0.9: fields of view of 2 atan(2 / 2.7) and 2 atan(1 / 1.8).
    assert facts(card(page, "a")) | {"path": ""} == {
        "photographs": "6",
        "size": "12x16",
        "field of view": "73° × 58°",
        "near, far": "0.5 to 80",
        "path": "",
        "chunk": "000000.torch",
    }
    assert facts(card(page, EVIL))["near, far"] == "none"
    w2c = torch.eye(4).repeat(6, 1, 1)
    w2c[:, :3] = scene("a", 1, count=6)["cameras"][:, 6:].reshape(6, 3, 4)
    places = torch.linalg.inv(w2c)[:, :3, 3].tolist()
    length = sum(math.dist(*step) for step in pairwise(places))
    assert facts(card(page, "a"))["path"] == f"{length:.3g} long"


def test_thumbnails_are_photographs_from_first_to_last(dataset: Path) -> None:
    pictures = card(read(dataset), "a").all("img")
    assert [p.attributes["alt"] for p in pictures] == [f"Photo {i} of 6 of a" for i in (1, 3, 4, 6)]
    for picture, frame in zip(pictures, (0, 2, 3, 5), strict=True):
        head, data = (picture.attributes["src"] or "").split(",")
        assert head == "data:image/webp;base64"
        small = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        encoded = scene("a", 1, count=6)["images"][frame].numpy().tobytes()
        true = Image.open(io.BytesIO(encoded)).convert("RGB")
        assert small.size == true.size == (16, 12)
        means = [torch.from_numpy(np.array(i)).float().mean((0, 1)) for i in (small, true)]
        assert float((means[0] - means[1]).abs().max()) < 12  # of 255, after WebP


def test_damage_is_said_in_words(dataset: Path) -> None:
    page = read(dataset)
    assert "a photo that cannot be decoded" in card(page, "bad").text
    assert "Photo 1 cannot be decoded" in card(page, "bad").text
    assert "cannot be used: it has cameras that are not finite" in card(page, "lost").text
    assert not card(page, LONG).all("li")


def test_a_chunk_that_cannot_be_read_is_said_on_the_card(dataset: Path) -> None:
    (dataset / "train" / "000001.torch").write_bytes(b"nothing")
    page = read(dataset)
    assert "cannot be read" in card(page, "bad").text
    assert len(card(page, "a").all("img")) == 4


def test_totals_are_counted_or_said_to_be_estimates(dataset: Path) -> None:
    size = sum(path.stat().st_size for path in dataset.rglob("*.torch"))
    assert tiles(read(dataset)) | {"Photographs": ""} == {
        "Scenes": "5",
        "Photographs": "",
        "On the disk": f"{size / 1e6:.1f} MB",
        "Size": "12x16",
    }
    page = read(dataset / "train", scenes=1)
    assert tiles(page)["Photographs"] == "≈ 16"  # four scenes; of the one shown, four photos
    assert "a sample of 1, spread evenly" in page.text
    verify(dataset, jobs=1, tell=lambda text: None)
    assert tiles(read(dataset, scenes=2))["Photographs"] == "19"  # of a, EVIL and LONG


def test_the_check_is_told_as_far_as_it_is_known(dataset: Path) -> None:
    assert read(dataset).text.count("Nobody has checked this split yet") == 2
    write_quarantine(dataset / "train", Quarantine({}, {"a": "a whim"}))
    page = read(dataset)
    assert "left out of training: a whim" in card(page, "a").text
    verify(dataset, jobs=1, tell=lambda text: None)
    page = read(dataset)
    assert "2 of 4 scenes can be used" in page.text
    assert "All 1 scene can be used" in page.text
    (state,) = page.all("div", class_="bad")
    assert "10 photographs" in state.text
    chunk = dataset / "train" / "000000.torch"
    torch.save([scene("a", 1), scene(EVIL, 2, count=5)], chunk)
    assert "Chunks have been added or changed since the last check" in read(dataset).text


def test_a_page_loads_nothing_and_runs_nothing_of_the_data(dataset: Path) -> None:
    page = read(dataset)
    sources = [image.attributes["src"] or "" for image in page.all("img")]
    assert sources and all(source.startswith("data:image/webp;base64,") for source in sources)
    assert not page.all("link") and len(page.all("script")) == 1
    assert "alert" not in page.all("script")[0].text
    assert all(image.attributes["alt"] for image in page.all("img"))
    assert all(chart.attributes["aria-label"] for chart in page.all("svg"))
    found = levels(page)
    assert found[0] == 1 and all(b <= a + 1 for a, b in pairwise(found))
    ids = re.findall(r'\bid="([^"]+)"', (dataset.parent / "page.html").read_text())
    assert len(ids) == len(set(ids))


def test_nothing_is_written_into_the_dataset(dataset: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    read(dataset)
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before


def test_a_sample_is_spread_evenly_and_shared() -> None:
    assert choose_evenly([str(i) for i in range(10)], 5) == ["1", "3", "5", "7", "9"]
    assert choose_evenly(["a", "b"], 2) == ["a", "b"]
    assert share_evenly([100, 3, 50], 24) == [10, 3, 11]
    assert share_evenly([2, 3], 24) == [2, 3]
    assert sum(share_evenly([5, 5, 5], 2)) == 2


def test_mistakes_are_said(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = dataset.parent / "other.html"
    other.write_text("<html>mine</html>")
    with pytest.raises(UserError, match="another page"):
        inspect(dataset, other)
    with pytest.raises(UserError, match="which is a folder"):
        inspect(dataset, dataset)
    (dataset.parent / "empty").mkdir()
    with pytest.raises(UserError, match="holds no chunk"):
        inspect(dataset.parent / "empty", dataset.parent / "page.html")
    page = str(dataset.parent / "page.html")
    assert main(["data", "inspect", str(dataset), "--output", page, "--scenes", "0"]) == 2
    assert "--scenes 0" in capsys.readouterr().err
    assert main(["data", "inspect", str(dataset), "--output", page, "--scenes", "2"]) == 0


@pytest.fixture
def browser() -> Iterator[Any]:
    with launched("--headless=new", "--no-sandbox", "--disable-gpu") as browser:
        yield browser


def test_a_browser_shows_it_at_a_desk_and_on_a_phone(browser: Any, dataset: Path) -> None:
    verify(dataset, jobs=1, tell=lambda text: None)
    path = inspect(dataset, dataset.parent / "page.html")
    for width in (1280, 360):
        page = browser.new_page(viewport={"width": width, "height": 800})
        said: list[str] = []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda r, said=said: r.url.startswith("http") and said.append(r.url))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        shown = "[...document.images].every(i => i.complete && i.naturalWidth)"
        assert page.evaluate(shown)
        assert said == []


def test_warnings_can_be_read_by_day_and_by_night(browser: Any, dataset: Path) -> None:
    """WCAG's contrast of text to its background is 4.5 or more."""
    path = inspect(dataset, dataset.parent / "page.html")
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(path.as_uri())
        for text, ground in page.evaluate(
            """() => [[".no-photo", ".no-photo"], [".facts dt", ".card"], [".whose", ".card"]].map(
                ([a, b]) => [getComputedStyle(document.querySelector(a)).color,
                             getComputedStyle(document.querySelector(b)).backgroundColor])"""
        ):
            assert contrast(text, ground) >= 4.5
