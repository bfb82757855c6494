"""Pictures inside of a page."""

import base64

import numpy as np
from jaxtyping import UInt8

from ...io.images import encode_image

QUALITY = 82  # of WebP


def embed(picture: UInt8[np.ndarray, "height width 3"], quality: int = QUALITY) -> str:
    """An address that holds the picture itself."""
    data = encode_image(np.ascontiguousarray(picture), "webp", quality)
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"
