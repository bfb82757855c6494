"""A U-Net whose deepest level attends over all views of a scene at once.

After Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022,
without the time embedding. Published encoders use two variants: normalisation before the
convolutions (DepthSplat) or after them (MVSplat).
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..kernels.attention import attention
from ..kernels.convolution import Conv2d
from ..kernels.linear import Linear
from ..kernels.norm import Activation, group_norm
from .maps import ChannelsFirst, UpConv, for_convolutions, for_group_norm, join, pieces, take


class GroupNorm(nn.GroupNorm):
    """torch's group norm, then an activation; 8 groups by default, or 4 if the channels are not a
    multiple of 8."""

    def __init__(
        self, channels: int, groups: int | None = None, activation: Activation = "none"
    ) -> None:
        super().__init__(groups or (8 if channels % 8 == 0 else 4), channels)
        self.activation: Activation = activation

    def forward(self, input: Tensor) -> Tensor:
        x = for_group_norm(input)
        return group_norm(x, self.num_groups, self.weight, self.bias, self.activation, self.eps)


def zeroed(module: nn.Module) -> nn.Module:
    """Sets all parameters of `module` to zero, so that a residual branch starts at zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions plus a skip connection; the branch starts at zero."""

    def __init__(self, inputs: int, width: int, post_norm: bool) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.norm1 = GroupNorm(width if post_norm else inputs, activation="silu")
        self.conv1 = Conv2d(inputs, width, 3, padding=1)
        self.norm2 = GroupNorm(width, activation="silu")
        self.conv2 = Conv2d(width, width, 3, padding=1)
        zeroed(self.norm2 if post_norm else self.conv2)
        self.skip = None if inputs == width else Conv2d(inputs, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.post_norm:
            y = self.norm1(self.conv1(x))
            y = self.norm2(self.conv2(y))
        else:
            y = self.conv1(self.norm1(x))
            y = self.conv2(self.norm2(y))
        return (x if self.skip is None else self.skip(x)) + y


class ViewAttention(nn.Module):
    """Full self-attention among the pixels of all views of a scene."""

    def __init__(self, width: int, head: int, post_norm: bool, backend: str) -> None:
        super().__init__()
        self.head, self.post_norm, self.backend = min(head, width), post_norm, backend
        self.norm = GroupNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        zeroed(self.norm if post_norm else self.out)

    def forward(self, x: Tensor, views: int) -> Tensor:
        height, width = x.shape[-2:]
        y = x if self.post_norm else self.norm(x)
        tokens = rearrange(y, "(b v) c h w -> b (v h w) c", v=views)
        # Rows of the projection are ordered as published: by head, then q k v, then channel.
        qkv = rearrange(self.qkv(tokens), "b n (g t c) -> t b g n c", t=3, c=self.head)
        y = attention(*qkv.unbind(0), backend=self.backend)
        y = self.out(rearrange(y, "b g n c -> b n (g c)"))
        y = rearrange(y, "b (v h w) c -> (b v) c h w", v=views, h=height, w=width)
        return x + (self.norm(y) if self.post_norm else y)


class Level(nn.Module):
    """The blocks of one resolution, with attention after each in the deepest level, and the layer
    `move` to the next resolution, if there is one."""

    def __init__(
        self, blocks: list[ResBlock], attentions: list[ViewAttention], move: nn.Conv2d | None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attentions = nn.ModuleList(attentions)
        self.move = move

    def block(self, index: int, maps: list[Tensor], views: int) -> Tensor:
        """Applies one block to maps concatenated along the channels."""
        block = self.blocks[index]
        parts = [block(join([take(x, part) for x in maps])) for part in pieces(maps[0])]
        x = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.attentions[index](x, views) if self.attentions else x


class UNet(ChannelsFirst):
    """Maps [(batch view), channel, height, width] -> maps of the same shape.

    `widths` are the channels from the finest level to the coarsest. Each level has half the
    resolution of the one before; the coarsest attends over all views with heads of `head` channels.
    Height and width must be multiples of 2^(levels - 1).
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        head: int = 32,
        post_norm: bool = False,
        backend: str = "sdpa",
    ) -> None:
        super().__init__()
        self.post_norm = post_norm
        deepest = len(widths) - 1

        def level(index: int, inputs: list[int], move: nn.Conv2d | None) -> Level:
            width = widths[index]
            blocks = [ResBlock(i, width, post_norm) for i in inputs]
            count = len(blocks) if index == deepest else 0
            return Level(
                blocks, [ViewAttention(width, head, post_norm, backend) for _ in range(count)], move
            )

        self.stem = Conv2d(widths[0], widths[0], 3, padding=1)
        before = (widths[0], *widths[:-1])  # input width of each level on the way down
        self.encoder = nn.ModuleList(
            level(i, [before[i]], Conv2d(w, w, 3, 2, padding=1) if i < deepest else None)
            for i, w in enumerate(widths)
        )
        last = widths[-1]
        self.middle = nn.ModuleList(ResBlock(last, last, post_norm) for _ in range(2))
        above = (*widths[1:], last)  # input width of each level on the way up
        self.decoder = nn.ModuleList(
            level(
                i,
                [above[i] + w, w + before[i]],
                UpConv(w, w) if i > 0 else None,
            )
            for i, w in reversed(list(enumerate(widths)))
        )
        self.norm = GroupNorm(widths[0], activation="silu")
        self.out = Conv2d(widths[0], widths[0], 3, padding=1)
        if not post_norm:
            zeroed(self.out)

    def forward(self, x: Float[Tensor, "n channel height width"], views: int) -> Tensor:
        x = self.stem(for_convolutions(x))
        skips = [x]
        for level in self.encoder:
            assert isinstance(level, Level)
            x = level.block(0, [x], views)
            skips.append(x)
            if level.move is not None:
                x = level.move(x)
                skips.append(x)
        for block in self.middle:
            x = block(x)
        for level in self.decoder:
            assert isinstance(level, Level)
            x = level.block(0, [x, skips.pop()], views)
            x = level.block(1, [x, skips.pop()], views)
            if level.move is not None:
                x = level.move(x)
        if self.post_norm:
            return self.norm(self.out(x))
        return self.out(self.norm(x))
