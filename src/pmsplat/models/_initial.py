"""The initial Gaussians of ReSplat: points for blocks of pixels, which look at their neighbours.

Xu et al., "ReSplat: Learning Recurrent Gaussian Splatting", arXiv 2510.08575.
"""

from math import isqrt

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import (
    avg_pool2d,
    gelu,
    interpolate,
    pixel_shuffle,
    pixel_unshuffle,
    softplus,
)

from ..geometry import camera
from ..kernels.convolution import Conv2d
from ..kernels.linear import Linear
from ..nn.maps import join, pieces, resize
from ..nn.points import GlobalBlock, NeighborBlock, Neighbors, to_maps, to_points
from ..types import Cameras, Views
from ._depth import DepthEstimate, Features, Layout
from ._head import image_base, world_rays
from ._update import MIN_SCALE, SH_DEGREE, Splats

NEIGHBORS = 16  # nearest points, itself included, that each point looks at
BLOCKS = 6
PATCH = 16  # pixels that a cell of the ViT's maps is taken for; its patches have 14
# what the head says of a Gaussian: quaternion xyzw, scale, opacity, offset, SH color by color
QUATERNION, SCALE, OPACITY, OFFSET, SH = slice(4), slice(4, 7), 7, slice(8, 10), slice(10, None)
NUMBERS = 10 + 3 * (SH_DEGREE + 1) ** 2


class Points(nn.Module):
    """Images, depth and the depth network's maps -> features of points.

    A point stands for a block of `latent` x `latent` pixels of a view. With `halved`, the depth
    network saw images of half the size.
    """

    def __init__(self, layout: Layout, latent: int, width: int, halved: bool) -> None:
        super().__init__()
        self.latent, self.halved = latent, halved
        known = 3 * latent**2 + 1 + self._channels(layout)
        self.regressor = nn.Sequential(
            Conv2d(known + 1, width, 3, padding=1), nn.GELU(), Conv2d(width, width, 3, padding=1)
        )
        self.project = Linear(width + known, width)
        self.near = nn.ModuleList(NeighborBlock(width) for _ in range(BLOCKS))
        self.all = nn.ModuleList(GlobalBlock(width, layout.attention) for _ in range(BLOCKS))

    def grid(self, images: Float[Tensor, "batch view 3 height width"]) -> tuple[int, int]:
        """How many rows and columns of points a view has."""
        return images.shape[-2] // self.latent, images.shape[-1] // self.latent

    def describe(
        self,
        images: Float[Tensor, "batch view 3 height width"],
        z: Float[Tensor, "n 1 rows columns"],
        estimate: DepthEstimate,
    ) -> Float[Tensor, "batch point channel"]:
        """What the pixels of each point's block say; `z` is the depth of its middle."""
        flat, grid = images.flatten(0, 1), self.grid(images)
        found = []
        for part in pieces(flat):
            colors = pixel_unshuffle(flat[part], self.latent)
            maps = self._maps(estimate.features.of(part), grid)
            match = self._confidence(estimate.matches[-1].probability[part], grid)
            x = self.regressor(join([colors, z[part], match, *maps]))
            x = join([x, colors, *maps, match])
            found.append(self.project(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return to_points(torch.cat(found), images.shape[1])

    def forward(
        self,
        x: Float[Tensor, "batch point channel"],
        table: Int[Tensor, "batch point k"],
        views: int,
        rows: int,
    ) -> Float[Tensor, "batch point channel"]:
        """The features of points that have looked at their neighbours (`table`) and all views."""
        described, neighbors = x, Neighbors.of(table)
        for near, everywhere in zip(self.near, self.all, strict=True):
            x = to_points(everywhere(to_maps(near(x, neighbors), views, rows), views), views)
        return described + x  # published so, though the blocks add to what they are given already

    def _channels(self, layout: Layout) -> int:
        """Channels of `_maps` together."""
        vit = 4 * layout.vit_width // (PATCH // self.latent) ** 2
        widths = [*layout.cnn_widths, layout.width]
        if self.latent == 4:
            return vit + sum(widths)
        strides = [2 * layout.cnn_strides[0]]
        for step in layout.cnn_strides[1:]:
            strides.append(strides[-1] * step)
        shuffled = zip(widths, [*strides, layout.lowest], strict=True)
        return vit + sum(width // (stride // self.latent) ** 2 for width, stride in shuffled)

    def _maps(self, features: Features, grid: tuple[int, int]) -> list[Float[Tensor, "n _ _ _"]]:
        """The depth network's maps with a pixel for each point.

        The ViT's maps are brought to 1/16 and their channels laid out as finer pixels; the others
        are resized, or, on a grid that is as fine as the finest of them, laid out too.
        """
        vit, others = [*features.taps], [*features.cnn, features.matched[0]]
        if self.halved:
            vit, others = [_doubled(x) for x in vit], [_doubled(x) for x in others]
        coarse = grid[0] * self.latent // PATCH, grid[1] * self.latent // PATCH
        vit = [pixel_shuffle(resize(x, coarse), PATCH // self.latent) for x in vit]
        if self.latent == 4:
            return [*vit, *(resize(x, grid) for x in others)]
        return [*vit, *(pixel_shuffle(x, grid[0] // x.shape[-2]) for x in others)]

    def _confidence(
        self, probability: Float[Tensor, "n height width plane"], grid: tuple[int, int]
    ) -> Float[Tensor, "n 1 rows columns"]:
        """The probability of the best depth at each point's nearest pixel."""
        if self.halved:
            probability = _doubled(probability.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return interpolate(probability.amax(dim=-1)[:, None], size=grid, mode="nearest")


def _doubled(x: Float[Tensor, "n channel _ _"]) -> Float[Tensor, "n channel _ _"]:
    return resize(x, (2 * x.shape[-2], 2 * x.shape[-1]))


class Head(nn.Module):
    """Features of points -> the numbers of `count` Gaussians for each; round ones without color at
    first, turned as they like."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.hidden = Linear(width, NUMBERS * count)
        self.out = Linear(NUMBERS * count, NUMBERS * count)
        with torch.no_grad():
            self.out.weight[4 * count :] = 0
            self.out.bias[4 * count :] = 0

    def forward(
        self, x: Float[Tensor, "batch point channel"], views: int, rows: int
    ) -> Float[Tensor, "batch view height width number"]:
        """On a grid of one pixel for each Gaussian."""
        finer = isqrt(self.count)
        numbers = self.out(gelu(self.hidden(x)))
        shape = {"v": views, "h": rows, "p": finer, "q": finer}
        return rearrange(numbers, "b (v h w) (c p q) -> b v (h p) (w q) c", **shape)


def places(
    z: Float[Tensor, "n 1 rows columns"], cameras: Cameras
) -> Float[Tensor, "batch view rows columns 3"]:
    """Where the points are in the world."""
    with torch.autocast(z.device.type, enabled=False):
        depth = z[:, 0].float().unflatten(0, cameras.c2w.shape[:2])
        return camera.unproject_depth(depth, cameras.c2w.float(), cameras.K.float())


def splats_at(
    numbers: Float[Tensor, "batch view height width number"],
    depth: Float[Tensor, "n 1 _ _"],
    views: Views,
    scale_max: float,
) -> Splats:
    """The Gaussians that the head describes, at such a depth of their views."""
    with torch.autocast(numbers.device.type, enabled=False):
        height, width = numbers.shape[2:4]
        raw, cameras = numbers.float().flatten(2, 3), views.cameras
        c2w, K = cameras.c2w.float(), cameras.K.float()
        # Means on rays that leave the middle of the Gaussian's block by up to half of it.
        offset = raw[..., OFFSET].sigmoid() - 0.5
        rays = world_rays(offset, K, c2w[..., :3, :3], (height, width))
        z = resize(depth.float(), (height, width)).reshape(*raw.shape[:3], 1)
        means = c2w[:, :, None, :3, 3] + z * rays
        # The color of the photograph is added to that of degree 0.
        block = views.size[0] // height
        colors = avg_pool2d(views.images.flatten(0, 1), block).unflatten(0, c2w.shape[:2])
        base = image_base(colors)
        coefficients = raw[..., SH].unflatten(-1, (3, -1)).transpose(-1, -2)
        coefficients = torch.cat(
            [coefficients[..., :1, :] + base[..., None, :], coefficients[..., 1:, :]], dim=-2
        )
        return Splats(
            means.flatten(1, 2),
            softplus(raw[..., SCALE] - 4).clamp(MIN_SCALE, scale_max).flatten(1, 2),
            raw[..., QUATERNION].flatten(1, 2),
            raw[..., OPACITY].sigmoid().flatten(1, 2),
            coefficients.flatten(1, 2),
        )
