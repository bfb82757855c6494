"""The reference renderer: projection and blending in plain torch, for any device and dtype.

Tiles are blended one after another and recomputed in the backward pass, so memory is bounded by one
tile. Differentiable in means, scales, quats, opacities, sh and attributes.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from ..types import Cameras, DrawingRules, Gaussians
from ._projection import ALPHA_MIN, TRANSMITTANCE_MIN, Blend, Splats, finite, project

LICENSE = "MIT, as all of pmsplat"
TILE = 16
PAIRS = 2**22  # most (pixel, Gaussian) pairs evaluated at once


def obstacle(device: torch.device) -> UserError | None:
    """Returns None: this backend draws on every device."""
    return None


def blend(
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    attributes: Tensor | None,
    sh_degree: int | None,
    median: bool,
    rules: DrawingRules,
) -> Blend:
    """Projects and blends all scenes, as `rasterize` expects of a backend."""
    # Project, and collect all values of a splat in one table.
    gaussians, attributes = finite(gaussians, attributes)
    splats = project(gaussians, cameras, size, sh_degree, rules)
    batch, targets = splats.z.shape[:2]
    features = torch.cat([splats.color, splats.z[..., None]], dim=-1)
    if attributes is not None:
        shared = attributes[:, None].expand(-1, targets, -1, -1)
        features = torch.cat([features, shared], dim=-1)
    opacities = splats.opacity[..., None].expand(-1, targets, -1, -1)
    table = torch.cat([splats.xy, splats.conic, opacities, features], dim=-1)
    # Blend image by image.
    images = [
        _Image.apply(table[at], list(_tiles(splats, at, size)), size, rules.alpha_cap)
        for at in itertools.product(range(batch), range(targets))
    ]
    channels = features.shape[-1] + 2
    drawn = torch.stack(images) if images else features.new_zeros(0, channels, *size)
    drawn = drawn.reshape(batch, targets, channels, *size)
    return Blend(
        color=drawn[:, :, :3],
        depth=drawn[:, :, 3],
        alpha=drawn[:, :, -2],
        attributes=None if attributes is None else drawn[:, :, 4:-2],
        depth_median=drawn[:, :, -1].detach() if median else None,
        screen=splats.screen,
    )


@dataclass(frozen=True)
class _Tile:
    """Some pixels (flat indices in an image) and the Gaussians that may touch them, near to far."""

    pixels: Int[Tensor, " pixel"]
    listed: Int[Tensor, " listed"]


def _tiles(splats: Splats, at: tuple[int, int], size: tuple[int, int]) -> Iterator[_Tile]:
    """Splits an image into tiles of at most PAIRS (pixel, Gaussian) pairs."""
    height, width = size
    xy, extent, z = splats.xy[at].detach(), splats.extent[at], splats.z[at].detach()
    order = torch.argsort(z, stable=True)
    order = order[extent[order, 0] > 0]
    low, high = (xy - extent)[order], (xy + extent)[order]
    grid = torch.arange(height * width, device=xy.device).view(height, width)
    for row, column in itertools.product(range(0, height, TILE), range(0, width, TILE)):
        tile = grid[row : row + TILE, column : column + TILE].flatten()
        corner = xy.new_tensor([column, row])
        listed = order[((high > corner) & (low < corner + TILE)).all(dim=-1)]
        for pixels in tile.split(max(1, PAIRS // max(1, len(listed)))):
            yield _Tile(pixels, listed)


class _Image(torch.autograd.Function):
    """Blends one image tile by tile; the backward pass recomputes each tile."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, tiles: list[_Tile], size: tuple[int, int], alpha_cap: float
    ) -> Tensor:
        height, width = size
        image = table.new_zeros(height * width, table.shape[-1] - 4)
        for tile in tiles:
            image[tile.pixels] = _pixels(table[tile.listed], tile.pixels, width, alpha_cap)
        ctx.save_for_backward(table)
        ctx.tiles, ctx.width, ctx.alpha_cap = tiles, width, alpha_cap
        return image.T.reshape(-1, height, width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (table,) = ctx.saved_tensors
        grad = grads[0].flatten(1).T
        total = torch.zeros_like(table)
        for tile in ctx.tiles:
            with torch.enable_grad():
                rows = table[tile.listed].requires_grad_()
                drawn = _pixels(rows, tile.pixels, ctx.width, ctx.alpha_cap)
            (part,) = torch.autograd.grad(drawn, rows, grad[tile.pixels])
            total.index_add_(0, tile.listed, part)
        return total, None, None, None


def _pixels(
    rows: Float[Tensor, "listed column"],
    pixels: Int[Tensor, " pixel"],
    width: int,
    alpha_cap: float,
) -> Float[Tensor, "pixel channel_plus_2"]:
    """Blends features, alpha and median depth of some pixels; `rows` are splats, near to far."""
    xy, conic, opacity, features = rows.split([2, 3, 1, rows.shape[-1] - 6], dim=-1)
    center = torch.stack([pixels % width, pixels // width], dim=-1) + 0.5
    dx, dy = (center.to(xy)[:, None] - xy).unbind(dim=-1)
    xx, xy_, yy = conic.unbind(dim=-1)
    power = 0.5 * (xx * dx * dx + yy * dy * dy) + xy_ * dx * dy
    alpha = (opacity[:, 0] * torch.exp(-power.clamp_min(0))).clamp_max(alpha_cap)
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, 0)
    after = torch.cumprod(1 - alpha, dim=-1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=-1)
    weight = torch.where(after >= TRANSMITTANCE_MIN, alpha * before, 0)

    crosses = (before > 0.5) & (after <= 0.5) & (weight > 0)
    median = torch.where(crosses, features[:, 3], 0).sum(dim=-1, keepdim=True)
    return torch.cat([weight @ features, weight.sum(dim=-1, keepdim=True), median.detach()], dim=-1)
