"""The compiled scaling of photographs gives Pillow's bits, whatever the sizes."""

import numpy as np
import pytest
from PIL import Image

from pmsplat.kernels import lanczos
from pmsplat.kernels.lanczos import resize

PUBLISHED = [  # photos, scaled to cover, cut
    ((360, 640), (256, 455), (256, 256)),
    ((540, 960), (256, 455), (256, 448)),
    ((720, 1280), (256, 455), (256, 256)),
    ((256, 340), (360, 478), (360, 470)),
]


def by_pillow(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.LANCZOS))


@pytest.mark.parametrize(("before", "size", "window"), PUBLISHED)
def test_the_window_is_pillows_to_the_bit(before, size, window) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*before, 3), dtype=np.uint8)
    image[: before[0] // 2] = (image[: before[0] // 2] > 127) * 255  # overshoots are clipped
    top, left = (size[0] - window[0]) // 2, (size[1] - window[1]) // 2
    wanted = by_pillow(image, size)[top : top + window[0], left : left + window[1]]
    assert lanczos._is_equal(before, size)  # it is not Pillow that is tested
    for path in ("pillow", "compiled"):
        assert np.array_equal(resize(image, size, (top, left), window, path), wanted)


def test_sizes_that_pillow_scales_in_another_order_are_left_to_it() -> None:
    generator = np.random.default_rng(2)
    for _ in range(60):
        h, w, height, width = (int(n) for n in generator.integers(1, 90, 4))
        image = generator.integers(0, 256, (h, w, 3), dtype=np.uint8)
        made = resize(image, (height, width), (0, 0), (height, width), "compiled")
        assert np.array_equal(made, by_pillow(image, (height, width)))
