"""Scaling, cropping, flipping: against published outputs, and against what a camera sees."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.geometry import camera
from pmsplat.scene.fit import (
    center_window,
    covering_size,
    crop,
    fit_depth,
    fit_image,
    fit_K,
    flip,
    restore_K,
    stretch,
    to_tensor,
)
from pmsplat.types import Batch, Views
from tests.scenes import random_cameras


def views_of(size: tuple[int, int], generator: torch.Generator, count: int = 2) -> Views:
    images = torch.rand(1, count, 3, *size, generator=generator)
    return Views(images, random_cameras(count, generator), depth=images[:, :, 0] + 1)


@pytest.mark.parametrize("size", [(24, 24), (24, 40), (32, 32)])
def test_equals_the_published_crop_bit_by_bit(shared: Path, size: tuple[int, int]) -> None:
    golden = np.load(shared / "reference" / "components.npz")
    before = golden["crop/in_image_u8"].shape[-2:]
    fitted = [
        fit_image(np.ascontiguousarray(image.transpose(1, 2, 0)), size)
        for image in golden["crop/in_image_u8"]
    ]
    want = golden[f"crop/{size[0]}x{size[1]}/image"]
    assert torch.equal(to_tensor(fitted)[0], torch.from_numpy(want))
    K = torch.from_numpy(golden["crop/in_intrinsics"])
    got = fit_K(K, before, size, exact=False)
    torch.testing.assert_close(
        got, torch.from_numpy(golden[f"crop/{size[0]}x{size[1]}/intrinsics"]), rtol=3e-7, atol=0
    )


@pytest.mark.parametrize("photo", [(60, 90), (90, 60), (77, 77), (61, 130)])
def test_intrinsics_go_back_to_the_whole_photo(
    photo: tuple[int, int], generator: torch.Generator
) -> None:
    """A mark keeps its ray: where it is in the cut photo and in the whole one."""
    size, (row, column) = (42, 56), (photo[0] // 2 + 5, photo[1] // 2 - 7)
    picture = np.zeros((*photo, 3), np.uint8)
    picture[row, column] = 255
    seen = fit_image(picture, size)[..., 0].astype(float)
    rows, columns = np.indices(size)
    there = torch.tensor([((at + 0.5) * seen).sum() / seen.sum() for at in (columns, rows)])
    there = there.float() / torch.tensor([size[1], size[0]])
    here = torch.tensor([(column + 0.5) / photo[1], (row + 0.5) / photo[0]])
    K = random_cameras(1, generator).K[0, 0]
    whole = restore_K(K, photo, size)
    rays = camera.directions(there, K), camera.directions(here, whole)
    torch.testing.assert_close(*rays, atol=5e-3, rtol=0)
    torch.testing.assert_close(fit_K(whole, photo, size), K)


def test_field_of_view_is_the_published_one(shared: Path) -> None:
    golden = np.load(shared / "reference" / "components.npz")
    got = camera.field_of_view(torch.from_numpy(golden["fov/K"]))
    torch.testing.assert_close(got, torch.from_numpy(golden["fov/out"]), rtol=1e-5, atol=1e-6)


def test_published_sizes() -> None:
    assert covering_size((360, 640), (256, 256)) == (256, 455)
    assert covering_size((270, 480), (270, 480)) == (270, 480)
    assert center_window((256, 455), (256, 256)) == (0, 99)


@pytest.mark.parametrize(
    ("stored", "size", "covering"),
    [
        ((270, 480), (256, 448), (256, 455)),
        ((540, 960), (512, 960), (540, 960)),  # cut, not scaled
        ((540, 960), (448, 832), (468, 832)),
        ((540, 960), (384, 768), (432, 768)),
        ((540, 960), (320, 640), (360, 640)),
    ],
)
def test_published_sizes_of_resplat(stored: tuple, size: tuple, covering: tuple) -> None:
    assert covering_size(stored, size) == covering


def test_a_published_crop_in_two_steps_is_one_to_the_smaller_size() -> None:
    """ReSplat scales 540x960 to 416x768, then cuts to multiples of 64; here 384x768 at once."""
    image = np.random.default_rng(0).integers(0, 256, (54, 96, 3), dtype=np.uint8)
    two = fit_image(image, (42, 76))[1:-1]
    assert np.array_equal(fit_image(image, (40, 76)), two)
    K = torch.tensor([[0.9, 0, 0.5], [0, 1.6, 0.5], [0, 0, 1]])
    twice = fit_K(K, (54, 96), (42, 76), exact=False)
    twice[1, 1] *= 42 / 40
    torch.testing.assert_close(fit_K(K, (54, 96), (40, 76), exact=False), twice)


@pytest.mark.parametrize("size", [(20, 20), (15, 31), (30, 44)])
def test_exact_intrinsics_follow_a_marked_pixel(size: tuple[int, int]) -> None:
    """A bright blob that a camera sees at a world point stays where the new K projects it."""
    before = (120, 176)
    K = torch.tensor([[0.8, 0, 0.47], [0, 1.2, 0.54], [0, 0, 1]], dtype=torch.float64)
    point = torch.tensor([0.03, -0.02, 1.0], dtype=torch.float64)
    x, y = camera.project(point, K).tolist()
    rows, columns = np.mgrid[:120, :176] + 0.5
    blob = np.exp(-((rows - y * 120) ** 2 + (columns - x * 176) ** 2) / (2 * 8.0**2))
    image = np.repeat((255 * blob)[..., None], 3, axis=2).astype(np.uint8)
    out = fit_image(image, size)[..., 0].astype(np.float64)
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    found = np.array([(out * columns).sum() / size[1], (out * rows).sum() / size[0]]) / out.sum()
    want = camera.project(point, fit_K(K, before, size, exact=True)).numpy()
    assert np.abs((found - want) * size[::-1]).max() < 0.1  # pixels


def test_depth_is_taken_never_mixed(generator: torch.Generator) -> None:
    depth = torch.rand(37, 53, generator=generator).numpy()
    out = fit_depth(depth, (20, 20))
    assert np.isin(out, depth).all()
    ramp = np.broadcast_to((np.arange(64) + 0.5)[None], (64, 64))
    half = fit_depth(ramp, (32, 32))
    assert np.abs(half[0] - (2 * np.arange(32) + 1)).max() <= 0.5


def test_crop_keeps_pixels_and_rays(generator: torch.Generator) -> None:
    views = views_of((27, 48), generator)
    cut = crop(views, (16, 48))
    assert cut.size == (16, 48)
    assert torch.equal(cut.images, views.images[..., 5:21, :])
    assert cut.depth is not None and views.depth is not None
    assert torch.equal(cut.depth, views.depth[..., 5:21, :])
    rays = camera.rays(views.cameras.c2w, views.cameras.K, 27, 48)
    torch.testing.assert_close(
        camera.rays(cut.cameras.c2w, cut.cameras.K, 16, 48), rays[:, :, 5:21], rtol=0, atol=1e-5
    )
    published = crop(views, (16, 48), exact=False)
    assert torch.equal(published.cameras.K[..., 2], views.cameras.K[..., 2])


def test_stretching_keeps_corners_and_what_is_linear_between(generator: torch.Generator) -> None:
    """A ramp stays a ramp from corner to corner; K, near and far are the same tensors."""
    before, after = (9, 16), (12, 20)
    views = views_of(before, generator)

    def ramp(size: tuple[int, int]) -> torch.Tensor:
        rows, columns = (torch.linspace(0, 1, side) for side in size)
        return (0.7 * rows[:, None] + 0.2 * columns).expand(1, 2, 3, *size)

    got = stretch(replace(views, images=ramp(before)), after)
    torch.testing.assert_close(got.images, ramp(after))
    assert got.cameras is views.cameras and stretch(views, before) is views
    assert views.depth is not None and got.depth is not None
    assert got.depth.shape[-2:] == after and torch.isin(got.depth, views.depth).all()
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert torch.equal(got.depth[(..., *corner)], views.depth[(..., *corner)])


def test_flip_mirrors_the_world(generator: torch.Generator) -> None:
    views = views_of((12, 16), generator)
    batch = Batch(views, views_of((12, 16), generator), ["scene"])
    mirrored = flip(batch)
    assert torch.equal(mirrored.context.images, views.images.flip(-1))
    mirror = torch.tensor([-1.0, 1, 1])
    assert views.depth is not None
    want = camera.unproject_depth(views.depth, views.cameras.c2w, views.cameras.K) * mirror
    context = mirrored.context
    assert context.depth is not None
    got = camera.unproject_depth(context.depth, context.cameras.c2w, context.cameras.K)
    torch.testing.assert_close(got.flip(-2), want, rtol=0, atol=1e-5)
    again = flip(mirrored)
    assert torch.equal(again.context.cameras.c2w, views.cameras.c2w)
    torch.testing.assert_close(again.target.cameras.K, batch.target.cameras.K)


def test_flip_of_a_centred_camera_leaves_K_as_published(generator: torch.Generator) -> None:
    views = views_of((12, 16), generator)
    K = views.cameras.K.clone()
    K[..., 0, 2] = 0.5
    views = replace(views, cameras=replace(views.cameras, K=K))
    assert torch.equal(flip(Batch(views, views, [""])).context.cameras.K, K)


def test_too_small_is_told() -> None:
    with pytest.raises(UserError, match="10x20 pixels; wanted at least 16x16"):
        center_window((10, 20), (16, 16))
