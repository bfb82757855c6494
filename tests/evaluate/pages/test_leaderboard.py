"""The site of many runs: one table for each protocol, and everything it links to."""

from pathlib import Path
from urllib.parse import unquote

from pmsplat.evaluate.pages.leaderboard import write_leaderboard
from pmsplat.evaluate.pages.report import write_report
from pmsplat.evaluate.runs import read_run
from tests.evaluate.pages.html import Element, levels, read_page
from tests.evaluate.results import gains, write_results


def names(section: Element) -> list[str]:
    return [row.all("th")[0].all("span")[0].text for row in section.all("tr")[1:]]


def test_protocols_do_not_share_a_table(tmp_path: Path) -> None:
    def run(name: str, psnr: float, **more):
        return read_run(write_results(tmp_path / name, gains(psnr, psnr + 1), name, **more))

    runs = [
        run("worse", 20),
        run("better", 21),
        run("large", 30, size=(64, 96)),
        run("posed", 31, protocol="fitted"),
        run("other", 32, index="cd" * 32),
        run("unknown", 33, index=None),
    ]
    page = read_page(write_leaderboard(tmp_path / "site", runs))
    tables = {tuple(names(section)) for section in page.all("main")[0].all("section")}
    apart = {("large",), ("posed",), ("other",), ("unknown",)}
    assert tables == {("better", "worse"), *apart}
    assert "6 runs by 5 protocols" in page.text
    assert levels(page) == [1, 2, 2, 2, 2, 2]


def test_other_photographs_do_not_share_a_table(tmp_path: Path) -> None:
    def run(name: str, psnr: float, truth: str):
        view = {"scene": "a", "view": "7", "psnr": psnr, "truth": truth}
        return read_run(write_results(tmp_path / name, gains(psnr), name, [view]))

    runs = [run("worse", 20, "12"), run("other", 40, "34"), run("better", 21, "12")]
    page = read_page(write_leaderboard(tmp_path / "site", runs))
    sections = page.all("main")[0].all("section")
    assert [names(section) for section in sections] == [["better", "worse"], ["other"]]
    assert "3 runs by 1 protocol" in page.text
    assert all("of other photographs" in section.text for section in sections)


def test_what_lacks_scenes_has_no_rank(tmp_path: Path) -> None:
    runs = [
        read_run(write_results(tmp_path / name, gains(*psnrs), name))
        for name, psnrs in (("few", (40,)), ("low", (20, 21)), ("high", (22, 23)))
    ]
    page = read_page(write_leaderboard(tmp_path / "site", runs))
    (table,) = page.all("table")
    rows = [[cell.text for cell in row.all("td")][:3] for row in table.all("tr")[1:]]
    assert names(page) == ["high", "low", "few"]
    assert [(row[0], row[1]) for row in rows] == [("1", "22.50"), ("2", "20.50"), ("–", "40.00")]
    counts = [row.all("td")[3].text for row in table.all("tr")[1:]]
    assert counts == ["2", "2", "1 of 2"]
    assert [strong.text for strong in table.all("strong")] == ["22.50", "0.445"]


def test_equal_runs_share_a_rank_and_equal_models_are_told_apart(tmp_path: Path) -> None:
    def run(folder: str, psnr: float):
        scenes = {"a": {"psnr": psnr, "abs_rel": 0.25}}
        path = write_results(tmp_path / folder, scenes, "m", seconds_with_warm_up=psnr > 22)
        return read_run(path)

    runs = [run("one", 20.001), run("two", 20), run("three", 19), run("four", 23)]
    page = read_page(write_leaderboard(tmp_path / "site", runs))
    assert names(page) == ["m (four)", "m (one)", "m (two)", "m (three)"]
    rows = [[cell.text for cell in row.all("td")] for row in page.all("tr")[1:]]
    assert [row[:3] for row in rows] == [
        ["1", "23.00", "0.250"],
        ["2", "20.00", "0.250"],
        ["2", "20.00", "0.250"],
        ["4", "19.00", "0.250"],
    ]
    assert [row[-1] for row in rows] == ["10.0 *", "10.0", "10.0", "10.0"]
    assert "* the first scenes" in page.all("caption")[0].text


def test_rows_lead_to_reports_and_results_of_the_site_itself(tmp_path: Path) -> None:
    runs = [read_run(write_results(tmp_path / f"run {n}", gains(20 + n), f"m/{n}")) for n in (1, 2)]
    write_report(runs[0].folder / "report", runs[:1])
    (runs[1].folder / "index.html").write_text("no report of ours")
    path = write_leaderboard(tmp_path / "site", runs)
    links = [a.attributes["href"] or "" for a in read_page(path).all("main")[0].all("a")]
    assert len(links) == 3  # the report of the first, the results of both
    for link in links:
        assert (path.parent / unquote(link)).is_file()
    assert (path.parent / ".nojekyll").is_file()
    copied = [p.name for p in (path.parent / "runs").glob("*/table.md")]
    assert copied == ["table.md"]
    results = sorted((path.parent / "runs").glob("*/results.json"))
    assert [file.read_bytes() for file in results] == [run.path.read_bytes() for run in runs]
