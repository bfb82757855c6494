"""The activations of VGG-19, with average pooling, in which images are compared.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
2015; average pooling after Gatys et al., "Image Style Transfer Using Convolutional Neural
Networks", CVPR 2016. Two sets of weights are known:

* the authors' own, which losses of images were published with, as the VLFeat group converted them
  for MatConvNet: `imagenet-vgg-verydeep-19.mat`. They take RGB of 0 to 255 without its mean.
* torchvision's, which were trained anew on images divided by their deviation too. That factor is
  moved into the network, so that activations are of the size of the first; but how they relate to
  each other, from layer to layer, is that of another training.
"""

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UserError
from ..io.weights import pretrained_folder, read_checkpoint
from ..kernels.convolution import Conv2d
from . import imagenet
from .lpips import Unavailable

FILE = "imagenet-vgg-verydeep-19.mat"
URL = f"https://www.vlfeat.org/matconvnet/models/{FILE}"
VARIABLE = "PMSPLAT_VGG19"
# Channels of the convolutions between two poolings, up to the last tap.
STAGES = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 2)
TAP = 2  # the convolution of each stage whose activation is taken
SMALLEST = 2 ** (len(STAGES) - 1)  # pixels of a side
NAMES = [f"conv{s}_{c}" for s, stage in enumerate(STAGES, 1) for c in range(1, len(stage) + 1)]
# Where torchvision's `features` has them; activations and poolings lie between.
PLACES = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30)
MEAN = (123.68, 116.779, 103.939)  # of RGB from 0 to 255


@dataclass(frozen=True)
class Weights:
    """Kernels and biases in the order of NAMES, for (255 · RGB - `mean`) · `scale`."""

    kernels: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    mean: tuple[float, ...] = MEAN
    scale: tuple[float, ...] = (1.0, 1.0, 1.0)


class VGG19(nn.Module):
    """Activations after relu1_2, relu2_2, relu3_2, relu4_2 and relu5_2; frozen, in eval mode."""

    mean: Tensor
    scale: Tensor

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        with torch.device("meta"):  # the architecture without memory or random numbers
            layers = (Conv2d(inputs, out, 3, padding=1) for out, inputs, *_ in _shapes())
            self.convolutions = nn.ModuleList(layers)
        state = {f"{i}.weight": kernel for i, kernel in enumerate(weights.kernels)}
        state |= {f"{i}.bias": bias for i, bias in enumerate(weights.biases)}
        self.convolutions.load_state_dict(state, strict=True, assign=True)
        self.register_buffer("mean", torch.tensor(weights.mean).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(weights.scale).view(3, 1, 1))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "VGG19":
        """Keeps eval mode, whatever `mode` is."""
        return super().train(False)

    def forward(self, images: Float[Tensor, "image 3 height width"]) -> list[Tensor]:
        """The five activations of RGB in [0, 1], fine to coarse; values outside are allowed.

        Raises UserError for sides below 16 pixels.
        """
        height, width = images.shape[-2:]
        if min(height, width) < SMALLEST:
            raise UserError(
                f"images of {height}x{width} pixels for VGG-19",
                f"sides of at least {SMALLEST}",
                "use larger images, or a loss without it (~loss.perceptual)",
            )
        x = (255 * images - self.mean) * self.scale
        taken = []
        layers = iter(self.convolutions)
        for number, stage in enumerate(STAGES):
            x = functional.avg_pool2d(x, 2) if number else x
            for place in range(1, len(stage) + 1):
                x = functional.relu(next(layers)(x))
                if place == TAP:
                    taken.append(x)
        return taken


def load(path: str | os.PathLike | None = None) -> tuple[VGG19, bool]:
    """VGG-19, and whether its weights are the authors' own.

    They come from the file `path`, else from that named in $PMSPLAT_VGG19, else from
    `pretrained/imagenet-vgg-verydeep-19.mat`, else from torchvision (downloaded once into its
    cache). A file is MatConvNet's .mat, or a state dict of torchvision. Raises Unavailable if there
    are no weights, UserError for a given file that is not one of these.
    """
    given = path or os.environ.get(VARIABLE)
    local = Path(given or pretrained_folder() / FILE)
    if given and not local.is_file():
        raise UserError(
            f"no file at {given}",
            f"weights of VGG-19: {FILE}, or torchvision's",
            f"get it from {URL}, or correct the path or ${VARIABLE}",
        )
    if not local.is_file():
        return VGG19(_from_torchvision(_download())), False
    if local.suffix == ".mat":
        return VGG19(_read_matconvnet(local)), True
    return VGG19(_from_torchvision(read_checkpoint(local), str(local))), False


def _read_matconvnet(path: Path) -> Weights:
    """The weights of a model of MatConvNet; its kernels are [height, width, input, output]."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    problem: Any = None
    try:
        found = loadmat(path, squeeze_me=True, struct_as_record=False, variable_names=["layers"])
        layers = {layer.name: layer for layer in found["layers"]}
        arrays = [_arrays(layers[name]) for name in NAMES]
        kernels = tuple(_tensor(kernel).permute(3, 2, 0, 1).contiguous() for kernel, _ in arrays)
        biases = tuple(_tensor(bias) for _, bias in arrays)
        shapes = [tuple(kernel.shape) for kernel in kernels]
        if shapes == _shapes() and [len(bias) for bias in biases] == [s[0] for s in shapes]:
            return Weights(kernels, biases)
    except (
        MatReadError, NotImplementedError, OSError, ValueError, TypeError, LookupError,
        AttributeError, RuntimeError, MemoryError, zlib.error,
    ) as error:  # fmt: skip
        problem = error
    raise UserError(
        f"{path} is not a readable VGG-19 of MatConvNet",
        f"layers {NAMES[0]} to {NAMES[-1]}",
        f"get the file again from {URL}",
    ) from problem


def _arrays(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of a layer, by the names of newer and of older versions of MatConvNet."""
    if hasattr(layer, "weights"):
        kernel, bias = layer.weights
        return kernel, bias
    return layer.filters, layer.biases


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _shapes() -> list[tuple[int, int, int, int]]:
    widths = [3, *(width for stage in STAGES for width in stage)]
    return [(out, inputs, 3, 3) for inputs, out in pairwise(widths)]


def _from_torchvision(state: Mapping[str, Tensor], where: str = "torchvision") -> Weights:
    """Its weights with the deviation of its images in the biases: every activation grows by it.

    Activations are ReLUs and means of sums, so a factor at the input is one at every output.
    """
    shapes = dict(zip(PLACES, _shapes(), strict=True))
    for place, shape in shapes.items():
        kernel, bias = (state.get(f"features.{place}.{part}") for part in ("weight", "bias"))
        if kernel is None or bias is None or kernel.shape != shape or bias.shape != shape[:1]:
            raise UserError(
                f"{where} holds no weights of VGG-19 (nothing that fits features.{place})",
                f"{FILE}, or torchvision's state dict of vgg19",
                f"get the former from {URL}",
            )
    unit = 255 * sum(imagenet.STD) / 3
    return Weights(
        kernels=tuple(state[f"features.{place}.weight"] for place in PLACES),
        biases=tuple(unit * state[f"features.{place}.bias"] for place in PLACES),
        mean=tuple(255 * mean for mean in imagenet.MEAN),
        scale=tuple(unit / (255 * std) for std in imagenet.STD),
    )


def _download() -> Mapping[str, Tensor]:
    from torchvision import models

    missing = Unavailable(
        f"VGG-19 has no weights: {pretrained_folder() / FILE} does not exist and torchvision's "
        "cannot be downloaded",
        "a network connection for the first use, or that file",
        f"get it from {URL}, or use LPIPS in its place (loss.perceptual.net=lpips)",
    )
    return imagenet.download(models.VGG19_Weights.IMAGENET1K_V1, missing)
