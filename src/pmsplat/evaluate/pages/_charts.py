"""Charts of runs: distributions, paired differences, one run against another."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from ...view.pages.charts import (
    AXIS,
    MARGIN,
    WIDTH,
    Axis,
    Mark,
    draw_boxes,
    draw_line,
    draw_points,
    draw_svg,
    draw_text,
    draw_x_axis,
    draw_y_axis,
)
from ...view.pages.markup import Markup, join, tag
from ..runs import Run
from ._metrics import UNITS, Metric

ROW, PLOT = 66, 38  # heights: of a run, of its dots or bars in it
DOTS = 60  # most values that are drawn one by one; more become bars
BINS = 40
TALL = 270  # height of charts of pairs
LETTERS = 34  # most letters of a name in a chart


@dataclass(frozen=True)
class Series:
    """The values of a run; `color` is its number in the palette."""

    name: str
    color: int
    values: Sequence[float]


@dataclass(frozen=True)
class Pair:
    """A scene's values by two runs."""

    scene: str
    first: float
    second: float


def pair_scenes(metric: Metric, first: Run, second: Run) -> list[Pair]:
    """The scenes that have the metric in both runs, in the order of the first."""
    other = second.by_scene
    return [
        Pair(row.scene, row.values[metric.key], other[row.scene].values[metric.key])
        for row in first.rows
        if metric.key in row.values and row.scene in other and metric.key in other[row.scene].values
    ]


def draw_distributions(metric: Metric, series: Sequence[Series], what: str) -> Markup:
    """A row for each run: every value a dot, of many a histogram, and the median.

    `what` is counted: views or scenes.
    """
    every = [value for one in series for value in one.values]
    axis = Axis.around(every, MARGIN, WIDTH - MARGIN)
    bottom = ROW * len(series)
    rows = [
        tag("g", _draw_row(metric, one, axis), transform=f"translate(0 {ROW * i})")
        for i, one in enumerate(series)
    ]
    said = "; ".join(
        f"{one.name}: {len(one.values)} {what} from {metric.write(min(one.values))} to "
        f"{metric.write(max(one.values))}, median {metric.write(median(one.values))}"
        for one in series
    )
    unit = UNITS.get(metric.key, "")
    name = f"{metric.label},{unit}" if unit else metric.label
    return draw_svg(
        bottom + AXIS,
        f"Distribution of {metric.label}. {said}.",
        draw_x_axis(axis, bottom, f"{name} {metric.arrow}"),
        *rows,
    )


def draw_differences(metric: Metric, pairs: Sequence[Pair], colors: tuple[int, int]) -> Markup:
    """A bar for each scene, sorted: second minus first, in the color of the run that is better."""
    height, top = TALL, 24
    differences = sorted(((p.second - p.first, p) for p in pairs), key=lambda d: -d[0])
    values = [value for value, _ in differences]
    axis = Axis.around([0.0, *values], height - 8, top)
    left = 44
    width = (WIDTH - MARGIN - left) / len(values)
    gap = min(2.0, 0.2 * width)
    bars = []
    for i, (value, pair) in enumerate(differences):
        low, high = sorted((axis.at(0), axis.at(value)))
        box = (left + i * width + gap / 2, low, max(width - gap, 0.4), max(high - low, 0.6))
        better = colors[int((value > 0) == metric.rises)]
        bars.append(Mark(box, better, f"{pair.scene}: {metric.write(value, sign=True)}"))
    middle = axis.at(mean(values))
    # Bars stand on the left and hang on the right, so the other corners are free for the label.
    label, kind = ((WIDTH - MARGIN, middle - 5), "strong end")
    if mean(values) < 0:
        label, kind = ((left + 2, middle + 14), "strong")
    marks = [
        draw_line(left, WIDTH - MARGIN, axis.at(0), axis.at(0), "axis"),
        draw_line(left, WIDTH - MARGIN, middle, middle, "mean"),
        draw_text(*label, f"mean {metric.write(mean(values), True)}", kind),
    ]
    said = (
        f"Differences in {metric.label} of {len(values)} scenes, sorted, from "
        f"{metric.write(values[0], True)} to {metric.write(values[-1], True)}, mean "
        f"{metric.write(mean(values), True)}."
    )
    return draw_svg(height, said, draw_y_axis(axis, left), draw_boxes(bars), *marks)


def draw_scatter(
    metric: Metric, pairs: Sequence[Pair], names: tuple[str, str], colors: tuple[int, int]
) -> Markup:
    """A dot for each scene: across by the first run, up by the second; on the line both agree."""
    left, bottom = 44, TALL - AXIS
    every = [value for pair in pairs for value in (pair.first, pair.second)]
    across = Axis.around(every, left, WIDTH - MARGIN)
    up = Axis.around(every, bottom, MARGIN)
    dots = []
    for pair in pairs:
        better = colors[int((pair.second > pair.first) == metric.rises)]
        title = f"{pair.scene}: {metric.write(pair.first)} and {metric.write(pair.second)}"
        place = (across.at(pair.first), up.at(pair.second), 0.0, 0.0)
        dots.append(Mark(place, better, title))
    ahead = sum((p.second > p.first) == metric.rises and p.second != p.first for p in pairs)
    said = (
        f"{metric.label} of {len(pairs)} scenes, {names[0]} across and {names[1]} up; "
        f"{names[1]} is better in {ahead}."
    )
    return draw_svg(
        TALL,
        said,
        draw_x_axis(across, bottom, f"{_shorten(names[0])}"),
        draw_y_axis(up, left),
        draw_text(left + 4, MARGIN + 6, f"↑ {_shorten(names[1])}", f"small text-{colors[1]}"),
        tag("line", x1=left, y1=bottom, x2=WIDTH - MARGIN, y2=MARGIN, class_="diagonal"),
        draw_points(dots),
    )


def _draw_row(metric: Metric, one: Series, axis: Axis) -> Markup:
    """Name and median above, dots or bars below."""
    base, middle = ROW - 8.0, axis.at(median(one.values))
    draw = _draw_dots if len(one.values) <= DOTS else _draw_bars
    return join(
        [
            tag("circle", cx=MARGIN + 4, cy=9, r=4, class_=f"fill-{one.color}"),
            draw_text(MARGIN + 13, 13, _shorten(one.name), "name"),
            draw_text(WIDTH - MARGIN, 13, f"median {metric.write(median(one.values))}", "end"),
            draw_line(axis.start, axis.end, base, base, "axis"),
            draw(one, axis, base),
            draw_line(middle, middle, base - PLOT, base + 3, "median"),
        ]
    )


def _draw_dots(one: Series, axis: Axis, base: float) -> Markup:
    """Dots of close values are stacked."""
    radius = 3.6
    stacks: dict[int, list[float]] = {}
    for value in sorted(one.values):
        stacks.setdefault(round(axis.at(value) / (2 * radius)), []).append(axis.at(value))
    step = min(2 * radius, (PLOT - 2 * radius) / max(1, max(map(len, stacks.values())) - 1))
    return join(
        tag("circle", cx=x, cy=base - radius - i * step, r=radius, class_=f"fill-{one.color} dot")
        for stack in stacks.values()
        for i, x in enumerate(stack)
    )


def _draw_bars(one: Series, axis: Axis, base: float) -> Markup:
    """A histogram; its highest bar is as high as the row."""
    width = (axis.end - axis.start) / BINS
    counts = [0] * BINS
    for value in one.values:
        counts[min(BINS - 1, int((axis.at(value) - axis.start) / width))] += 1
    return join(
        tag(
            "rect",
            x=axis.start + i * width + 0.5,
            y=base - PLOT * count / max(counts),
            width=width - 1,
            height=PLOT * count / max(counts),
            class_=f"fill-{one.color}",
        )
        for i, count in enumerate(counts)
        if count
    )


def _shorten(name: str) -> str:
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"
