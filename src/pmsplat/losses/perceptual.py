"""Distance of the rendered color in the activations of VGG-19.

Chen & Koltun, "Photographic Image Synthesis with Cascaded Refinement Networks", ICCV 2017, with
average pooling, as LVSM (Jin et al., ICLR 2025) and ReSplat (Xu et al., arXiv 2510.08575) train.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..contracts import LPIPS, Loss
from ..foundation import lpips, vgg19
from ..nn.maps import move_to, resize
from ..registry import check_settings, one_of, whole
from ..types import StepOutput

WANTS = {LPIPS}
# What the error of the pixels and of each activation counts, for images from 0 to 255.
PIXELS, ACTIVATIONS = 1.0, (1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)


@dataclass
class Config:
    net: str = "auto"  # vgg19 (published), lpips, or auto: vgg19 where its weights can be had
    weights: str | None = None  # a file of VGG-19; None searches as foundation/vgg19.py says
    downsample: int = 1  # 2: images are compared at half their size

    def __post_init__(self) -> None:
        rules = {"net": one_of("auto", "vgg19", "lpips"), "downsample": whole(1)}
        check_settings(self, rules, "loss.perceptual.")


def build(cfg: Config) -> Loss:
    """The distance between the last rendering, not clamped, and the target images.

    The weighted sum of the mean absolute differences of the pixels and of five activations, in
    units of the range of the pixels. Where VGG-19 cannot be had, "auto" takes LPIPS in its place,
    and warns. Gradients reach the rendering alone. Raises Unavailable where no weights can be had,
    UserError for a model that predicts depth alone.
    """
    network, distance = _find(cfg)

    def perceptual(step: StepOutput) -> Float[Tensor, ""]:
        color = step.rendering.color
        pair = [images.flatten(0, 1) for images in (color, step.batch.target.images)]
        if cfg.downsample > 1:
            height, width = color.shape[-2] // cfg.downsample, color.shape[-1] // cfg.downsample
            pair = [resize(images, (height, width)) for images in pair]
        move_to(network, color.device)
        return distance(*pair)

    return perceptual


def _find(cfg: Config) -> tuple[torch.nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    """The network, and the mean distance of images in it; warns where it is another than wanted."""
    if cfg.net != "lpips":
        try:
            vgg, published = vgg19.load(cfg.weights)
        except lpips.Unavailable as missing:
            if cfg.net != "auto":
                raise
            why = missing.got
        else:
            if cfg.weights is None and not published:
                warnings.warn(
                    "loss.perceptual compares in torchvision's VGG-19: other weights than in the "
                    f"published losses, which are at {vgg19.URL}",
                    stacklevel=4,
                )
            return vgg, lambda image, target: distance(vgg, image, target)
        warnings.warn(f"loss.perceptual is LPIPS in place of VGG-19: {why}", stacklevel=4)
    network = lpips.load()
    return network, lambda image, target: network(image, target).mean()


def distance(
    network: Callable[[Tensor], list[Tensor]],
    image: Float[Tensor, "image 3 height width"],
    target: Float[Tensor, "image 3 height width"],
) -> Float[Tensor, ""]:
    """The mean distance of images in [0, 1], as published, with gradients to `image` alone.

    The activations of `network` are those of images from 0 to 255.
    """
    with torch.no_grad():
        expected = network(target)
    total = PIXELS * 255 * (image - target).abs().mean()
    for weight, ours, theirs in zip(ACTIVATIONS, network(image), expected, strict=True):
        total = total + weight * (ours - theirs).abs().mean()
    return total / 255
