"""A small residual CNN whose feature maps are matched across views.

The layout is that of GMFlow (Xu et al., "GMFlow: Learning Optical Flow via Global Matching",
CVPR 2022), so that its weights can be converted.
"""

from jaxtyping import Float
from torch import Tensor, nn

from ..kernels.convolution import Conv2d
from ..kernels.norm import Activation, group_norm
from .maps import ChannelsFirst, for_convolutions


def instance_norm(x: Tensor, activation: Activation = "none") -> Tensor:
    """Normalizes every channel of every map, without parameters."""
    return group_norm(x, x.shape[1], activation=activation)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with instance norm and a shortcut; ReLU before and after the sum."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.conv2 = Conv2d(width, width, 3, padding=1, bias=False)
        identity = stride == 1 and inputs == width
        self.shortcut = None if identity else Conv2d(inputs, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = instance_norm(self.conv1(x), "relu")
        y = instance_norm(self.conv2(y), "relu")
        if self.shortcut is not None:
            x = instance_norm(self.shortcut(x))
        return (x + y).relu()


class CNN(ChannelsFirst):
    """Images -> feature maps, from high to low resolution, one per stage of two residual blocks.

    The stem halves the resolution; each stage divides it by its stride. The last map goes through a
    1x1 convolution.
    """

    def __init__(self, widths: tuple[int, int, int], strides: tuple[int, int, int]) -> None:
        super().__init__()
        self.stem = Conv2d(3, widths[0], 7, 2, padding=3, bias=False)
        inputs = (widths[0], *widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(ResidualBlock(i, w, s), ResidualBlock(w, w, 1))
            for i, w, s in zip(inputs, widths, strides, strict=True)
        )
        self.out = Conv2d(widths[-1], widths[-1], 1)

    def forward(self, images: Float[Tensor, "n 3 height width"]) -> tuple[Tensor, ...]:
        x = instance_norm(self.stem(for_convolutions(images)), "relu")
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return (*maps[:-1], self.out(x))
