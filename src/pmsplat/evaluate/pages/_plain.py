"""The table of means as Markdown and as LaTeX, to copy into a README or a paper."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..runs import Run
from ._metrics import COSTS, METRICS, explain_marks, find_costs, find_metrics

WIDEST = 10  # most columns of a table that a window of 1280 pixels shows whole
COLOR = ("psnr", "psnr_inside", "psnr_outside", "ssim", "lpips")

LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "δ": r"$\delta$", "<": r"$<$", ">": r"$>$",
    "–": "--", "−": "$-$", "×": r"$\times$", "·": r"$\cdot$",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    text: str
    best: bool = False


@dataclass(frozen=True)
class Grid:
    """A table of text: the first column names the rows; `note` stands below it."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


def tabulate(runs: Sequence[Run]) -> Grid:
    """A line for each run: scenes, means, costs. Of two or more, the best means are marked."""
    means = [run.means for run in runs]
    metrics, costs = find_metrics(means), find_costs(runs)
    best = {m.key: m.best(mean.get(m.key) for mean in means) for m in metrics}
    rows = []
    for run, mean in zip(runs, means, strict=True):
        row = [Cell(run.name), Cell(str(len(run.rows)))]
        for metric in metrics:
            value = mean.get(metric.key)
            marked = len(runs) > 1 and metric.is_best(value, best[metric.key])
            row.append(Cell(metric.write(value), marked))
        row += [Cell(cost.write(run)) for cost in costs]
        rows.append(row)
    head = ["model", "scenes", *(m.heading for m in metrics), *(c.heading for c in costs)]
    return Grid(head, rows, explain_marks(costs, runs))


def split(grid: Grid) -> dict[str, Grid]:
    """The grid as tables that a window can show, by their titles: color, geometry, costs.

    One table where it is narrow enough.
    """
    if len(grid.head) <= WIDEST:
        return {"Means": grid}
    costs = {cost.heading for cost in COSTS}
    color = {METRICS[key].heading for key in COLOR}
    parts = {
        "Means": lambda head: head in color,
        "Depth and geometry": lambda head: head not in color | costs,
        "What a scene takes": lambda head: head in costs,
    }
    found = {}
    for title, belongs in parts.items():
        chosen = [i for i, head in enumerate(grid.head) if i > 1 and belongs(head)]
        columns = [0, 1, *chosen] if title == "Means" else [0, *chosen]
        if chosen:
            head = [grid.head[i] for i in columns]
            rows = [[row[i] for i in columns] for row in grid.rows]
            found[title] = Grid(head, rows, grid.note if costs & set(head) else "")
    return found


def write_markdown(grid: Grid) -> str:
    """The grid as a table of GitHub's Markdown; the best is bold."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def write(cell: Cell) -> str:
        text = _escape_markdown(cell.text)
        return f"**{text}**" if cell.best else text

    rules = ["---", *["--:"] * (len(grid.head) - 1)]
    head = line([_escape_markdown(text) for text in grid.head])
    body = [line([write(cell) for cell in row]) for row in grid.rows]
    note = ["", _escape_markdown(grid.note)] if grid.note else []
    return "\n".join([head, line(rules), *body, *note]) + "\n"


def write_latex(grid: Grid) -> str:
    """The grid as a tabular of the package booktabs; the best is bold."""

    def line(cells: Sequence[str]) -> str:
        return f"  {' & '.join(cells)} \\\\"

    def write(cell: Cell) -> str:
        text = _escape_latex(cell.text)
        return f"\\textbf{{{text}}}" if cell.best else text

    width = len(grid.head)
    note = rf"  \multicolumn{{{width}}}{{l}}{{\footnotesize {_escape_latex(grid.note)}}} \\"
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            f"\\begin{{tabular}}{{l{'r' * (width - 1)}}}",
            r"  \toprule",
            line([_escape_latex(text) for text in grid.head]),
            r"  \midrule",
            *(line([write(cell) for cell in row]) for row in grid.rows),
            r"  \bottomrule",
            *([note] if grid.note else []),
            r"\end{tabular}",
            "",
        ]
    )


def _escape_markdown(text: str) -> str:
    text = re.sub(r"([\\`*_\[\]|~])", r"\\\1", _one_line(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _escape_latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())
