"""The report: what stands in it, where it comes from, and what it refuses."""

import re
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.evaluate.pages import _gallery
from pmsplat.evaluate.pages.report import write_report
from pmsplat.evaluate.pictures import file_name, write_pictures
from pmsplat.evaluate.runs import Run, name_runs, read_run
from pmsplat.types import Batch, Prediction, Rendering, StepOutput, Views
from tests.evaluate.pages.html import levels, read_page
from tests.evaluate.results import gains, write_results
from tests.scenes import random_cameras

EVIL = "<script>alert(1)</script>\"'&/.."


def draw(folder: Path, scene: str, generator: torch.Generator, size=(32, 48)) -> None:
    """Pictures of a scene with three targets, beside results."""

    def views(count: int) -> Views:
        images = torch.rand(1, count, 3, *size, generator=generator)
        names = (tuple(f"{i:03d}" for i in range(count)),)
        return Views(images, random_cameras(count, generator), names=names)

    batch = Batch(views(2), views(3), [scene])
    color = 0.8 * batch.target.images
    rendering = Rendering(color, 1 + color[:, :, 0], torch.ones_like(color[:, :, 0]))
    step = StepOutput(batch, Prediction((), ()), (rendering,))
    write_pictures(folder / "pictures" / file_name(scene), step)


@pytest.fixture
def pair(tmp_path: Path, generator: torch.Generator) -> list[Run]:
    """Two runs on five scenes, one of them with a dangerous name, three of them with pictures."""
    runs = []
    for name, psnrs in (("first", (20, 22, 24, 26, 28)), ("second", (21, 22, 25, 25, 31))):
        scenes = gains(*psnrs)
        scenes[EVIL] = scenes.pop("a")
        views = [
            {"scene": scene, "view": f"00{i}", "psnr": values["psnr"], "truth": "12"}
            for scene, values in scenes.items()
            for i in range(3)
        ]
        write_results(tmp_path / name, scenes, name, views)
        for scene in (EVIL, "c", "e"):
            draw(tmp_path / name, scene, generator)
        runs.append(read_run(tmp_path / name))
    return runs


def test_a_report_holds_everything_and_nothing_of_the_network(
    pair: list[Run], tmp_path: Path
) -> None:
    path = write_report(tmp_path / "out", pair)
    assert sorted(p.name for p in path.parent.iterdir()) == ["index.html", "table.md", "table.tex"]
    text, page = path.read_text(), read_page(path)
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", text)
    assert not page.all("link") and not page.all("iframe")
    addresses = {image.attributes.get("src", "") or "" for image in page.all("img")}
    assert all(a.startswith("data:image/webp;base64,") for a in addresses if a)
    (style,), (script,) = page.all("style"), page.all("script")
    assert "url(" not in style.text and "fetch(" not in script.text
    (policy,) = page.all("meta", http_equiv="Content-Security-Policy")
    assert (policy.attributes["content"] or "").startswith("default-src 'none'; img-src 'self'")


def test_names_are_data(pair: list[Run], tmp_path: Path) -> None:
    page = read_page(write_report(tmp_path / "out", name_runs(pair, [EVIL, "second"])))
    (script,) = page.all("script")
    assert "alert" not in script.text
    (every,) = page.all("table", class_="sortable")
    assert EVIL in [head.text for head in every.all("th", scope="row")]
    assert page.all("article", id="scene-1")[0].all("h3")[0].text == EVIL
    assert page.all("h1")[0].text == f"{EVIL} and second"


def test_the_tables_have_the_numbers_of_the_runs(pair: list[Run], tmp_path: Path) -> None:
    page = read_page(write_report(tmp_path / "out", pair))
    means = page.all("section", id="results")[0].all("table")[0]
    cells = [[cell.text for cell in row.all("td")] for row in means.all("tr")[1:]]
    assert [row[:2] for row in cells] == [["5", "24.00"], ["5", "24.80"]]
    differences = page.all("section", id="differences")[0].all("table")[0]
    psnr = [cell.text for cell in differences.all("tr")[1].all("td")]
    assert psnr[0] == "+0.80" and psnr[2:] == ["3 of 5", "1"]
    lpips = [cell.text for cell in differences.all("tr")[2].all("td")]
    assert lpips[0] == "−0.012" and lpips[2:] == ["3 of 5", "1"]  # better where it falls
    (every,) = page.all("table", class_="sortable")
    rows = {row.all("th")[0].text: row.all("td") for row in every.all("tr")[2:]}
    assert [cell.text for cell in rows["d"]] == ["3", "26.00", "0.385", "25.00", "0.400", "−1.00"]
    facts = page.all("section", id="sources")[0].text
    assert "unknown" in facts and "c0ffeec0ffee" in facts


def test_scenes_go_from_the_worst_to_the_best(pair: list[Run], tmp_path: Path) -> None:
    page = read_page(write_report(tmp_path / "out", pair))
    scenes = page.all("article", class_="scene")
    said = [(s.all("p")[0].text, s.all("h3")[0].text) for s in scenes]
    assert said == [("Worst scene", EVIL), ("Median scene", "c"), ("Best scene", "e")]
    keys = [image.attributes["data-key"] for image in scenes[0].all("img") if
            "data-key" in image.attributes]  # fmt: skip
    shown = ["photograph", *(f"{run}-{k}" for run in (0, 1) for k in ("render", "error", "depth"))]
    assert keys == [f"{view}/{key}" for view in (0, 1, 2) for key in shown]
    links = [a.attributes["href"] for a in page.all("table", class_="sortable")[0].all("a")]
    assert links == ["#scene-2", "#scene-3", "#scene-1"]


def test_headings_are_in_order_and_pictures_have_texts(pair: list[Run], tmp_path: Path) -> None:
    page = read_page(write_report(tmp_path / "out", pair))
    found = levels(page)
    assert found[0] == 1 and found.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(found))
    figures = [image for figure in page.all("figure") for image in figure.all("img")]
    texts = [image.attributes["alt"] or "" for image in figures]
    assert len(figures) == 3 * (2 + 3 * 7) and all(len(text) > 10 for text in texts)
    assert all(chart.attributes["aria-label"] for chart in page.all("svg"))
    assert all(slider.attributes["aria-label"] for slider in page.all("input"))


def test_many_pictures_lie_beside_the_page(
    pair: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_gallery, "EMBEDDED", 0)
    path = write_report(tmp_path / "out", pair)
    images = [image for figure in read_page(path).all("figure") for image in figure.all("img")]
    assert len(images) == 69 and "data:" not in (images[0].attributes["src"] or "")
    for image in images:
        assert (path.parent / unquote(image.attributes["src"] or "")).is_file()


def test_means_are_over_the_scenes_that_all_have(tmp_path: Path) -> None:
    first = read_run(write_results(tmp_path / "a", gains(20, 30, 40), "first"))
    second = read_run(write_results(tmp_path / "b", gains(22, 32), "second"))
    page = read_page(write_report(tmp_path / "out", [first, second]))
    means = page.all("section", id="results")[0].all("table")[0]
    assert [row.all("td")[1].text for row in means.all("tr")[1:]] == ["25.00", "27.00"]
    assert "Only the 2 scenes that all have count (first 3)." in means.text


def test_one_run_without_pictures_or_views(tmp_path: Path) -> None:
    run = read_run(write_results(tmp_path / "a", {"only": {"abs_rel": 0.1}}, index=None))
    page = read_page(write_report(tmp_path / "out", [run]))
    assert "AbsRel ↓" in page.all("section", id="results")[0].text
    assert not page.all("section", id="differences")
    assert "no pictures" in page.all("section", id="scenes")[0].text


def test_one_scene_has_no_interval(tmp_path: Path) -> None:
    runs = [read_run(write_results(tmp_path / n, gains(p), n)) for n, p in (("a", 20), ("b", 21))]
    page = read_page(write_report(tmp_path / "out", runs))
    row = page.all("section", id="differences")[0].all("table")[0].all("tr")[1]
    assert [cell.text for cell in row.all("td")] == ["+1.00", "–", "1 of 1", "0"]


def test_thousands_of_scenes_stay_a_page(tmp_path: Path) -> None:
    scenes = {f"{i:05d}": {"psnr": 20 + i % 97 / 10} for i in range(3000)}
    other = {name: {"psnr": values["psnr"] + 0.1} for name, values in scenes.items()}
    runs = [
        read_run(write_results(tmp_path / name, found, name))
        for name, found in (("a", scenes), ("b", other))
    ]
    path = write_report(tmp_path / "out", runs)
    assert path.stat().st_size < 2_000_000
    page = read_page(path)
    assert len(page.all("svg")) == 3 and not page.all("circle", class_="dot")


def test_somebody_elses_page_is_not_replaced(tmp_path: Path) -> None:
    run = read_run(write_results(tmp_path / "a", gains(20)))
    (tmp_path / "index.html").write_text("<h1>mine</h1>")
    with pytest.raises(UserError, match=r"index\.html, which is another page"):
        write_report(tmp_path, [run])
    assert not (tmp_path / "table.md").exists()
    write_report(tmp_path / "out", [run])
    write_report(tmp_path / "out", [run])
