"""The report and the leaderboard in a real browser, as wide as a desk and as a phone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pmsplat.evaluate.pages.leaderboard import write_leaderboard
from pmsplat.evaluate.pages.report import write_report
from pmsplat.evaluate.runs import read_run
from tests.evaluate.pages.test_report import draw
from tests.evaluate.results import Values, gains, write_results
from tests.view.browser import launched

WIDTHS = (1280, 360)
LONG = "a_model_with_a_name_that_is_longer_than_any_phone_is_wide_and_has_no_space_in_it"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two runs with pictures, and a leaderboard with it."""
    folder = tmp_path_factory.mktemp("pages")
    generator = torch.Generator().manual_seed(0)
    runs = []
    for name, psnrs in ((LONG, (20, 24, 22)), ("second", (21, 22, 25))):
        cost = {"gaussians": 1e5, "megabytes": 20.0, "peak_bytes": 1e9}
        write_results(folder / name, gains(*psnrs), name, cost=cost)
        for scene in "abc":
            draw(folder / name, scene, generator)
        runs.append(read_run(folder / name))
    write_report(folder / "report", runs)
    write_leaderboard(folder / "site", runs)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched("--headless=new", "--no-sandbox", "--disable-gpu") as browser:
        yield browser


@pytest.fixture
def visit(browser: Any, site: Path) -> Iterator[Any]:
    """Opens a page at a width; nothing may be reported to the console."""
    said: list[str] = []
    opened = []

    def go(name: str, width: int, **context: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 800}, **context)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((site / name / "index.html").as_uri())
        opened.append(page)
        return page

    yield go
    for page in opened:
        page.close()
    assert said == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report", "site"])
def test_no_page_is_wider_than_the_window(visit: Any, name: str, width: int) -> None:
    page = visit(name, width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_means_of_color_depth_and_costs_need_no_scrolling(browser: Any, tmp_path: Path) -> None:
    values: Values = dict.fromkeys(("psnr", "ssim", "lpips", "abs_rel", "rmse", "delta1"), 0.5)
    cost = {"gaussians": 131072, "megabytes": 29.9, "peak_bytes": 2e10}
    runs = [
        read_run(write_results(tmp_path / name, {"a": values}, name, cost=cost))
        for name in ("depthsplat-gs-small-re10k-256x256-view2", "second")
    ]
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(write_report(tmp_path / "out", runs).as_uri())
    tables = page.locator("#results .scroll")
    count = "all => all.map(e => e.querySelectorAll('th[scope=col]').length)"
    assert tables.evaluate_all(count) == [5, 4, 6]
    assert tables.evaluate_all("all => all.every(e => e.scrollWidth <= e.clientWidth)")
    page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_slider_moves_by_keyboard_and_by_pointer(visit: Any, width: int) -> None:
    page = visit("report", width)
    slider = page.get_by_role("slider").first
    stage = page.locator(".stage").first
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert slider.input_value() == "51"
    assert stage.evaluate("e => e.style.getPropertyValue('--split')") == "51%"
    assert slider.get_attribute("aria-valuetext") == f"51 % {LONG}, 49 % second"
    page.keyboard.press("End")
    assert slider.input_value() == "100"
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"], steps=4)
    page.mouse.up()
    assert abs(int(slider.input_value()) - 25) <= 1


def test_both_sides_show_what_is_chosen(visit: Any) -> None:
    page = visit("report", 1280)
    scene = page.locator(".scene").first

    def source(key: str) -> str:
        return scene.locator(f"img[data-key='{key}']").get_attribute("src")

    def shown() -> list[str]:
        return [scene.locator(f".stage .{side}").get_attribute("src") for side in ("over", "under")]

    assert shown() == [source("0/0-render"), source("0/1-render")]
    scene.get_by_label("Left").select_option("photograph")
    scene.get_by_label("Right").select_option("1-error")
    scene.get_by_label("View").select_option("2")
    assert shown() == [source("2/photograph"), source("2/1-error")]
    assert len(set(shown())) == 2
    loaded = "e => e.complete && e.naturalWidth"
    assert scene.locator(".stage .over").evaluate(loaded) == 48


def test_a_table_sorts_by_any_column(visit: Any) -> None:
    page = visit("report", 1280)
    table = page.locator("table.sortable")

    def order() -> str:
        return "".join(table.locator("tbody th").all_inner_texts())

    button = table.get_by_role("button", name="PSNR ↑").first
    button.focus()
    page.keyboard.press("Enter")
    assert order() == "bca"
    page.keyboard.press("Enter")
    assert order() == "acb"
    assert button.locator("..").get_attribute("aria-sort") == "ascending"
    table.get_by_role("button", name="Δ PSNR").click()
    assert order() == "cab"


def test_focus_is_seen_and_motion_is_reduced(visit: Any) -> None:
    page = visit("report", 360, reduced_motion="reduce")
    page.keyboard.press("Tab")
    skip = page.locator(":focus")
    assert skip.inner_text() == "Skip to the results"
    assert skip.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    assert skip.bounding_box()["x"] >= 0
    behavior = "getComputedStyle(document.documentElement).scrollBehavior"
    assert page.evaluate(behavior) == "auto"


def test_a_table_can_be_copied(visit: Any) -> None:
    page = visit("report", 1280)
    button = page.get_by_role("button", name="Copy LaTeX")
    button.click()
    page.wait_for_function("getSelection().toString() || document.body.innerText.match(/Copied/)")
    assert page.locator("pre").last.inner_text().startswith("% needs")


def test_light_and_dark_can_be_read(visit: Any) -> None:
    """WCAG's contrast of text to its background is 4.5 or more, of quiet text too."""
    for scheme in ("light", "dark"):
        page = visit("report", 1280, color_scheme=scheme)
        colors = page.evaluate(
            """() => [".lead", "caption", "td", "nav a", ".eyebrow"].map(s => {
                const e = document.querySelector(s);
                return [getComputedStyle(e).color,
                        getComputedStyle(e.closest(".scroll") ?? document.body).backgroundColor];
            })"""
        )
        for text, ground in colors:
            assert contrast(text, ground) >= 4.5


def contrast(*colors: str) -> float:
    """Of two colors as a browser writes them: rgb(1, 2, 3)."""

    def luminance(color: str) -> float:
        parts = [int(part) / 255 for part in color.strip("rgb()").split(",")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted(map(luminance, colors))
    return (light + 0.05) / (dark + 0.05)


def test_a_page_without_script_shows_everything(visit: Any) -> None:
    page = visit("report", 1280, java_script_enabled=False)
    assert page.locator(".compare").first.is_hidden()
    assert page.locator("figure.render").first.is_visible()
    assert page.locator("table.sortable tbody tr").count() == 3
