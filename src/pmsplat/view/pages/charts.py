"""The parts of charts as SVG, and histograms.

Drawn about as large as a phone shows them, so that letters stay legible; colors are those of the
style sheet (`fill-1` and so on), so that charts follow the reader's light or dark theme.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from .markup import Markup, join, tag

WIDTH, MARGIN = 360, 12  # of every chart, in units of the page's pixels
AXIS = 26  # height of the axis below
TALL = 190  # height of a histogram
BARS = 12  # of a histogram, at most about
TITLED = 120  # most marks that have a tooltip of their own


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
    """Of one value: x, y, width and height, a number of the palette, and a tooltip."""

    box: tuple[float, float, float, float]
    color: int
    title: str


def draw_histogram(
    values: Sequence[float], label: str, what: str, unit: str = "", color: int = 1
) -> Markup:
    """How many values lie in each of some equal steps between round numbers, and the median.

    `label` and `unit` say what is measured, `what` in the plural what is counted.
    """
    left, top, bottom = 34.0, 26.0, TALL - AXIS - 0.0
    low, step, counts = _count_bins(values)
    high = low + step * len(counts)
    across = Axis(low, high, left, WIDTH - MARGIN)
    up = Axis(0, max(counts) * 1.08, bottom, top)
    bars = []
    for i, count in enumerate(counts):
        start, end = across.at(low + i * step), across.at(low + (i + 1) * step)
        name = f"{_write(low + i * step)} to {_write(low + (i + 1) * step)}{unit}: {count} {what}"
        bars.append(
            Mark((start + 1, up.at(count), end - start - 2, bottom - up.at(count)), color, name)
        )
    middle = median(values)
    at = across.at(middle)
    side = "end" if at > 0.6 * WIDTH else "begin"
    said = (
        f"{label} of {len(values)} {what}: {_write(min(values))} to {_write(max(values))}{unit}, "
        f"median {_write(middle)}{unit}."
    )
    whole = [tick for tick in up.ticks if tick == round(tick)]
    return draw_svg(
        TALL,
        said,
        *(draw_line(left, WIDTH - MARGIN, up.at(t), up.at(t), "grid") for t in whole),
        *(draw_text(left - 6, up.at(t) + 4, f"{t:.0f}", "small end") for t in whole),
        draw_boxes([bar for bar in bars if bar.box[3] > 0]),
        draw_line(left, WIDTH - MARGIN, bottom, bottom, "axis"),
        *(draw_text(across.at(t), bottom + 14, _write(t), "small middle") for t in across.ticks),
        draw_line(at, at, top - 8, bottom, "median"),
        draw_text(
            at + (-5 if side == "end" else 5), top - 12, f"median {_write(middle)}{unit}", side
        ),
    )


def _count_bins(values: Sequence[float]) -> tuple[float, float, list[int]]:
    """The lower end of the first bin, the width of all, and the values in each."""
    low, high = min(values), max(values)
    step = Axis(low, high, 0, 1).step if high > low else max(1.0, abs(low) / 10)
    step = step / 2 if (high - low) / step < BARS / 2 and step / 2 >= _finest(values) else step
    first = math.floor(low / step)
    counts = [0] * (math.floor(high / step) - first + 1)
    for value in values:
        counts[math.floor(value / step) - first] += 1
    return first * step, step, counts


def _finest(values: Sequence[float]) -> float:
    """The narrowest bin that makes sense: one, for whole numbers."""
    return 1.0 if all(float(value).is_integer() for value in values) else 0.0


def _write(value: float) -> str:
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", "−")


def draw_boxes(marks: Sequence[Mark]) -> Markup:
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


def draw_points(marks: Sequence[Mark]) -> Markup:
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


def draw_x_axis(axis: Axis, y: float, label: str) -> Markup:
    ticks = [draw_text(axis.at(t), y + 10, axis.write(t), "small middle") for t in axis.ticks]
    lines = [draw_line(axis.at(t), axis.at(t), MARGIN, y - 3, "grid") for t in axis.ticks]
    return join([*lines, *ticks, draw_text(axis.end, y + 23, label, "small end")])


def draw_y_axis(axis: Axis, x: float) -> Markup:
    ticks = [draw_text(x - 6, axis.at(t) + 4, axis.write(t), "small end") for t in axis.ticks]
    lines = [draw_line(x, WIDTH - MARGIN, axis.at(t), axis.at(t), "grid") for t in axis.ticks]
    return join([*lines, *ticks])


def draw_svg(height: float, said: str, *children: Markup) -> Markup:
    return tag(
        "svg", *children, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=said,
        class_="chart",
    )  # fmt: skip


def draw_line(x1: float, x2: float, y1: float, y2: float, kind: str) -> Markup:
    return tag("line", x1=x1, x2=x2, y1=y1, y2=y2, class_=kind)


def draw_text(x: float, y: float, text: str, kind: str) -> Markup:
    return tag("text", text, x=x, y=y, class_=kind)
