"""Two runs on the same scenes: what each scene gains, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np

from ..runs import Run
from ._charts import Pair
from ._metrics import Metric

RESAMPLES, SEED = 5000, 0
INTERVAL = (2.5, 97.5)  # percent
AT_ONCE = 4_000_000  # numbers that are drawn together: bounds memory on thousands of scenes


@dataclass(frozen=True)
class Difference:
    """Second run minus first, of one metric, over scenes.

    `low` and `high` bound 95 % of the means of scenes drawn anew (bootstrap, percentiles); `better`
    counts the scenes in which the second is better, `equal` those without a difference.
    """

    metric: Metric
    scenes: int
    mean: float
    low: float
    high: float
    better: int
    equal: int


def pair_scenes(metric: Metric, first: Run, second: Run) -> list[Pair]:
    """The scenes that have the metric in both runs, in the order of the first."""
    other = second.by_scene
    return [
        Pair(row.scene, row.values[metric.key], other[row.scene].values[metric.key])
        for row in first.rows
        if metric.key in row.values and row.scene in other and metric.key in other[row.scene].values
    ]


def compare(metric: Metric, pairs: Sequence[Pair]) -> Difference:
    """Sums up the pairs, of which there is one or more."""
    gains = np.array([pair.second - pair.first for pair in pairs])
    means = _resample(gains)
    low, high = np.percentile(means, INTERVAL).tolist()
    better = int(((gains > 0) if metric.rises else (gains < 0)).sum())
    equal = int((gains == 0).sum())
    return Difference(metric, len(pairs), mean(gains.tolist()), low, high, better, equal)


def _resample(gains: np.ndarray) -> np.ndarray:
    """The mean of each of RESAMPLES draws of as many scenes, with repetition."""
    generator = np.random.default_rng(SEED)
    rows = max(1, AT_ONCE // len(gains))
    parts = [
        gains[generator.integers(len(gains), size=(min(rows, RESAMPLES - i), len(gains)))].mean(1)
        for i in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(parts)
