"""The first half of ResNet-18, as features in which a rendering is compared with a photograph.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. Modules and parameters have
the names that torchvision gives them.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import batch_norm, max_pool2d

from ..errors import UserError
from ..geometry.constants import constant
from ..kernels.convolution import Conv2d
from .imagenet import MEAN, STD, download

WIDTHS = (64, 64, 128)  # channels of the maps
EPS = 1e-5


class StoredNorm(nn.Module):
    """A batch norm that always follows its stored statistics, in train mode too."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Float[Tensor, "n channel height width"]) -> Tensor:
        mean, var = self.running_mean.to(self.weight), self.running_var.to(self.weight)
        return batch_norm(x, mean, var, self.weight, self.bias, eps=EPS)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = StoredNorm(width)
        self.conv2 = Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = StoredNorm(width)
        self.downsample = None
        if stride > 1:
            shortcut = Conv2d(inputs, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, StoredNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    """Images in [0, 1] -> three maps: 64 channels at 1/2, 64 at 1/4 and 128 at 1/8.

    The first is the bare first convolution, before its norm, as ReSplat compares it (Xu et al.,
    2025). The weights are frozen.
    """

    def __init__(self) -> None:
        super().__init__()
        stem, first, second = WIDTHS
        self.conv1 = Conv2d(3, stem, 7, 2, padding=3, bias=False)
        self.bn1 = StoredNorm(stem)
        self.layer1 = nn.Sequential(BasicBlock(stem, first, 1), BasicBlock(first, first, 1))
        self.layer2 = nn.Sequential(BasicBlock(first, second, 2), BasicBlock(second, second, 1))
        self.requires_grad_(False)

    def forward(self, images: Float[Tensor, "n 3 height width"]) -> tuple[Tensor, ...]:
        mean, std = (constant(x, images)[:, None, None] for x in (MEAN, STD))
        normalized = ((images - mean) / std).to(self.conv1.weight.dtype)
        stem = self.conv1(normalized.contiguous(memory_format=torch.channels_last))
        first = self.layer1(max_pool2d(self.bn1(stem).relu(), 3, 2, padding=1))
        return stem, first, self.layer2(first)


def released() -> dict[str, Tensor]:
    """torchvision's weights for ImageNet, those that `ResNet` has.

    Raises UserError where they cannot be had.
    """
    from torchvision.models import ResNet18_Weights  # late: only training from scratch wants it

    missing = UserError(
        "ResNet-18's weights are not in torchvision's cache and cannot be downloaded",
        "a connection to download.pytorch.org for the first use",
        "connect and try again, or start from a ReSplat model or from none (model.init_from=[...])",
    )
    found = download(ResNet18_Weights.IMAGENET1K_V1, missing)
    with torch.device("meta"):
        names = ResNet().state_dict().keys()
    return {name: found[name] for name in names}
