"""Histograms: every value is in one bar, and bars are as high as their counts."""

import re
from pathlib import Path

import pytest

from pmsplat.view.pages.charts import draw_histogram
from tests.evaluate.pages.html import Element, read_page


def draw(folder: Path, values: list[float]) -> Element:
    page = folder / "chart.html"
    page.write_text(draw_histogram(values, "Length", "scenes", "°"))
    (svg,) = read_page(page).all("svg")
    return svg


def bars(svg: Element) -> dict[tuple[float, float], int]:
    """The count of each bar by its ends, as its tooltip says."""
    found = {}
    for bar in svg.all("rect"):
        (title,) = bar.all("title")
        said = re.fullmatch(r"(\S+) to (\S+)°: (\d+) scenes", title.text.replace("−", "-"))
        assert said is not None
        found[float(said[1]), float(said[2])] = int(said[3])
    return found


@pytest.mark.parametrize(
    "values",
    [[1, 2, 2, 3, 9], [0.11, 0.12, 0.35, 0.9], [7, 7, 7], [0.0], [-3.5, 2.25, 8], [1e-9, 1, 400]],
)
def test_every_value_lies_in_a_bar_that_counts_it(tmp_path: Path, values: list[float]) -> None:
    svg = draw(tmp_path, values)
    found = bars(svg)
    assert sum(found.values()) == len(values)
    for (low, high), count in found.items():
        assert count == sum(low <= value < high for value in values)
    heights = [float(bar.attributes["height"] or "") for bar in svg.all("rect")]
    unit = heights[0] / next(iter(found.values()))
    assert heights == pytest.approx([unit * count for count in found.values()], abs=0.02)


def test_a_chart_is_said_in_words(tmp_path: Path) -> None:
    svg = draw(tmp_path, [10, 20, 60])
    assert svg.attributes["role"] == "img"
    assert svg.attributes["aria-label"] == "Length of 3 scenes: 10 to 60°, median 20°."
