"""Blocks for points that come from the pixels of several views.

They alternate between a few neighbours in space and a coarse look at all views: Xu et al.,
"ReSplat: Learning Recurrent Gaussian Splatting", arXiv 2510.08575, after Zhao et al., "Point
Transformer", ICCV 2021. Positions act only through the choice of neighbours.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..kernels.attention import attention
from ..kernels.convolution import Conv2d
from ..kernels.linear import Linear, linear_gelu
from ..kernels.neighbor_attention import InverseTable, attend_neighbors, invert
from ..kernels.norm import LayerNorm

HEADS = 4  # of attention among all views
BLOCK = 4  # pixels per side that it joins into one token
WIDER = 4  # how many times the hidden layer of an MLP is as wide as its input
HIDDEN_CPU, HIDDEN = 2**23, 2**27  # numbers of a hidden layer at a time, without gradients


@dataclass(frozen=True)
class Neighbors:
    """Which points each point looks at, within its scene, and what all blocks' gradients share."""

    table: Int[Tensor, "batch point k"]
    inverse: InverseTable | None  # where gradients are wanted

    @staticmethod
    def of(table: Int[Tensor, "batch point k"]) -> "Neighbors":
        wanted = torch.is_grad_enabled()
        return Neighbors(table, invert(table, table.shape[1]) if wanted else None)


class Mlp(nn.Module):
    """x + fc2(gelu(fc1(norm(x)))), row by row; without gradients in pieces, to save memory."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.fc1 = Linear(width, WIDER * width)
        self.fc2 = Linear(WIDER * width, width)

    def forward(self, x: Float[Tensor, "*row channel"]) -> Float[Tensor, "*row channel"]:
        rows = x.flatten(0, -2)
        if torch.is_grad_enabled():
            return self._add(rows).view_as(x)
        hidden = HIDDEN_CPU if x.device.type == "cpu" else HIDDEN
        count = max(1, hidden // (WIDER * x.shape[-1]))
        return torch.cat([self._add(part) for part in rows.split(count)]).view_as(x)

    def _add(self, rows: Tensor) -> Tensor:
        hidden = linear_gelu(self.norm(rows), self.fc1.weight, self.fc1.bias)
        return rows + self.fc2(hidden)


class NeighborBlock(nn.Module):
    """Attention of every point to its neighbours, with one head of `key_width` channels; an MLP."""

    def __init__(self, width: int, key_width: int = 64) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.qkv = Linear(width, 3 * key_width, bias=False)
        self.out = Linear(key_width, width)
        self.mlp = Mlp(width)

    def forward(
        self, x: Float[Tensor, "batch point channel"], near: Neighbors
    ) -> Float[Tensor, "batch point channel"]:
        queries, keys, values = self.qkv(self.norm(x)).chunk(3, dim=-1)
        seen = attend_neighbors(queries, keys, values, near.table, near.inverse)
        return self.mlp(x + self.out(seen))


class TokenBlock(nn.Module):
    """Self-attention of all tokens of a scene; an MLP."""

    def __init__(self, width: int, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.norm = LayerNorm(width)
        self.qkv = Linear(width, 3 * width, bias=False)
        self.out = Linear(width, width)
        self.mlp = Mlp(width)

    def forward(self, x: Float[Tensor, "batch token channel"]) -> Tensor:
        qkv = rearrange(self.qkv(self.norm(x)), "b n (t g c) -> t b g n c", t=3, g=HEADS)
        seen = attention(*qkv.unbind(0), backend=self.backend)
        return self.mlp(x + self.out(rearrange(seen, "b g n c -> b n (g c)")))


class GlobalBlock(nn.Module):
    """Maps of all views, each informed by all others through tokens of 4x4 pixels.

    `width` is a multiple of 4, and so are the height and width of the maps.
    """

    def __init__(self, width: int, backend: str = "sdpa") -> None:
        super().__init__()
        joined = BLOCK**2 * width
        self.join = Linear(joined, width)
        self.join_norm = nn.LayerNorm(width)
        self.tokens = TokenBlock(width, backend)
        self.split = Linear(width, joined)
        self.split_norm = LayerNorm(joined)
        self.smooth = Conv2d(width, width, 3, padding=1)

    def forward(
        self, maps: Float[Tensor, "n channel height width"], views: int
    ) -> Float[Tensor, "n channel height width"]:
        """`n` counts the views of one scene after those of another."""
        rows = maps.shape[-2] // BLOCK
        shape = {"v": views, "p": BLOCK, "q": BLOCK}
        x = rearrange(maps, "(b v) c (h p) (w q) -> b (v h w) (c p q)", **shape)
        x = self.tokens(self.join_norm(self.join(x)))
        x = self.split_norm(self.split(x))
        x = rearrange(x, "b (v h w) (c p q) -> (b v) (h p) (w q) c", h=rows, **shape)
        return maps + self.smooth(x.permute(0, 3, 1, 2))


def to_maps(
    points: Float[Tensor, "batch point channel"], views: int, height: int
) -> Float[Tensor, "n channel height width"]:
    """Points of view after view, row by row, as maps with channels last; no copy."""
    return rearrange(points, "b (v h w) c -> (b v) c h w", v=views, h=height)


def to_points(
    maps: Float[Tensor, "n channel height width"], views: int
) -> Float[Tensor, "batch point channel"]:
    """Undoes `to_maps`."""
    return rearrange(maps, "(b v) c h w -> b (v h w) c", v=views)
