"""LPIPS: perceptual distance between images in the features of a classification network.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018,
version 0.1 of the linear heads. Written from the paper; gives the values of the `lpips` package.
"""

import importlib.util
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError
from ..io.weights import pretrained_folder
from ..kernels.convolution import conv_relu
from ..kernels.unit_distance import unit_distance
from .imagenet import download

# The layers of torchvision's `features` whose outputs are compared.
TAPS = {"vgg16": (3, 8, 15, 22, 29), "alexnet": (1, 4, 7, 9, 11)}
HEADS = {"vgg16": "vgg.pth", "alexnet": "alex.pth"}  # torchmetrics' files of linear heads
# ImageNet normalisation as LPIPS defines it, for images in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Unavailable(UserError):
    """Raised if weights are neither stored here nor downloadable; callers then skip the metric."""


class LPIPS(nn.Module):
    """Perceptual distance of image pairs; frozen and always in eval mode.

    Images are float RGB in [0, 1], with sides of at least 32 pixels. Values outside are allowed,
    since renderings are not clamped. Gradients flow to `image` only, not to `target`.
    """

    def __init__(self, net: str, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.taps = TAPS[net]
        with torch.device("meta"):  # the architecture without memory or random numbers
            self.features = _features(net)[: self.taps[-1] + 1]
        kept = {
            name.removeprefix("features."): tensor
            for name, tensor in weights.items()
            if name.startswith("features.")
        }
        self.features.load_state_dict(kept, strict=True, assign=True)
        for i in range(len(self.taps)):
            self.register_buffer(f"head{i}", weights[f"lin{i}.model.1.weight"].flatten())
        shift, scale = torch.tensor((SHIFT, SCALE), dtype=torch.float64).view(2, 3, 1, 1)
        self.register_buffer("factor", (2 / scale).float())
        self.register_buffer("offset", (-(1 + shift) / scale).float())
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "LPIPS":
        """Keeps eval mode, whatever `mode` is."""
        return super().train(False)

    def forward(
        self,
        image: Float[Tensor, "image 3 height width"],
        target: Float[Tensor, "image 3 height width"],
    ) -> Float[Tensor, " image"]:
        """Returns the distance of each pair, 0 for equal images, in the precision of the input."""
        with torch.no_grad():
            wanted = self._activations(target)
        heads = [self.get_buffer(f"head{i}") for i in range(len(self.taps))]
        return unit_distance(self._activations(image), wanted, heads)

    def _activations(self, image: Tensor) -> list[Tensor]:
        x = image * self.get_buffer("factor") + self.get_buffer("offset")
        taken = []
        for i, layer in enumerate(self.features):
            if isinstance(layer, nn.Conv2d):
                x = conv_relu(layer, x)
            elif not isinstance(layer, nn.ReLU):
                x = layer(x)
            if i in self.taps:
                taken.append(x)
        return taken


def _features(net: str) -> nn.Sequential:
    """The convolutions of a network. torchvision is imported late: it takes a second or two."""
    from torchvision.models import get_model

    features = get_model(net, weights=None).features
    assert isinstance(features, nn.Sequential)
    return features


def load(net: str = "vgg16", path: str | os.PathLike | None = None) -> LPIPS:
    """Returns LPIPS over `net` ("vgg16" or "alexnet") with the published weights.

    The weights come from the file `path`, else from the file named in $PMSPLAT_LPIPS, else from
    `pretrained/lpips_NET.npz` (arrays `features.N.weight|bias` and `linI.model.1.weight`), else
    from torchvision (downloaded once into its cache) with the linear heads from torchmetrics.
    Raises Unavailable if there are no weights, UserError for a file without such arrays.
    """
    if net not in TAPS:
        raise UserError(
            f"LPIPS network {net!r}", f"one of {', '.join(TAPS)}", "set `net` to one of these"
        )
    given = path or os.environ.get("PMSPLAT_LPIPS")
    if given and not Path(given).is_file():
        raise UserError(
            f"no file at {given}",
            "LPIPS weights (.npz)",
            "correct the path or $PMSPLAT_LPIPS",
        )
    local = Path(given or pretrained_folder() / f"lpips_{net}.npz")
    return LPIPS(net, _read(local, net) if local.is_file() else _torchvision(net, local))


def _read(path: Path, net: str) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            weights = {name: torch.from_numpy(file[name]) for name in file.files}
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is not a readable .npz", "the arrays of LPIPS", "download or copy it again"
        ) from error
    heads = [f"lin{i}.model.1.weight" for i in range(len(TAPS[net]))]
    first = weights.get("features.0.weight")
    with torch.device("meta"):
        wanted = _features(net)[0].weight.shape
    if first is None or first.shape != wanted or not all(head in weights for head in heads):
        raise UserError(
            f"{path} holds no LPIPS weights of {net}",
            "arrays features.N.weight|bias and linI.model.1.weight",
            "export them from the lpips package, or remove the file to use torchvision's weights",
        )
    return weights


def _torchvision(net: str, local: Path) -> dict[str, Tensor]:
    """Returns torchvision's ImageNet features and the linear heads from torchmetrics."""
    spec = importlib.util.find_spec("torchmetrics")
    places = spec.submodule_search_locations if spec else None
    heads = Path(next(iter(places or ["."]))) / "functional/image/lpips_models" / HEADS[net]
    missing = Unavailable(
        f"LPIPS ({net}) has no weights: {local} does not exist and torchvision's cannot be "
        f"downloaded",
        "a network connection for the first use, or that file",
        "put the file there, or train without LPIPS (`~loss.lpips`)",
    )
    if not heads.is_file():
        raise missing
    from torchvision.models import get_model_weights

    weights = download(get_model_weights(net)["IMAGENET1K_V1"], missing)
    linear = torch.load(heads, map_location="cpu", weights_only=True)
    last = TAPS[net][-1]
    return linear | {
        name: tensor
        for name, tensor in weights.items()
        if name.startswith("features.") and int(name.split(".")[1]) <= last
    }
