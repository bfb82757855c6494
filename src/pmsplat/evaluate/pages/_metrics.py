"""How metrics and costs are called, written and compared on a page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..report import ALIGNED, COLUMNS, GEOMETRY, POSES
from ..runs import Run

MAIN = ("psnr", "ssim", "lpips")  # of these a page shows more than means
UNITS = {"psnr": " dB"}
MISSING = "–"
WARM_UP = "* the first scenes of a process, which take longer, are in it"


@dataclass(frozen=True)
class Metric:
    """A metric of results: `rises` where more is better; values are written with `decimals`."""

    key: str
    heading: str
    decimals: int
    rises: bool

    @property
    def label(self) -> str:
        """The heading without its arrow."""
        return self.heading.rstrip(" ↑↓")

    @property
    def arrow(self) -> str:
        return "↑" if self.rises else "↓"

    def write(self, value: float | None, sign: bool = False) -> str:
        """A value as text, a dash for none; `sign`: of a difference, with a real minus."""
        if value is None:
            return MISSING
        text = f"{value:{'+' if sign else ''}.{self.decimals}f}"
        return text.replace("-", "−")

    def best(self, values: Iterable[float | None]) -> float | None:
        """The best of some values as they are written, so that ties are ties."""
        known = [round(value, self.decimals) for value in values if value is not None]
        if not known:
            return None
        return max(known) if self.rises else min(known)

    def is_best(self, value: float | None, best: float | None) -> bool:
        return value is not None and best is not None and round(value, self.decimals) == best


@dataclass(frozen=True)
class Cost:
    """What a prediction costs: `scale` takes the unit of the file to that of the heading."""

    key: str
    heading: str
    decimals: int
    scale: float = 1.0

    def write(self, run: Run) -> str:
        """What a run took; with a star for WARM_UP."""
        value = run.cost.get(self.key)
        if value is None:
            return MISSING
        return f"{value * self.scale:,.{self.decimals}f}{' *' * self.is_marked(run)}"

    def is_marked(self, run: Run) -> bool:
        return run.warm_up and self.key.endswith("_seconds") and self.key in run.cost


METRICS = {
    key: Metric(key, heading, decimals, "↑" in heading)
    for key, (heading, decimals) in {**COLUMNS, **ALIGNED, **GEOMETRY, **POSES}.items()
    if heading
}
COSTS = (
    Cost("gaussians", "Gaussians", 0),
    Cost("megabytes", "MB", 1),
    Cost("encode_seconds", "encode, ms", 1, 1e3),
    Cost("render_seconds", "render, ms", 1, 1e3),
    Cost("peak_bytes", "peak, MiB", 0, 1 / 2**20),
)


def find_metrics(means: Sequence[Mapping[str, float]]) -> list[Metric]:
    """The metrics that any of some means has."""
    return [metric for metric in METRICS.values() if any(metric.key in m for m in means)]


def find_costs(runs: Sequence[Run]) -> list[Cost]:
    """The costs that any run knows."""
    return [cost for cost in COSTS if any(cost.key in run.cost for run in runs)]


def explain_marks(costs: Iterable[Cost], runs: Sequence[Run]) -> str:
    """What a star behind costs means; nothing where there is none."""
    return WARM_UP if any(cost.is_marked(run) for cost in costs for run in runs) else ""
