"""The report of one or more runs on the same scenes: one page, and tables to copy."""

from collections.abc import Sequence
from pathlib import Path

from ...io.files import write_text
from ...view.pages.frame import PAGE, Page, Section, check_place, write_page
from ...view.pages.markup import Markup, escape, join, tag
from ...view.pages.splats import SCRIPTS
from ..compare import Difference, compare
from ..pictures import Pictures, read_pictures
from ..runs import RESULTS, Protocol, Run, check_comparable, common_scenes
from ._charts import Pair, Series, draw_differences, draw_distributions, draw_scatter, pair_scenes
from ._gallery import Images, choose_exhibits, list_paths, write_exhibit, write_legend
from ._metrics import MAIN, METRICS, MISSING, UNITS, Metric
from ._plain import Grid, split, tabulate, write_latex, write_markdown
from ._tables import (
    color,
    named,
    say_count,
    scrolling,
    swatch,
    write_facts,
    write_grid,
    write_protocol,
    write_scenes,
)
from ._tours import choose_tours, say_what_is_left_out

MARKDOWN, LATEX = "table.md", "table.tex"


def write_report(folder: Path, runs: Sequence[Run]) -> Path:
    """Writes index.html, table.md and table.tex into a folder; the path of the page.

    Means are over the scenes that all runs have. Pictures are those beside the files of results; of
    more than a few megabytes, they are copied into the folder. Raises UserError for runs that do
    not compare (see `runs.check_comparable`), damaged pictures, and a folder with another page.
    """
    check_comparable(runs)
    check_place(folder / PAGE)
    scenes = common_scenes(runs)
    shared = [run.at(scenes) for run in runs]
    exhibits = choose_exhibits(shared, [_find_pictures(run) for run in runs])
    images = Images(folder, list_paths(exhibits))
    grid = tabulate(shared)
    captions = {"Means": _say_means(runs, scenes)}
    tables = [write_grid(t, title, captions.get(title)) for title, t in split(grid).items()]
    means = join([_write_tiles(shared), *tables])
    sections = [
        Section("results", "Results", means),
        Section("distributions", "Distributions", _write_distributions(shared)),
    ]
    if len(runs) > 1:
        sections.append(Section("differences", "Paired differences", _write_differences(shared)))
    tours = choose_tours([exhibit.pictures for exhibit in exhibits])
    shown = [write_exhibit(exhibit, shared, images, tours.held) for exhibit in exhibits]
    gallery = _say_no_pictures()
    if shown:
        gallery = join([write_legend(), say_what_is_left_out(tours, shared), *shown])
    links = {exhibit.scene: exhibit.id for exhibit in exhibits}
    facts = [write_facts(i, run) for i, run in enumerate(runs)]
    sections += [
        Section("scenes", "Scenes to look at", gallery),
        Section("every-scene", "Every scene", write_scenes(shared, links)),
        Section("sources", "Where the numbers come from", tag("div", *facts, class_="cards")),
        Section("copy", "Tables to copy", _write_copies(grid)),
    ]
    write_text(folder / MARKDOWN, write_markdown(grid))
    write_text(folder / LATEX, write_latex(grid))
    scripts = SCRIPTS if tours.held else ()
    page = Page(
        "pmsplat evaluation", _name_page(runs), _introduce(shared), sections, scripts=scripts
    )
    return write_page(folder / PAGE, page)


def _find_pictures(run: Run) -> dict[str, Pictures]:
    """Those beside results.json; files of baselines in the same folder have none."""
    return read_pictures(run.folder) if run.path.name == RESULTS else {}


def _name_page(runs: Sequence[Run]) -> str:
    if len(runs) == 2:
        return f"{runs[0].name} and {runs[1].name}"
    return runs[0].name if len(runs) == 1 else f"{runs[0].name} and {len(runs) - 1} others"


def _introduce(runs: Sequence[Run]) -> Markup:
    """What was measured, in a sentence and a line of labels."""
    protocol = max((run.protocol for run in runs), key=_count_known)
    targets = sum(row.targets for row in runs[0].rows)
    scenes = say_count(len(runs[0].rows), "scene")
    said = f"{say_count(targets, 'target view')} of {scenes} ({protocol.title})."
    dataset = [f"dataset {protocol.dataset}"] if protocol.dataset else []
    return join([tag("p", said, class_="lead"), write_protocol(protocol, *dataset)])


def _count_known(protocol: Protocol) -> int:
    return sum(value is not None for value in vars(protocol).values())


def _write_tiles(runs: Sequence[Run]) -> Markup:
    """The main means, large."""
    means = [run.means for run in runs]
    tiles = []
    for metric in (METRICS[key] for key in MAIN):
        values = [mean.get(metric.key) for mean in means]
        if all(value is None for value in values):
            continue
        best, lines = metric.best(values), []
        for i, (run, value) in enumerate(zip(runs, values, strict=True)):
            kind = "best" if len(runs) > 1 and metric.is_best(value, best) else None
            figure = tag("span", metric.write(value), class_="figure")
            name = tag("span", named(i, run.name), class_="whose")
            lines.append(tag("li", figure, name, class_=kind))
        unit = f"{UNITS.get(metric.key, '')} {'higher' if metric.rises else 'lower'} is better"
        heading = tag("h3", metric.label, " ", tag("small", unit.strip().replace("dB ", "dB, ")))
        tiles.append(tag("article", heading, tag("ul", *lines), class_="card tile"))
    return tag("div", *tiles, class_="cards tiles")


def _say_means(runs: Sequence[Run], scenes: Sequence[str]) -> str:
    """What the means are over; and what was left out of them."""
    said = "Means over targets, then over scenes; the best is bold."
    more = [f"{run.name} {len(run.rows):,}" for run in runs if len(run.rows) > len(scenes)]
    if more:
        said += f" Only the {len(scenes):,} scenes that all have count ({', '.join(more)})."
    for run in runs:
        if run.coverage is not None and not run.coverage.complete:
            said += f" {run.name}: {run.coverage.said}."
    return said


def _write_distributions(runs: Sequence[Run]) -> Markup:
    """A chart for each main metric: over views where every run knows them, else over scenes."""
    cards = []
    for metric in (METRICS[key] for key in MAIN):
        key = metric.key
        by_view = [[view.values[key] for view in run.views if key in view.values] for run in runs]
        by_scene = [[row.values[key] for row in run.rows if key in row.values] for run in runs]
        what = "views" if all(by_view) else "scenes"
        values = by_view if all(by_view) else by_scene
        series = [
            Series(run.name, color(i), found)
            for i, (run, found) in enumerate(zip(runs, values, strict=True))
            if found
        ]
        if series:
            title = tag("h3", metric.label, " ", tag("small", f"of all {what}"))
            cards.append(
                tag("article", title, draw_distributions(metric, series, what), class_="card")
            )
    return tag("div", *cards, class_="cards charts")


def _write_differences(runs: Sequence[Run]) -> Markup:
    """Each other run against the first, scene by scene."""
    first = runs[0]
    parts = [
        tag(
            "p",
            "Differences are to ",
            tag("strong", named(0, first.name)),
            ", scene by scene. Intervals hold 95 % of the means of scenes drawn anew (bootstrap). "
            "A bar or dot has the color of the run that is better in its scene.",
        )
    ]
    for i, other in enumerate(runs[1:], start=1):
        found = {METRICS[d.metric]: d for d in compare(other, first) if d.metric in MAIN}
        paired = {metric: pair_scenes(metric, first, other) for metric in found}
        if not paired:
            continue
        rows = [_difference_row(metric, found[metric], pairs) for metric, pairs in paired.items()]
        heads = ("mean difference", "95 % interval", "better in", "equal in")
        table = tag(
            "table",
            tag("caption", tag("span", f"{other.name} minus {first.name}")),
            tag("thead", tag("tr", tag("td"), *(tag("th", head, scope="col") for head in heads))),
            tag("tbody", *rows),
            class_="numbers",
        )  # fmt: skip
        colors = (color(0), color(i))
        charts = [
            _chart_card(f"{metric.label}, sorted", "difference of each scene",
                        draw_differences(metric, pairs, colors))
            for metric, pairs in paired.items() if metric.key != "ssim"
        ]  # fmt: skip
        metric, pairs = next(iter(paired.items()))
        scatter = draw_scatter(metric, pairs, (first.name, other.name), colors)
        charts.append(_chart_card(f"{metric.label}, scene by scene", "of both runs", scatter))
        parts += [
            tag("h3", swatch(i), " ", other.name, " against ", swatch(0), " ", first.name),
            scrolling(table, f"{other.name} minus {first.name}"),
            tag("div", *charts, class_="cards charts"),
        ]
    return join(parts)


def _chart_card(title: str, more: str, chart: Markup) -> Markup:
    return tag("article", tag("h4", title, " ", tag("small", more)), chart, class_="card")


def _difference_row(metric: Metric, found: Difference, pairs: Sequence[Pair]) -> Markup:
    mean, known = metric.write(found.difference, sign=True), found.low == found.low
    interval = f"{metric.write(found.low, True)} to {metric.write(found.high, True)}"
    better = sum((p.second > p.first) if metric.rises else (p.second < p.first) for p in pairs)
    return tag(
        "tr",
        tag("th", metric.heading, scope="row"),
        tag("td", tag("strong", mean) if found.sure else mean),
        tag("td", interval if known else MISSING),
        tag("td", f"{better:,} of {found.scenes:,}"),
        tag("td", f"{sum(p.second == p.first for p in pairs):,}"),
    )


def _say_no_pictures() -> Markup:
    return tag(
        "p",
        "There are no pictures beside these results. ",
        tag("code", "pmsplat evaluate … --report DIR"),
        " writes those of the worst, the median and the best scenes.",
        class_="empty",
    )


def _write_copies(grid: Grid) -> Markup:
    """Both tables as text, each with a button."""
    cards = []
    for name, file, text in (
        ("Markdown", MARKDOWN, write_markdown(grid)),
        ("LaTeX", LATEX, write_latex(grid)),
    ):
        button = tag(
            "button", f"Copy {name}", type="button", class_="copy", hidden=True, aria_live="polite"
        )
        link = tag("a", file, href=file)
        code = tag("pre", escape(text), tabindex="0", role="region", aria_label=f"{name} table")
        head = tag("div", tag("h3", name), link, button, class_="bar-of-copy")
        cards.append(tag("article", head, code, class_="card"))
    return tag("div", *cards, class_="cards wide")
