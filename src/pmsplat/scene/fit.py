"""From photographs of any size to the size a network wants: scaling, cropping, flipping.

The rule is that of pixelSplat, MVSplat and DepthSplat: scale until both sides are covered (Pillow's
LANCZOS on 8-bit pixels), then cut out the center. Those projects leave the principal point where it
was, although the window may start half a pixel off center, and a principal point off center moves
under scaling. `exact=False` repeats that, for parity with published figures; `exact=True` is the
geometry.

`stretch` is another rule, that of ReSplat's evaluation at 540x960: the whole photo at a size whose
sides a network can divide, its aspect ratio not kept (Xu et al., arXiv 2510.08575).
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import UserError
from ..geometry import camera
from ..kernels import lanczos
from ..types import Batch, Views

Size = tuple[int, int]
"""(height, width)"""


def covering_size(size: Size, wanted: Size) -> Size:
    """The size of a photo of `size` scaled, at its aspect ratio, until it just covers `wanted`."""
    factor = max(wanted[0] / size[0], wanted[1] / size[1])
    return round(size[0] * factor), round(size[1] * factor)


def center_window(size: Size, wanted: Size) -> Size:
    """(top, left) of the centered window; an odd remainder leaves the extra pixel below, right.

    Raises UserError where the window is larger than the image.
    """
    if wanted[0] > size[0] or wanted[1] > size[1]:
        raise UserError(
            f"photos of {size[0]}x{size[1]} pixels",
            f"at least {wanted[0]}x{wanted[1]} to cut from",
            "ask for a smaller size, or scale the photos first",
        )
    return (size[0] - wanted[0]) // 2, (size[1] - wanted[1]) // 2


def fit_image(
    image: UInt8[np.ndarray, "height width 3"],
    size: Size,
    before: Size | None = None,
    path: lanczos.Path = "pillow",
) -> UInt8[np.ndarray, "h w 3"]:
    """A photo scaled to cover `size` and cut to it around the center.

    `before`: the size of the photo, where `image` is a smaller copy of it. `path`: see
    `lanczos.resize`; the result is the same.
    """
    covering = covering_size(before or (image.shape[0], image.shape[1]), size)
    start = center_window(covering, size)
    return lanczos.resize(image, covering, start, size, path)


def fit_depth(depth: Shaped[np.ndarray, "height width"], size: Size) -> Shaped[np.ndarray, "h w"]:
    """A depth map fitted like its photo; each pixel takes the nearest value, so none is mixed."""
    height, width = depth.shape
    covering = covering_size((height, width), size)
    rows = ((np.arange(covering[0]) + 0.5) * (height / covering[0])).astype(int)
    columns = ((np.arange(covering[1]) + 0.5) * (width / covering[1])).astype(int)
    return _cut(depth[rows][:, columns], size)


def fit_K(
    K: Float[Tensor, "*batch 3 3"], before: Size, size: Size, exact: bool = True
) -> Float[Tensor, "*batch 3 3"]:
    """Normalised intrinsics of photos of size `before` after `fit_image` to `size`."""
    return crop_K(K, covering_size(before, size), size, exact)


def restore_K(
    K: Float[Tensor, "*batch 3 3"], before: Size, size: Size
) -> Float[Tensor, "*batch 3 3"]:
    """Normalised intrinsics of whole photos of size `before`, from those of what `fit_image` cut
    out of them at `size`: the inverse of `fit_K`.
    """
    covering = covering_size(before, size)
    top, left = center_window(covering, size)
    return camera.crop_K(K, size, (-top, -left), covering)


def crop_K(
    K: Float[Tensor, "*batch 3 3"], before: Size, size: Size, exact: bool = True
) -> Float[Tensor, "*batch 3 3"]:
    """Normalised intrinsics after cutting out the center; `exact` as at the top of this file."""
    moved = camera.crop_K(K, before, center_window(before, size), size)
    if exact:
        return moved
    return torch.cat([moved[..., :2], K[..., 2:]], dim=-1)


def crop(views: Views, size: Size, exact: bool = True) -> Views:
    """The center of every view, without scaling: how 270x480 becomes 256x448."""
    before = views.size
    if before == size:
        return views
    top, left = center_window(before, size)
    window = (..., slice(top, top + size[0]), slice(left, left + size[1]))
    cameras = replace(views.cameras, K=crop_K(views.cameras.K, before, size, exact))
    return replace(
        views,
        images=views.images[window],
        cameras=cameras,
        depth=None if views.depth is None else views.depth[window],
        pointmap=None if views.pointmap is None else views.pointmap.crop(top, left, *size),
    )


def stretch(views: Views, size: Size) -> Views:
    """The whole of every view at another size, each side by a factor of its own.

    Images are resized bilinearly, corner pixels onto corner pixels; depth and pointmaps take the
    nearest pixel. Normalized intrinsics stay as they are, as in ReSplat's evaluation, although
    corner onto corner moves what is seen: by (factor - 1) / 2 pixels at the borders.
    """
    if views.size == size:
        return views
    rows, columns = (
        torch.linspace(0, before - 1, after).round().long()
        for before, after in zip(views.size, size, strict=True)
    )
    images = interpolate(views.images.flatten(0, 1), size, mode="bilinear", align_corners=True)
    return replace(
        views,
        images=images.unflatten(0, views.images.shape[:2]),
        depth=None if views.depth is None else views.depth[:, :, rows][..., columns],
        pointmap=views.pointmap
        and views.pointmap.map(lambda kept: kept[:, :, rows][:, :, :, columns]),
    )


def flip(batch: Batch) -> Batch:
    """The mirror image of a whole example: a world reflected in x, seen by mirrored cameras."""
    return replace(batch, context=_flip(batch.context), target=_flip(batch.target))


def _flip(views: Views) -> Views:
    mirror = torch.ones(4, 4, dtype=views.cameras.c2w.dtype)
    mirror[0, 1:] = mirror[1:, 0] = -1  # diag(-1, 1, 1, 1) · E · diag(-1, 1, 1, 1)
    K = views.cameras.K.clone()
    K[..., 0, 2] = 1 - K[..., 0, 2]
    K[..., 0, 1] = -K[..., 0, 1]
    return replace(
        views,
        images=views.images.flip(-1),
        cameras=replace(views.cameras, c2w=views.cameras.c2w * mirror, K=K),
        depth=None if views.depth is None else views.depth.flip(-1),
        pointmap=None if views.pointmap is None else views.pointmap.flip(),
    )


def to_tensor(images: list[UInt8[np.ndarray, "height width 3"]]) -> Float[Tensor, "1 v 3 h w"]:
    """Photos of one size as float32 in [0, 1], channel first, batch axis 1."""
    planes = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    return torch.stack(planes)[None].contiguous().float().div_(255)


def _cut(pixels: np.ndarray, size: Size) -> np.ndarray:
    top, left = center_window((pixels.shape[0], pixels.shape[1]), size)
    return pixels[top : top + size[0], left : left + size[1]]
