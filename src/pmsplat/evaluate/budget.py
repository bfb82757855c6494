"""A prediction with fewer Gaussians, as many as a viewer or a phone can draw, and what that costs.

"psnr_gaussians50000" is the PSNR of the answer reduced to at most 50,000 Gaussians.
"""

from collections.abc import Mapping
from pathlib import Path

from ..errors import UserError
from ..types import Gaussians
from ..view.figures import draw_curve
from ..zoo.fusion import limit
from .series import METRICS, Series

BUDGETS = Series("gaussians", "Gaussians")
COUNT = "gaussians"  # how many the answer has, where it was reduced to fewer


def reduce_gaussians(gaussians: Gaussians, budget: int) -> Gaussians:
    """At most `budget` Gaussians of one scene that look like these: see `zoo.fusion.limit`.

    UserError for a budget larger than what there is.
    """
    batch, total = gaussians.opacities.shape
    assert batch == 1, "the protocol is one scene at a time"
    if budget > total:
        raise UserError(
            f"`gaussians={budget}` for a scene of {total} Gaussians",
            "at most as many",
            f"leave out {budget}: all of them are measured anyway",
        )
    return limit(gaussians, budget)


def budget_rows(means: Mapping[str, float]) -> dict[int, dict[str, float]]:
    """The metrics of an answer reduced to fewer Gaussians, and last those of all of them.

    Empty where nothing was reduced.
    """
    rows = BUDGETS.rows(means)
    if COUNT not in means:
        return rows
    whole = {metric: means[metric] for metric in METRICS if metric in means}
    return rows | {round(means[COUNT]): whole}


def draw_budgets(path: Path, means: Mapping[str, float], title: str) -> None:
    """Writes PSNR against the number of Gaussians as a picture."""
    points = [(count, values["psnr"]) for count, values in budget_rows(means).items()]
    draw_curve(path, points, ("Gaussians", "PSNR, dB"), title, log=True)
