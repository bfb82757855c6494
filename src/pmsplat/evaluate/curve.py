"""A metric against a quantity that is varied: what a sweep leaves behind.

sweep.json, sweep.csv, sweep.md: a line for each point and model; sweep.png: PSNR, SSIM and LPIPS.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ..io.files import atomic, write_text
from ..view.figures import Line, draw_panels
from .identity import name_precision
from .series import METRICS

GAUSSIANS = "Gaussians"


@dataclass(frozen=True)
class Point:
    """One value of the quantity, of one model: its metrics, and the file that has all of them.

    `x` is the place on the axis, None where the values are names. `scenes` were measured of
    `wanted`, None where no index says how many there are. `gaussians` are those of a scene.
    """

    model: str
    value: str
    x: float | None
    metrics: dict[str, float]
    scenes: int
    wanted: int | None
    gaussians: float | None
    results: str


@dataclass(frozen=True)
class Curve:
    """All points of a sweep, in order; `quantity` is what the axis says, `precision` that of the
    network."""

    quantity: str
    points: tuple[Point, ...]
    precision: str = "float32"

    @property
    def shown(self) -> list[str]:
        """The metrics that any point has."""
        return [name for name in METRICS if any(name in point.metrics for point in self.points)]

    def table(self) -> Table:
        """A line for each point."""
        drawn = Table()
        head, rows = self._cells()
        for i, heading in enumerate(head):
            drawn.add_column(heading, justify="right" if i else "left")
        for row in rows:
            drawn.add_row(*row)
        return drawn

    def write(self, folder: Path, title: str) -> None:
        """Writes the files into a folder."""
        points = [asdict(point) for point in self.points]
        content = {"quantity": self.quantity, "precision": self.precision, "points": points}
        write_text(folder / "sweep.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
        with atomic(folder / "sweep.csv") as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows(self._numbers())
        head, rows = self._cells()
        lines = [head, ["---"] * len(head), *rows]
        text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        write_text(folder / "sweep.md", text)
        panels = [(METRICS[name][0], self._lines(name)) for name in self.shown]
        if panels:
            title = name_precision(title, self.precision)
            draw_panels(folder / "sweep.png", panels, self.quantity, title)

    def _numbers(self) -> list[list[Any]]:
        """Headings and lines with all digits, for programs; what is not known is empty."""
        varied = [] if self.quantity == GAUSSIANS else [self.quantity]
        head = ["model", *varied, GAUSSIANS, *self.shown, "scenes", "wanted"]
        return [head, *(self._numbers_of(point, bool(varied)) for point in self.points)]

    def _numbers_of(self, point: Point, varied: bool) -> list[Any]:
        value = [point.value] if varied else []
        known = map(point.metrics.get, self.shown)
        return [point.model, *value, point.gaussians, *known, point.scenes, point.wanted]

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        """Headings and lines; the number of Gaussians only where it is not what is varied."""
        counted = [] if self.quantity == GAUSSIANS else [GAUSSIANS]
        metrics = [METRICS[name][0] for name in self.shown]
        rows = [self._cells_of(point, bool(counted)) for point in self.points]
        model = name_precision("model", self.precision)
        return [model, self.quantity, *metrics, *counted, "scenes"], rows

    def _cells_of(self, point: Point, counted: bool) -> list[str]:
        cells = [point.model, point.value]
        for name in self.shown:
            known = name in point.metrics
            cells.append(f"{point.metrics[name]:.{METRICS[name][1]}f}" if known else "–")
        if counted:
            cells.append("–" if point.gaussians is None else f"{point.gaussians:,.0f}")
        whole = point.wanted in (None, point.scenes)
        return [*cells, str(point.scenes) if whole else f"{point.scenes} of {point.wanted}"]

    def _lines(self, metric: str) -> list[Line]:
        found = []
        for model in dict.fromkeys(point.model for point in self.points):
            mine = [p for p in self.points if p.model == model and metric in p.metrics]
            labels = [point.value for point in mine]
            across = [point.x for point in mine if point.x is not None]
            places: Sequence[float] = across if len(across) == len(mine) else range(len(mine))
            values = tuple(point.metrics[metric] for point in mine)
            found.append(Line(model, tuple(places), values, tuple(labels)))
        return found
