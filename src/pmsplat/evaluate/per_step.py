"""The metrics of an encoder that works in steps, before the first of them and after each.

"psnr_step2" is the PSNR after two steps; the one after the last step is that of the answer.
"""

import re
from collections.abc import Mapping, Sequence

from rich.table import Table

METRICS = {"psnr": ("PSNR ↑", 2), "ssim": ("SSIM ↑", 3), "lpips": ("LPIPS ↓", 3)}
_NAME = re.compile(rf"({'|'.join(METRICS)})_step(\d+)")


def name_steps(levels: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of each level, the initial one first, by name and step."""
    return {
        f"{metric}_step{step}": values[metric]
        for step, values in enumerate(levels)
        for metric in METRICS
        if metric in values
    }


def step_columns(steps: int) -> dict[str, tuple[str, int]]:
    """Those of a file of results for an encoder that takes so many steps; no table has them."""
    return {
        f"{metric}_step{step}": ("", decimals)
        for step in range(steps + 1)
        for metric, (_, decimals) in METRICS.items()
    }


def step_table(means: Mapping[str, float], title: str = "") -> Table | None:
    """A line for each step, of the means of a result; None where it has no steps."""
    rows: dict[int, dict[str, float]] = {}
    for name, value in means.items():
        if found := _NAME.fullmatch(name):
            rows.setdefault(int(found[2]), {})[found[1]] = value
    if not rows:
        return None
    drawn = Table(title=title or None)
    drawn.add_column("steps", justify="right")
    shown = [metric for metric in METRICS if any(metric in row for row in rows.values())]
    for metric in shown:
        drawn.add_column(METRICS[metric][0], justify="right")
    for step, row in sorted(rows.items()):
        cells = [f"{row[m]:.{METRICS[m][1]}f}" if m in row else "–" for m in shown]
        drawn.add_row(str(step), *cells)
    return drawn
