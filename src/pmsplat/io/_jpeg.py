"""JPEG files by libjpeg-turbo directly, in two thirds of the time that Pillow takes."""

from functools import cache

import numpy as np
from jaxtyping import UInt8
from PIL import features

HALF = 2  # sides of a photo are scaled by at least so much, or not at all


def decode(
    data: bytes, least: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "height width 3"] | None:
    """The pixels of a whole colour JPEG; None for what is doubtful, and left to Pillow's judgement.

    The bits are Pillow's, which decodes by the same library. With `least`, (height, width), they
    are scaled while decoding: by 1/2, 1/4, or what else of n/8 is at most 1/2, as far as that size
    stays covered; sides that cannot be divided are rounded up.
    """
    import simplejpeg

    if not _is_pillows():
        return None
    height, width = least or (0, 0)
    try:
        return simplejpeg.decode_jpeg(
            data, "RGB", min_height=height, min_width=width, min_factor=HALF if least else 1
        )
    except ValueError:  # damaged, or of another kind
        return None


@cache
def _is_pillows() -> bool:
    """Whether Pillow was built with this library: IJG's own rounds in another way."""
    return bool(features.check_feature("libjpeg_turbo"))
