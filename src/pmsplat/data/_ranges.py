"""The depth that a network searches, for photographs that do not say it."""

import numpy as np
from jaxtyping import Float

_PERCENTILES = (1, 99)
_MARGIN = 1.25  # nearer and farther than what was seen: the percentiles cut real surfaces off


def depth_range(depths: Float[np.ndarray, " point"]) -> tuple[float, float]:
    """(near, far) around the depths seen by one camera (sensor or sparse points; 0 = none).

    The 1st and 99th percentile with a margin of a quarter. Raises ValueError where none is
    positive.
    """
    seen = depths[depths > 0]
    if len(seen) == 0:
        raise ValueError("no depth is positive")
    near, far = np.percentile(seen, _PERCENTILES)
    return float(near / _MARGIN), float(far * _MARGIN)
