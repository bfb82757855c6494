"""Undistortion: a picture drawn through a lens, straightened, is the picture of a pinhole."""

import math

import numpy as np
import pytest
from scipy.optimize import least_squares

from pmsplat.io.cameras.survey import Lens
from pmsplat.scene.undistort import distort, pinhole, undistort_depth, undistort_image

LENSES = {
    "barrel": Lens((60, 80), (70.0, 72.0), (41.0, 29.0), (-0.15, 0.02, 0, 0, 0, 0)),
    "pincushion": Lens((60, 80), (70.0, 70.0), (40.0, 30.0), (0.35, 0, 0, 0, 0, 0)),
    "tangential": Lens((60, 80), (70.0, 70.0), (40.0, 30.0), (0.05, 0, 0, 0, 0, 0), (0.03, -0.02)),
    "rational": Lens((60, 80), (70.0, 70.0), (40.0, 30.0), (0.3, 0.1, 0.01, -0.1, 0.08, 0.005)),
    "eighth power": Lens(
        (60, 80), (70.0, 70.0), (40.0, 30.0), (-0.3, 0.02, 0.01, 0.3, 0, 0), projection="polynomial"
    ),
    "fisheye": Lens(
        (60, 80), (70.0, 72.0), (41.0, 29.0), (-0.02, 5e-3, -1e-3, 3e-4, 0, 0), projection="fisheye"
    ),
    "field of view": Lens(
        (60, 80), (70.0, 70.0), (40.0, 30.0), (0.9, 0, 0, 0, 0, 0), projection="fov"
    ),
    "thin prism": Lens(
        (60, 80), (70.0, 70.0), (40.0, 30.0), (0.05, 0, 0, 0.02, 0, 0), (0.01, -0.01), "fisheye",
        (0.02, -0.01),
    ),
}  # fmt: skip


def straight_rays(lens: Lens) -> np.ndarray:
    """The ray of every pixel of a lens with distortion, by solving for it."""
    rows, columns = np.mgrid[: lens.size[0], : lens.size[1]] + 0.5
    pixels = np.stack([columns, rows], axis=-1)
    start = (pixels - lens.center) / lens.focal
    shape = start.shape

    def residual(xy: np.ndarray) -> np.ndarray:
        return (distort(lens, xy.reshape(shape)) - pixels).reshape(-1)

    xy = start
    for _ in range(60):  # fixed point, then polished on a few pixels by a general solver
        xy = xy - (distort(lens, xy) - pixels) / lens.focal
    assert np.abs(residual(xy)).max() < 1e-9
    corner = least_squares(
        lambda p: distort(lens, p) - pixels[0, 0], start[0, 0], xtol=1e-14, ftol=1e-14, gtol=1e-14
    )
    np.testing.assert_allclose(corner.x, xy[0, 0], atol=1e-8)
    return xy


def pattern(xy: np.ndarray) -> np.ndarray:
    waves = np.sin(9 * xy[..., 0] + 2 * xy[..., 1]), np.sin(7 * xy[..., 1]), np.cos(5 * xy[..., 0])
    return np.round(127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


def pinhole_rays(lens: Lens) -> np.ndarray:
    straight = pinhole(lens)
    rows, columns = np.mgrid[: lens.size[0], : lens.size[1]] + 0.5
    return (np.stack([columns, rows], axis=-1) - straight.center) / straight.focal


@pytest.mark.parametrize("name", LENSES)
def test_a_straightened_picture_is_that_of_the_pinhole(name: str) -> None:
    lens = LENSES[name]
    taken = pattern(straight_rays(lens))
    got = undistort_image(taken, lens).astype(int)
    want = pattern(pinhole_rays(lens)).astype(int)
    assert np.abs(got - want)[1:-1, 1:-1].max() <= 3
    assert np.abs(taken.astype(int) - want).max() > 30


@pytest.mark.parametrize("name", LENSES)
def test_the_pinhole_sees_only_what_was_photographed(name: str) -> None:
    """Every pixel has a source inside the photo, and one more per cent of view would not."""
    lens, straight = LENSES[name], pinhole(LENSES[name])
    assert straight.is_pinhole and straight.size == lens.size and straight.center == lens.center

    def worst(zoom: float) -> float:
        corners = np.array([[x, y] for x in np.linspace(0, 80, 81) for y in (0, 60)])
        sides = np.array([[x, y] for x in (0, 80) for y in np.linspace(0, 60, 61)])
        rays = (np.concatenate([corners, sides]) - straight.center) / straight.focal / zoom
        pixels = distort(lens, rays)
        return float(np.concatenate([-pixels, pixels - [80, 60]]).max())

    assert worst(1.0) < 0.02 < worst(0.99)


def test_depth_moves_with_the_photo_unmixed() -> None:
    lens = LENSES["barrel"]
    rays = straight_rays(lens)
    plane = (2 + rays[..., 0]).astype(np.float32)
    got = undistort_depth(plane, lens)
    want = 2 + pinhole_rays(lens)[..., 0]
    assert np.isin(got, plane).all()
    assert np.abs(got - want).max() < 0.012  # three quarters of a pixel at this focal length


def test_a_pinhole_is_left_alone() -> None:
    lens = Lens((4, 5), (6.0, 6.0), (2.5, 2.0))
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    assert pinhole(lens) is lens
    assert undistort_image(image, lens) is image


def documented(lens: Lens, point: tuple[float, float, float]) -> tuple[float, float]:
    """The pixel of a point in front of the camera, as COLMAP documents its fisheyes and FOV."""
    x, y, z = point
    r = math.hypot(x, y) / z
    theta = math.atan(r)
    k1, k2, k3, k4 = lens.radial[:4]
    if lens.projection == "fov":
        bent = math.atan(2 * r * math.tan(k1 / 2)) / k1
    else:
        bent = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)
    u, v = x / z * bent / r, y / z * bent / r
    return u * lens.focal[0] + lens.center[0], v * lens.focal[1] + lens.center[1]


WIDE = {
    "180 degrees across": Lens(
        (240, 320), (320 / math.pi, 320 / math.pi), (160.0, 120.0), projection="fisheye"
    ),
    "more than 180 degrees": Lens(
        (240, 320), (80.0, 82.0), (158.0, 123.0), (0.01, -0.002, 0, 0, 0, 0), projection="fisheye"
    ),
    "model that folds back": Lens(
        (240, 320), (150.0, 150.0), (160.0, 120.0), (-0.25, -0.1, 0, 0, 0, 0), projection="fisheye"
    ),
    "wide field of view": Lens(
        (240, 320), (90.0, 90.0), (160.0, 120.0), (1.6, 0, 0, 0, 0, 0), projection="fov"
    ),
}


@pytest.mark.parametrize("name", WIDE)
def test_points_of_a_fisheye_lie_where_the_pinhole_says(name: str) -> None:
    """A dot where the documented model puts a point is found where a pinhole would see it."""
    lens, straight = WIDE[name], pinhole(WIDE[name])
    found = 0
    for point in ((0.3, 0.2, 2.0), (-0.9, 0.1, 1.5), (0.5, -0.5, 1.0), (-0.2, 0.4, 0.7)):
        want = np.array(point[:2]) / point[2] * straight.focal + straight.center
        if not (8 < want[0] < 312 and 8 < want[1] < 232):
            continue  # beyond the edge of the pinhole
        column, row = documented(lens, point)
        rows, columns = np.mgrid[:240, :320] + 0.5
        dot = 255 * np.exp(-((columns - column) ** 2 + (rows - row) ** 2) / 3)
        seen = undistort_image(np.repeat(dot[..., None], 3, axis=2).astype(np.uint8), lens)
        weight = seen[..., 0].astype(float)
        got = np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()
        peak = np.unravel_index(weight.argmax(), weight.shape)
        assert np.abs(np.array(peak[::-1]) + 0.5 - want).max() <= 1.0
        assert np.abs(got - want).max() < 0.8  # a dot is stretched outward
        found += 1
    assert found >= 2


@pytest.mark.parametrize("name", WIDE)
def test_the_pinhole_of_a_fisheye_is_no_wider_than_is_of_use(name: str) -> None:
    lens, straight = WIDE[name], pinhole(WIDE[name])
    assert straight.is_pinhole and straight.center == lens.center and straight.size == lens.size
    corners = np.array([(0, 0), (320, 0), (0, 240), (320, 240)])
    angles = np.arctan(np.hypot(*((corners - straight.center) / straight.focal).T))
    assert math.degrees(angles.max()) <= 60.01
    assert math.degrees(angles.max()) > 40
    edge = distort(lens, (corners - straight.center) / straight.focal)
    assert ((edge >= 0) & (edge <= [320, 240])).all()
    # One to one: farther from the center of the pinhole is farther out in the photo.
    along = (corners[0] - straight.center) / straight.focal * np.linspace(0, 1, 200)[:, None]
    assert (np.diff(np.hypot(*(distort(lens, along) - lens.center).T)) > 0).all()
