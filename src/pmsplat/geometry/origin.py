"""A local origin for coordinates that lie far from their own, as those of maps do.

float32 has 24 bits: of a coordinate of 5 000 000 m it keeps half a meter. Coordinates are therefore
read in float64, counted from a place in their midst, and only then rounded.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_FAR = 100.0  # of the extent: nearer origins cost less than 1e-5 of the extent


def local_origin(points: Float[Tensor, "point 3"]) -> Float[Tensor, "3"]:
    """A place in the midst of points from which float32 is fine enough; 0 where it is already.

    float64, rounded to a digit of the points' extent, so that it is short in text. It does not
    depend on the order of the points, nor on a few that lie far off. Points that all lie in one
    place count as one unit wide; those that are not finite do not count.
    """
    exact = points.double()
    exact = exact[exact.isfinite().all(dim=1)]
    if len(exact) == 0:
        return exact.new_zeros(3)
    center = exact.median(dim=0).values
    extent = (exact - center).abs().median(dim=0).values.max()
    extent = torch.where(extent > 0, extent, 1.0)
    if center.abs().max() <= _FAR * extent:
        return exact.new_zeros(3)
    digits = -math.floor(math.log10(extent.item()))
    return exact.new_tensor([round(place, digits) for place in center.tolist()])
