"""Dense prediction head: fuses maps of a ViT and of convolutions from coarse to fine.

Ranftl et al., "Vision Transformers for Dense Prediction", ICCV 2021, in the form of Yang et al.,
"Depth Anything V2", 2024, with the encoder's other maps concatenated at each resolution.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from ..kernels.convolution import Conv2d
from .maps import join, resize


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(width, width, 3, padding=1)
        self.conv2 = Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x.relu()).relu())


class Fusion(nn.Module):
    """Adds this level's map to that of the coarser level, refines the sum and resizes it."""

    def __init__(self, width: int, deepest: bool) -> None:
        super().__init__()
        self.lateral = None if deepest else ResidualUnit(width)
        self.refine = ResidualUnit(width)
        self.out = Conv2d(width, width, 1)

    def forward(self, coarse: Tensor | None, here: Tensor, size: tuple[int, int]) -> Tensor:
        if self.lateral is not None:
            here = self.lateral(here)
        x = self.refine(here if coarse is None else coarse + here)
        # A 1x1 convolution commutes with a resize and is cheaper before it (published: after).
        return resize(self.out(x), size)


class DPT(nn.Module):
    """Four levels, at 1/2, 1/4, 1/8 and 1/16 of the image -> a map of `features` channels.

    Each level concatenates the ViT's map (projected to `widths` channels and resized) with the
    caller's maps of that resolution: `before` and `after` are the channels of those that go before
    and after the ViT's. Levels without any map are left out; without a ViT, `vit_width` is 0. The
    result has twice the resolution of the finest level.
    """

    def __init__(
        self,
        vit_width: int,
        widths: Sequence[int],
        before: Sequence[int],
        after: Sequence[int],
        features: int,
    ) -> None:
        super().__init__()
        # Bring the ViT's maps to the widths and resolutions of the levels.
        a, b, _, d = widths
        self.levels = [i for i in range(4) if vit_width or before[i] or after[i]]
        self.project = nn.ModuleList()
        self.resize = nn.ModuleList()
        if vit_width:
            self.project.extend(Conv2d(vit_width, w, 1) for w in widths)
            self.resize.extend(
                [
                    nn.ConvTranspose2d(a, a, 4, 4),
                    nn.ConvTranspose2d(b, b, 2, 2),
                    nn.Identity(),
                    Conv2d(d, d, 3, 2, padding=1),
                ]
            )
        # Merge the maps of each level, and fuse the levels.
        self.join = nn.ModuleDict()
        for i in self.levels:
            if i < 3:
                inputs = before[i] + after[i] + bool(vit_width) * widths[i]
                self.join[str(i)] = Conv2d(inputs, widths[i], 1)
        self.reduce = nn.ModuleDict(
            {str(i): Conv2d(widths[i], features, 3, padding=1, bias=False) for i in self.levels}
        )
        self.fuse = nn.ModuleDict(
            {str(i): Fusion(features, deepest=i == self.levels[-1]) for i in self.levels}
        )

    def forward(
        self,
        vit: Sequence[Float[Tensor, "n channel height width"]],
        before: Sequence[Sequence[Tensor]],
        after: Sequence[Sequence[Tensor]],
    ) -> Float[Tensor, "n features _ _"]:
        maps = []
        for i in self.levels:
            middle = [self.resize[i](self.project[i](vit[i]))] if len(vit) else []
            x = [*before[i], *middle, *after[i]]
            joined = self.join[str(i)](join(x)) if str(i) in self.join else x[0]
            maps.append(self.reduce[str(i)](joined))
        height, width = maps[0].shape[-2:]
        sizes = [(2 * height, 2 * width), *((m.shape[-2], m.shape[-1]) for m in maps[:-1])]
        x = None
        for i, here, size in reversed(list(zip(self.levels, maps, sizes, strict=True))):
            x = self.fuse[str(i)](x, here, size)
        assert x is not None
        return x
