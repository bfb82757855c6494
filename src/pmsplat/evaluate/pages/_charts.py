"""Charts as SVG: distributions, paired differences, one run against another.

Drawn about as large as a phone shows them, so that letters stay legible; colors are those of the
style sheet (`series-1` and so on), so that charts follow the reader's light or dark theme.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median

from ..runs import Run
from ._markup import Markup, join, tag
from ._metrics import UNITS, Metric

WIDTH, MARGIN = 360, 12  # of every chart, in units of the page's pixels
ROW, PLOT, AXIS = 66, 38, 26  # heights: of a run, of its dots or bars in it, of the axis below
DOTS = 60  # most values that are drawn one by one; more become bars
BINS = 40
TALL = 270  # height of charts of pairs
TITLED = 120  # most marks that have a tooltip of their own
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


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` along pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float) -> "Axis":
        """With a little room at both ends, also where all values are equal."""
        low, high = min(values), max(values)
        room = 0.04 * (high - low) or 0.01 * abs(high) or 0.01
        return cls(low - room, high + room, start, end)

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def step(self) -> float:
        """Between ticks: 1, 2 or 5 times a power of ten, four to eight of them."""
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.75 * rough)

    @property
    def ticks(self) -> list[float]:
        first, last = math.ceil(self.low / self.step), math.floor(self.high / self.step)
        return [i * self.step for i in range(first, last + 1)]

    def write(self, tick: float) -> str:
        digits = max(0, -math.floor(math.log10(self.step)))
        return f"{tick:.{digits}f}".replace("-", "−")


@dataclass(frozen=True)
class Mark:
    """Of one scene: x, y, width and height, a number of the palette, and a tooltip."""

    box: tuple[float, float, float, float]
    color: int
    title: str


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
    return _svg(
        bottom + AXIS,
        f"Distribution of {metric.label}. {said}.",
        _draw_x_axis(axis, bottom, f"{name} {metric.arrow}"),
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
        _line(left, WIDTH - MARGIN, axis.at(0), axis.at(0), "axis"),
        _line(left, WIDTH - MARGIN, middle, middle, "mean"),
        _text(*label, f"mean {metric.write(mean(values), True)}", kind),
    ]
    said = (
        f"Differences in {metric.label} of {len(values)} scenes, sorted, from "
        f"{metric.write(values[0], True)} to {metric.write(values[-1], True)}, mean "
        f"{metric.write(mean(values), True)}."
    )
    return _svg(height, said, _draw_y_axis(axis, left), _draw_boxes(bars), *marks)


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
    return _svg(
        TALL,
        said,
        _draw_x_axis(across, bottom, f"{_shorten(names[0])}"),
        _draw_y_axis(up, left),
        _text(left + 4, MARGIN + 6, f"↑ {_shorten(names[1])}", f"small text-{colors[1]}"),
        tag("line", x1=left, y1=bottom, x2=WIDTH - MARGIN, y2=MARGIN, class_="diagonal"),
        _draw_points(dots),
    )


def _draw_row(metric: Metric, one: Series, axis: Axis) -> Markup:
    """Name and median above, dots or bars below."""
    base, middle = ROW - 8.0, axis.at(median(one.values))
    draw = _draw_dots if len(one.values) <= DOTS else _draw_bars
    return join(
        [
            tag("circle", cx=MARGIN + 4, cy=9, r=4, class_=f"fill-{one.color}"),
            _text(MARGIN + 13, 13, _shorten(one.name), "name"),
            _text(WIDTH - MARGIN, 13, f"median {metric.write(median(one.values))}", "end"),
            _line(axis.start, axis.end, base, base, "axis"),
            draw(one, axis, base),
            _line(middle, middle, base - PLOT, base + 3, "median"),
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


def _draw_boxes(marks: Sequence[Mark]) -> Markup:
    """Rectangles, with tooltips; of many, one path for each color."""
    if len(marks) > TITLED:
        return _draw_paths(
            marks, "fill", lambda x, y, w, h: f"M{x:.1f} {y:.1f}h{w:.1f}v{h:.1f}h-{w:.1f}z"
        )
    return join(
        tag(
            "rect", tag("title", m.title), x=m.box[0], y=m.box[1], width=m.box[2], height=m.box[3],
            class_=f"fill-{m.color}",
        )
        for m in marks
    )  # fmt: skip


def _draw_points(marks: Sequence[Mark]) -> Markup:
    """Dots, with tooltips; of many, one path for each color."""
    if len(marks) > TITLED:
        return _draw_paths(marks, "points stroke", lambda x, y, w, h: f"M{x:.1f} {y:.1f}h0")
    return join(
        tag(
            "circle", tag("title", m.title), cx=m.box[0], cy=m.box[1], r=4,
            class_=f"fill-{m.color} dot",
        )
        for m in marks
    )  # fmt: skip


def _draw_paths(
    marks: Sequence[Mark], kind: str, trace: Callable[[float, float, float, float], str]
) -> Markup:
    return join(
        tag("path", d="".join(trace(*m.box) for m in marks if m.color == c), class_=f"{kind}-{c}")
        for c in sorted({mark.color for mark in marks})
    )


def _draw_x_axis(axis: Axis, y: float, label: str) -> Markup:
    ticks = [_text(axis.at(t), y + 10, axis.write(t), "small middle") for t in axis.ticks]
    lines = [_line(axis.at(t), axis.at(t), MARGIN, y - 3, "grid") for t in axis.ticks]
    return join([*lines, *ticks, _text(axis.end, y + 23, label, "small end")])


def _draw_y_axis(axis: Axis, x: float) -> Markup:
    ticks = [_text(x - 6, axis.at(t) + 4, axis.write(t), "small end") for t in axis.ticks]
    lines = [_line(x, WIDTH - MARGIN, axis.at(t), axis.at(t), "grid") for t in axis.ticks]
    return join([*lines, *ticks])


def _svg(height: float, said: str, *children: Markup) -> Markup:
    return tag(
        "svg", *children, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=said,
        class_="chart",
    )  # fmt: skip


def _line(x1: float, x2: float, y1: float, y2: float, kind: str) -> Markup:
    return tag("line", x1=x1, x2=x2, y1=y1, y2=y2, class_=kind)


def _text(x: float, y: float, text: str, kind: str) -> Markup:
    return tag("text", text, x=x, y=y, class_=kind)


def _shorten(name: str) -> str:
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"
