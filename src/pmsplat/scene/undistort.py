"""Photographs through a lens with distortion, seen again through a pinhole.

The models are OpenCV's, https://docs.opencv.org/4.x/d9/d0c/group__calib3d.html, and COLMAP's
(src/colmap/sensor/models.h of https://github.com/colmap/colmap): fisheyes distort the angle from
the axis; FOV is that of Devernay and Faugeras, "Straight lines have to be straight", 2001.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch.nn.functional import grid_sample

from ..io.cameras.survey import Lens

_ZOOM_STEPS = 40  # bisections: the last bit of float64 is reached before
_WIDEST = math.radians(60)  # from the axis of a pinhole made of a fisheye; wider ones smear corners
_ANGLES = 241  # sampled up to there, a quarter of a degree apart


def distort(lens: Lens, xy: Float[np.ndarray, "*grid 2"]) -> Float[np.ndarray, "*grid 2"]:
    """Pixels on which rays fall, from their pinhole directions (x / z, y / z)."""
    x, y = xy[..., 0], xy[..., 1]
    if lens.projection == "fisheye":
        r = np.hypot(x, y)
        bend = np.divide(np.arctan(r), r, out=np.ones_like(r), where=r > 0)
        x, y = x * bend, y * bend
    p1, p2 = lens.tangential
    r2 = x * x + y * y
    radial = _stretch(lens, r2)
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x) + lens.prism[0] * r2
    v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y + lens.prism[1] * r2
    return np.stack([u * lens.focal[0], v * lens.focal[1]], axis=-1) + lens.center


def _stretch(lens: Lens, r2: Float[np.ndarray, "*grid"]) -> Float[np.ndarray, "*grid"]:
    """The factor of a radius in the plane of the projection, from its square."""
    k1, k2, k3, k4, k5, k6 = lens.radial
    if lens.projection == "perspective":
        return (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    if lens.projection == "fov":
        r, omega = np.sqrt(r2), k1
        if abs(omega) < 1e-6:
            return np.ones_like(r2)
        opening = 2 * math.tan(omega / 2)
        return np.divide(
            np.arctan(r * opening), r * omega, out=np.full_like(r, opening / omega), where=r > 1e-9
        )
    return 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * (k4 + r2 * (k5 + r2 * k6)))))


def pinhole(lens: Lens) -> Lens:
    """The pinhole of the same size to which photos of a lens are undistorted.

    Its focal length is that of the lens, zoomed in just so far that the photo covers the whole
    undistorted picture. Of a fisheye, which may see half the world, it shows 60 degrees from the
    axis at most, and no more than where the model of the lens is one to one.
    """
    if lens.is_pinhole:
        return lens
    # The border of the picture, as points in pixels.
    height, width = lens.size
    along = np.linspace(0, 1, 65)
    sides = [np.stack([along, np.full(65, edge)], axis=1) for edge in (0.0, 1.0)]
    border = np.concatenate([*sides, *(side[:, ::-1] for side in sides)]) * [width, height]

    def covered(zoom: float) -> bool:
        xy = distort(lens, (border - lens.center) / (zoom * np.array(lens.focal)))
        return bool(((xy >= 0) & (xy <= [width, height])).all())

    # The smallest zoom with which the photo covers the border.
    low, high = 0.5, 2.0
    if lens.is_wide:
        farthest = np.hypot(*((border - lens.center) / lens.focal).T).max()
        low = float(farthest) / math.tan(_one_to_one(lens))
        high = max(16.0, 2 * low)
    if lens.is_wide and covered(low):
        high = low
    else:
        for _ in range(_ZOOM_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if covered(middle) else (middle, high)
    focal = (lens.focal[0] * high, lens.focal[1] * high)
    return Lens(lens.size, focal, lens.center)


def _one_to_one(lens: Lens) -> float:
    """The angle from the axis up to which the radius on the sensor grows, at most `_WIDEST`."""
    angles = np.linspace(0, _WIDEST, _ANGLES)
    planar = angles if lens.projection == "fisheye" else np.tan(angles)
    falls = np.flatnonzero(np.diff(planar * _stretch(lens, planar**2)) <= 0)
    return float(angles[max(int(falls[0]), 1)] if len(falls) else _WIDEST)


def undistort_image(
    image: UInt8[np.ndarray, "height width 3"], lens: Lens
) -> UInt8[np.ndarray, "height width 3"]:
    """The photo as `pinhole(lens)` would have taken it, bilinear; the size stays."""
    if lens.is_pinhole:
        return image
    height, width = image.shape[:2]
    grid = torch.from_numpy(2 * _source(lens, height, width) - 1).float()
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    moved = grid_sample(pixels, grid[None], "bilinear", "border", align_corners=False)
    return moved[0].round().byte().permute(1, 2, 0).contiguous().numpy()


def undistort_depth(
    depth: Shaped[np.ndarray, "height width"], lens: Lens
) -> Shaped[np.ndarray, "height width"]:
    """A depth map registered to the photo, moved with it; each pixel takes the nearest value."""
    if lens.is_pinhole:
        return depth
    height, width = depth.shape
    source = _source(lens, height, width) * [width, height]
    columns, rows = np.moveaxis(np.floor(source).astype(int), -1, 0)
    return depth[rows.clip(0, height - 1), columns.clip(0, width - 1)]


def _source(lens: Lens, height: int, width: int) -> Float[np.ndarray, "height width 2"]:
    """Where in the photo, in [0, 1]², each pixel of the pinhole's picture lies."""
    straight = pinhole(lens)
    full = np.array([lens.size[1], lens.size[0]], dtype=np.float64)
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    pixels = np.stack(np.meshgrid(x, y), axis=-1) * full
    return distort(lens, (pixels - straight.center) / straight.focal) / full
