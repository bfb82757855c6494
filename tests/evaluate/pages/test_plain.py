"""Text to copy, letter for letter, and markup that data cannot break."""

from pathlib import Path

from pmsplat.evaluate.pages._plain import tabulate, write_latex, write_markdown
from pmsplat.evaluate.runs import name_runs, read_run
from pmsplat.view.pages.markup import Markup, join, tag
from tests.evaluate.results import gains, write_results


def make_grid(tmp_path: Path):
    runs = [
        read_run(write_results(tmp_path / "a", gains(20, 25))),
        read_run(write_results(tmp_path / "b", gains(21, 25), cost={"gaussians": 131072})),
    ]
    return tabulate(name_runs(runs, ["a|b_1 <50%", "b & $x$"]))


def test_markdown(tmp_path: Path) -> None:
    assert write_markdown(make_grid(tmp_path)).splitlines() == [
        "| model | scenes | PSNR ↑ | LPIPS ↓ | Gaussians | encode, ms | render, ms |",
        "| --- | --: | --: | --: | --: | --: | --: |",
        r"| a\|b\_1 &lt;50% | 2 | 22.50 | 0.450 | – | 250.0 | 10.0 |",
        "| b &amp; $x$ | 2 | **23.00** | **0.438** | 131,072 | 250.0 | 10.0 |",
    ]


def test_latex(tmp_path: Path) -> None:
    body = write_latex(make_grid(tmp_path)).splitlines()
    assert body[1] == r"\begin{tabular}{lrrrrrr}"
    assert body[3] == (
        r"  model & scenes & PSNR $\uparrow$ & LPIPS $\downarrow$ & Gaussians & encode, ms & "
        r"render, ms \\"
    )
    assert body[5:7] == [
        r"  a|b\_1 $<$50\% & 2 & 22.50 & 0.450 & -- & 250.0 & 10.0 \\",
        r"  b \& \$x\$ & 2 & \textbf{23.00} & \textbf{0.438} & 131,072 & 250.0 & 10.0 \\",
    ]


def test_seconds_with_warm_up_are_marked_and_explained(tmp_path: Path) -> None:
    cold = read_run(write_results(tmp_path / "a", gains(20), "cold", seconds_with_warm_up=True))
    warm = read_run(write_results(tmp_path / "b", gains(21), "warm", seconds_with_warm_up=False))
    assert tabulate([warm]).note == ""
    grid = tabulate([cold, warm])
    assert [[cell.text for cell in row[-2:]] for row in grid.rows] == [
        ["250.0 *", "10.0 *"],
        ["250.0", "10.0"],
    ]
    assert write_markdown(grid).splitlines()[-1] == rf"\{grid.note}"
    assert rf"\multicolumn{{6}}{{l}}{{\footnotesize {grid.note}}} \\" in write_latex(grid)


def test_equal_as_written_is_equally_good(tmp_path: Path) -> None:
    runs = [read_run(write_results(tmp_path / n, gains(p))) for n, p in (("a", 20.001), ("b", 20))]
    assert [row[2].best for row in tabulate(runs).rows] == [True, True]


def test_text_is_escaped_and_markup_is_not() -> None:
    evil = "<b onclick='x'>&\""
    assert tag("p", evil, title=evil, hidden=True, id=None) == (
        '<p title="&lt;b onclick=&#x27;x&#x27;&gt;&amp;&quot;" hidden>'
        "&lt;b onclick=&#x27;x&#x27;&gt;&amp;&quot;</p>"
    )
    assert tag("p", tag("b", "x"), None, class_="c") == '<p class="c"><b>x</b></p>'
    assert tag("img", alt="") == '<img alt="">'
    assert join(["<", Markup("<br>"), None, ">"], "&") == "&lt;&amp;<br>&amp;&gt;"
