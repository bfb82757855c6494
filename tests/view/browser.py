"""A real headless Chromium, drawing in software, for tests; skips where there is none."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)
WINDOW = (900, 400)  # pixels: width, height; the panel of controls covers the right end


@contextmanager
def launched(*flags: str) -> Iterator[Any]:
    """Playwright's browser with these flags."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=list(flags))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(address: str) -> Iterator[Any]:
    """Playwright's page at the address, without the warning that software draws."""
    with launched(*FLAGS) as browser:
        page = browser.new_page(viewport={"width": WINDOW[0], "height": WINDOW[1]})
        page.goto(address)
        page.get_by_role("button", name="Save video").wait_for()
        page.add_style_tag(content=".mantine-Notifications-root {display: none}")
        yield page


def screenshot(page: Any) -> np.ndarray:
    """The window as uint8 RGB [height, width, 3]."""
    return np.array(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))


def choose(page: Any, label: str, option: str) -> None:
    """Picks an entry of one of viser's lists."""
    page.get_by_role("combobox", name=label).click()
    page.get_by_role("option", name=option, exact=True).click()
