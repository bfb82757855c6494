"""Pinhole cameras: pixels, rays and points, under intrinsics divided by (width, height).

A normalised pixel coordinate xy lies in [0, 1]²; the centre of pixel (column, row) is
((column + 0.5) / width, (row + 0.5) / height).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from . import se3
from .constants import constant
from .products import einsum


def pixel_grid(height: int, width: int, like: Tensor) -> Float[Tensor, "height width 2"]:
    """Returns the normalised (x, y) of every pixel centre, with the device and dtype of `like`."""
    y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def K_px(K: Float[Tensor, "*#batch 3 3"], height: int, width: int) -> Float[Tensor, "*_ 3 3"]:
    """Returns intrinsics in pixels."""
    return K * constant((width, height, 1.0), K)[:, None]


def project(
    points_cam: Float[Tensor, "*#batch 3"], K: Float[Tensor, "*#batch 3 3"]
) -> Float[Tensor, "*_ 2"]:
    """Projects points in the camera frame to normalised pixel coordinates.

    Meaningful where z > 0: points at z = 0 give infinities, points behind the camera are mirrored.
    """
    homogeneous = einsum("...ij,...j->...i", K, points_cam)
    return homogeneous[..., :2] / homogeneous[..., 2:]


def unproject(
    xy: Float[Tensor, "*#batch 2"], depth: Float[Tensor, "*#batch"], K: Float[Tensor, "*#batch 3 3"]
) -> Float[Tensor, "*_ 3"]:
    """Returns the points at z = `depth` behind normalised pixels, in the camera frame."""
    return directions(xy, K) * depth[..., None]


def directions(
    xy: Float[Tensor, "*#batch 2"], K: Float[Tensor, "*#batch 3 3"]
) -> Float[Tensor, "*_ 3"]:
    """Returns ray directions in the camera frame with z = 1: depth · direction is the point."""
    fx, skew, cx = K[..., 0, 0], K[..., 0, 1], K[..., 0, 2]
    fy, cy = K[..., 1, 1], K[..., 1, 2]
    y = (xy[..., 1] - cy) / fy
    x = (xy[..., 0] - cx - skew * y) / fx
    return torch.stack([x, y, torch.ones_like(x)], dim=-1)


def rays(
    c2w: Float[Tensor, "*#batch 4 4"], K: Float[Tensor, "*#batch 3 3"], height: int, width: int
) -> Float[Tensor, "*_ height width 3"]:
    """Returns world directions through pixel centres: camera centre + depth · ray is the point."""
    grid = pixel_grid(height, width, like=K)
    cam = directions(grid, K[..., None, None, :, :])
    return einsum("...ij,...hwj->...hwi", c2w[..., :3, :3], cam)


def unproject_depth(
    depth: Float[Tensor, "*#batch height width"],
    c2w: Float[Tensor, "*#batch 4 4"],
    K: Float[Tensor, "*#batch 3 3"],
) -> Float[Tensor, "*_ height width 3"]:
    """Returns the world points of a depth map (z in scene units)."""
    height, width = depth.shape[-2:]
    world = rays(c2w, K, height, width) * depth[..., None]
    return world + c2w[..., None, None, :3, 3]


def normals(
    depth: Float[Tensor, "*#batch height width"], K: Float[Tensor, "*#batch 3 3"]
) -> Float[Tensor, "*_ height width 3"]:
    """Returns unit normals of a depth map, in camera axes, facing the camera.

    Computed from differences of the unprojected neighbours on both sides (at the borders, of the
    pixel and its neighbour), hence exact on planes. Zero where the pixel or one of those neighbours
    has depth 0 (none). Depth may have any unit; differentiable.
    """
    height, width = depth.shape[-2:]
    points = unproject(pixel_grid(height, width, like=K), depth, K[..., None, None, :, :])
    known = depth > 0
    across, seen_across = _difference(points, known, -2)
    down, seen_down = _difference(points, known, -3)
    seen = (known & seen_across & seen_down)[..., None]
    unit = torch.where(known, depth, 1)[..., None]  # prevents underflow of the product
    facing = torch.linalg.cross(down / unit, across / unit)
    return torch.where(seen, normalize(torch.where(seen, facing, 1), dim=-1), 0)


def _difference(points: Tensor, known: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Returns the next minus the previous point along an axis, and whether both are known."""
    length = points.shape[axis]
    at = torch.arange(length, device=points.device)
    before, after = (at - 1).clamp(min=0), (at + 1).clamp(max=length - 1)
    step = points.index_select(axis, after) - points.index_select(axis, before)
    both = known.index_select(axis + 1, after) & known.index_select(axis + 1, before)
    return step, both


def project_world(
    points_world: Float[Tensor, "*#batch point 3"],
    c2w: Float[Tensor, "*#batch 4 4"],
    K: Float[Tensor, "*#batch 3 3"],
) -> Float[Tensor, "*_ point 3"]:
    """Returns normalised pixel x, y and depth z of world points, one camera per batch entry."""
    points_cam = se3.transform(se3.invert(c2w), points_world)
    return torch.cat([project(points_cam, K[..., None, :, :]), points_cam[..., 2:]], dim=-1)


def crop_K(
    K: Float[Tensor, "*#batch 3 3"],
    size: tuple[int, int],
    top_left: tuple[int, int],
    cropped: tuple[int, int],
) -> Float[Tensor, "*_ 3 3"]:
    """Returns intrinsics of a window of size `cropped` (height, width) at `top_left` (row, column).

    `size` is the (height, width) before the crop. Resizing alone does not change normalised
    intrinsics.
    """
    (height, width), (top, left), (new_height, new_width) = size, top_left, cropped
    scale = constant((width / new_width, height / new_height, 1.0), K)
    out = K * scale[:, None]
    shift = constant((left / new_width, top / new_height, 0.0), K)
    return torch.cat([out[..., :2], (out[..., 2] - shift)[..., None]], dim=-1)


def field_of_view(K: Float[Tensor, "*#batch 3 3"]) -> Float[Tensor, "*_ 2"]:
    """Returns horizontal and vertical angles between rays through opposite edge midpoints (rad)."""
    edges = constant(((0.0, 0.5), (1.0, 0.5), (0.5, 0.0), (0.5, 1.0)), K)
    rays = normalize(directions(edges, K[..., None, :, :]), dim=-1)
    left, right, top, bottom = rays.unbind(dim=-2)
    cosines = torch.stack([(left * right).sum(-1), (top * bottom).sum(-1)], dim=-1)
    return cosines.clamp(-1, 1).acos()
