"""The metrics of an encoder that is measured several times, by the number on which they depend.

"psnr_step2" is the PSNR of an encoder that works in steps after two of them; the one after the last
is that of the answer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rich.table import Table

METRICS = {"psnr": ("PSNR ↑", 2), "ssim": ("SSIM ↑", 3), "lpips": ("LPIPS ↓", 3)}
Rows = Mapping[int, Mapping[str, float]]  # metrics by name, at each number of a series


@dataclass(frozen=True)
class Series:
    """A number on which metrics depend: `word` in their names, `heading` in tables."""

    word: str
    heading: str

    def names(self, rows: Rows) -> dict[str, float]:
        """The metrics at each number, by name and number."""
        return {
            f"{metric}_{self.word}{number}": values[metric]
            for number, values in rows.items()
            for metric in METRICS
            if metric in values
        }

    def rows(self, means: Mapping[str, float]) -> dict[int, dict[str, float]]:
        """The inverse of `names`, of the means of a result: from the smallest number on."""
        pattern = re.compile(rf"({'|'.join(METRICS)})_{self.word}(\d+)")
        rows: dict[int, dict[str, float]] = {}
        for name, value in means.items():
            if found := pattern.fullmatch(name):
                rows.setdefault(int(found[2]), {})[found[1]] = value
        return dict(sorted(rows.items()))

    def table(self, rows: Rows, title: str = "") -> Table | None:
        """A line for each number; None where there is none."""
        if not rows:
            return None
        drawn = Table(title=title or None)
        drawn.add_column(self.heading, justify="right")
        shown = [metric for metric in METRICS if any(metric in row for row in rows.values())]
        for metric in shown:
            drawn.add_column(METRICS[metric][0], justify="right")
        for number, row in rows.items():
            cells = [f"{row[m]:.{METRICS[m][1]}f}" if m in row else "–" for m in shown]
            drawn.add_row(str(number), *cells)
        return drawn


STEPS = Series("step", "steps")
