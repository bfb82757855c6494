"""Two methods on the same scenes: the differences of their metrics, and how sure those are.

Scenes differ far more than methods do, so each scene is compared with itself. The interval is that
of the percentile bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter
13): scenes are drawn with replacement, as many as there are, and the mean difference is taken of
each draw. Scenes are drawn and not targets, since those of one scene are not independent.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from ..io.files import write_text
from .report import ALIGNED, COLUMNS, GEOMETRY
from .runs import Run, check_comparable

RESAMPLES, CONFIDENCE, SEED = 10_000, 0.95, 0
FEWEST = 6  # scenes: of five, all may be on one side of 0 by chance, once in 16 times
AT_ONCE = 1 << 22  # scenes drawn at a time: bounds memory
SHOWN = {name: column for name, column in (COLUMNS | ALIGNED | GEOMETRY).items() if column[0]}


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`; NaN where one scene alone says nothing."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A metric of `method` and of `against`: means over the `scenes` that both have, and the mean
    difference, `method` minus `against`, from `low` to `high` with CONFIDENCE."""

    method: str
    against: str
    metric: str
    scenes: int
    mean: float
    against_mean: float
    difference: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether the interval is on one side of 0, and of FEWEST scenes or more."""
        return self.scenes >= FEWEST and (self.low > 0 or self.high < 0)


def compare(method: Run, against: Run, seed: int = SEED) -> list[Difference]:
    """The differences of all metrics that both have in some scene, over the scenes that both have.

    Raises UserError as `runs.check_comparable` does.
    """
    check_comparable([method, against])
    ours, theirs = ({row.scene: row.values for row in some.rows} for some in (method, against))
    found = []
    for metric in SHOWN:
        common = [s for s in ours if metric in ours[s] and metric in theirs.get(s, ())]
        if not common:
            continue
        pairs = [(ours[scene][metric], theirs[scene][metric]) for scene in common]
        differences = torch.tensor([a - b for a, b in pairs], dtype=torch.float64)
        interval = bootstrap_mean(differences, torch.Generator().manual_seed(seed))
        means = mean(a for a, _ in pairs), mean(b for _, b in pairs)
        difference = differences.mean().item()
        found.append(
            Difference(
                method.name, against.name, metric, len(common), *means, difference,
                interval.low, interval.high,
            )
        )  # fmt: skip
    return found


def bootstrap_mean(
    values: Float[Tensor, " scene"],
    generator: torch.Generator,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The interval of the mean of `values`, drawn `resamples` times: its percentiles."""
    count = len(values)
    if count < 2:
        return Interval(float("nan"), float("nan"))
    means = []
    for start in range(0, resamples, step := max(1, AT_ONCE // count)):
        draws = min(step, resamples - start)
        chosen = torch.randint(count, (draws, count), generator=generator)
        means.append(values[chosen].mean(dim=1))
    tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=values.dtype)
    return Interval(*torch.cat(means).quantile(tails).tolist())


def write_differences(path: str | Path, differences: Sequence[Difference]) -> None:
    """Writes them as JSON, with what the interval is; NaN becomes null."""
    rows = [
        {k: None if v != v else v for k, v in asdict(difference).items()}
        for difference in differences
    ]
    content = {
        "interval": "percentile bootstrap of the mean difference, scenes drawn with replacement",
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "seed": SEED,
        "differences": rows,
    }
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def difference_table(differences: Sequence[Difference]) -> Table:
    """A line for each metric of a method against another; * where it is `sure`."""
    first = differences[0]
    drawn = Table(title=f"{first.method} minus {first.against}, scene by scene")
    for heading in ("", "difference", f"{CONFIDENCE:.0%} interval", "scenes"):
        drawn.add_column(heading, justify="right" if heading else "left")
    for one in differences:
        heading, decimals = SHOWN[one.metric]
        digits = f"+.{decimals + 1}f"
        interval = f"{one.low:{digits}} … {one.high:{digits}}" if one.low == one.low else "–"
        mark = "*" if one.sure else " "
        drawn.add_row(heading, f"{one.difference:{digits}}{mark}", interval, str(one.scenes))
    drawn.caption = f"* the interval excludes 0, of {FEWEST} scenes or more"
    return drawn
