"""Photos of camera files: where they are, which way up they are, and what makes no views."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pmsplat.io import images
from pmsplat.io.cameras.survey import Lens, Shot
from pmsplat.scene.photos import (
    Photo,
    UnfitPhotos,
    chunk_photos,
    chunk_scene,
    is_upright,
    make_photo,
    make_views,
)
from pmsplat.types import Cameras
from tests.io.test_chunks import ours
from tests.scenes import random_cameras


def stored(path: Path, size: tuple[int, int], orientation: int) -> Path:
    """A photo of (height, width) `size` as it is stored, with a note of EXIF."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (size[1], size[0])).save(path, exif=exif)
    return path


@pytest.mark.parametrize(
    ("size", "orientation", "lens", "upright"),
    [
        ((8, 12), 6, (8, 12), False),  # the lens lies as the stored pixels do
        ((8, 12), 6, (12, 8), True),
        ((8, 12), 6, (16, 24), False),  # of a smaller copy
        ((8, 12), 3, (8, 12), None),  # upside down: shapes say nothing
        ((8, 12), 2, (8, 12), None),  # mirrored
        ((8, 8), 6, (8, 8), None),
        ((8, 12), 1, (8, 12), False),
    ],
)
def test_which_way_up_a_photo_is(
    tmp_path: Path,
    size: tuple[int, int],
    orientation: int,
    lens: tuple[int, int],
    upright: bool | None,
) -> None:
    shot = Shot("a.png", Lens(lens, (9.0, 9.0), (4.0, 4.0)), np.eye(4))
    photo = stored(tmp_path / "a.png", size, orientation)
    assert is_upright(photo, shot.lens) is upright
    assert make_photo(photo, shot).upright == (upright is True)


def test_a_chunk_keeps_its_cameras_to_the_bit(generator: torch.Generator) -> None:
    cameras, scene = random_cameras(5, generator), ours("a", 5)
    object.__setattr__(scene, "c2w", cameras.c2w[0])
    object.__setattr__(scene, "K", cameras.K[0])
    opened = chunk_scene(scene)
    assert torch.equal(opened.cameras.c2w, cameras.c2w)
    assert torch.equal(opened.cameras.K, cameras.K)
    views = opened.views([3, 1])
    assert torch.equal(views.images[0, 0], torch.from_numpy(scene.image(3)).permute(2, 0, 1) / 255)
    assert views.names == (("000003", "000001"),)
    assert opened.ranged == (scene.near is not None)
    bare = chunk_scene(replace(scene, near=None, far=None))
    assert not bare.ranged and bare.cameras.near.unique().tolist() == [0.5]


def test_what_makes_no_views(generator: torch.Generator) -> None:
    def photo(height: int) -> Photo:
        pixels = np.zeros((height, 12, 3), np.uint8)
        return Photo("a", images.encode_image(pixels), None)

    cameras = random_cameras(2, generator)
    mixed = [photo(8), photo(9)]
    for size, resize in ((None, True), ((6, 6), False)):
        with pytest.raises(UnfitPhotos, match="8x12 and 9x12") as caught:
            make_views(mixed, cameras, size, resize)
        assert caught.value.kind == "photos of different sizes"
    with pytest.raises(UnfitPhotos) as caught:
        make_views([photo(8)] * 2, cameras, (9, 9), resize=False)
    assert caught.value.kind == "photos smaller than 9x9"
    assert make_views(mixed, cameras, (6, 6)).size == (6, 6)


def test_views_are_cut_or_scaled() -> None:
    scene = ours("a", 2)
    photos, near = chunk_photos(scene, [0, 1]), torch.ones(1, 2)
    given = Cameras(scene.c2w[None], scene.K[None], near, 9 * near)
    height, width = photos[0].size
    top, left = (height - 6) // 2, (width - 6) // 2
    window = (..., slice(top, top + 6), slice(left, left + 6))
    whole = make_views(photos, given)
    cut = make_views(photos, given, (6, 6), resize=False)
    assert whole.size == (height, width) and torch.equal(cut.images, whole.images[window])
    assert cut.depth is not None and whole.depth is not None
    assert torch.equal(cut.depth, whole.depth[window])
    torch.testing.assert_close(cut.cameras.K[..., 0, 0] * 6, given.K[..., 0, 0] * width)
    scaled = make_views(photos, given, (6, 6))
    torch.testing.assert_close(scaled.cameras.K[..., 1, 1], given.K[..., 1, 1])
    assert make_views(photos, given, with_depth=False).depth is None
