"""Where the released networks differ from what they mean to compute.

Weights work only with the arithmetic that they were trained with, faults included, so each fault is
a switch of its own. A new model has none of them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import UserError


@dataclass(frozen=True)
class Deviations:
    """The faults that a model reproduces; `released` has those of the released weights.

    `reference_K`: the plane sweep projects into every view with the intrinsics of the view that
    looks. `pixel_corners`: the sweep's rays go through the corners of pixels, not their centres.
    `mask_by_view`: the mask of shifted windows is repeated as if the keys were ordered by view, but
    they are ordered by pixel (it acts on three views and more). `sh_basis`: harmonics are in the
    basis of the released renderer, which is the standard one seen along (z, x, y), draws function
    14 wrongly and does not draw degree 4. `sh_signs`: harmonics are turned with the wrong sign
    where m is odd. `along_ray`: the predicted depth is z in the sweep, but a distance along the ray
    where the Gaussians are placed. `hard_clamp`: a depth that left the range of near and far gets
    no gradient, so it never returns.
    """

    reference_K: bool = False
    pixel_corners: bool = False
    mask_by_view: bool = False
    sh_basis: bool = False
    sh_signs: bool = False
    along_ray: bool = False
    hard_clamp: bool = False

    @staticmethod
    def released(along_ray: bool) -> "Deviations":
        """What released weights were trained with; `along_ray` differs between the releases."""
        return Deviations(
            reference_K=True,
            pixel_corners=True,
            mask_by_view=True,
            sh_basis=True,
            sh_signs=True,
            along_ray=along_ray,
            hard_clamp=True,
        )


def expand_published(settings: dict[str, Any], released: Deviations) -> dict[str, Any]:
    """Settings in which `published: true` stands for all deviations of the released weights.

    Deviations that are set beside it win. Checkpoints had that one setting before there were
    several.
    """
    given = dict(settings)
    published = given.pop("published", False)
    if not isinstance(published, bool):
        raise UserError(
            f"model.published={published}",
            "true or false",
            "set it to true, or single deviations, such as model.deviations.reference_K=true",
        )
    own = given.get("deviations", {})
    if isinstance(own, Deviations):
        own = asdict(own)
    if published and isinstance(own, Mapping):
        given["deviations"] = {**asdict(released), **own}
    return given
