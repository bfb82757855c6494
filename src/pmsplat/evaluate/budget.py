"""A prediction with fewer Gaussians, as many as a viewer or a phone can draw."""

from ..errors import UserError
from ..types import Gaussians


def reduce_gaussians(gaussians: Gaussians, budget: int) -> Gaussians:
    """At most `budget` Gaussians in their place: those with most opacity times face-on area.

    UserError for a budget larger than what there is.
    """
    total = gaussians.means.shape[1]
    if budget > total:
        raise UserError(
            f"`gaussians={budget}` for a scene of {total} Gaussians",
            "at most as many",
            f"leave out {budget}: all of them are measured anyway",
        )
    areas = gaussians.scales.topk(2).values.prod(dim=-1)
    largest = (gaussians.opacities * areas).topk(budget, sorted=False).indices
    return gaussians.take(largest.sort().values)
