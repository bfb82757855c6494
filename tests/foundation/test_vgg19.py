"""VGG-19 against numpy in float64, its two kinds of files, and files that are neither."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.io import savemat

from pmsplat.errors import UserError
from pmsplat.foundation import vgg19
from pmsplat.foundation.lpips import Unavailable

NARROW = ((3, 4), (4, 5), (5, 6, 6, 6), (6, 7, 7, 7), (7, 8))  # channels, for small files
SIZES = [width for stage in NARROW for width in stage]
LAST = {1: 2, 2: 2, 3: 4, 4: 4, 5: 2}  # convolutions of each stage


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vgg19, "STAGES", NARROW)
    monkeypatch.delenv(vgg19.VARIABLE, raising=False)


@pytest.fixture
def parameters(generator: torch.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernels [output, input, 3, 3] and biases of the 14 convolutions."""
    found = []
    for inputs, out in zip([3, *SIZES], SIZES, strict=False):
        kernel = torch.randn(out, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
        found.append((kernel.numpy(), 10 * torch.randn(out, generator=generator).numpy()))
    return found


def by_hand(x: np.ndarray, parameters: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """relu1_2 … relu5_2 of what the first convolution reads, in float64."""
    layers, taken = iter(parameters), []
    for stage, count in LAST.items():
        if stage > 1:
            x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
            x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
        for place in range(1, count + 1):
            kernel, bias = (array.astype(np.float64) for array in next(layers))
            windows = sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2))
            x = np.einsum("ihwab,oiab->ohw", windows, kernel) + bias[:, None, None]
            x = np.maximum(x, 0)
            if place == 2:
                taken.append(x)
    return taken


def matconvnet(path: Path, parameters: list[tuple[np.ndarray, np.ndarray]], old: bool) -> Path:
    """A file of MatConvNet: a cell array of structs, kernels [height, width, input, output]."""
    layers: list[dict[str, Any]] = []
    names = [(stage, place) for stage, count in LAST.items() for place in range(1, count + 1)]
    for (stage, place), (kernel, bias) in zip(names, parameters, strict=True):
        filters = kernel.transpose(2, 3, 1, 0)
        both = np.empty((1, 2), dtype=object)
        both[0, 0], both[0, 1] = filters, bias[:, None]
        own = {"filters": filters, "biases": bias[None]} if old else {"weights": both}
        layers.append({"name": f"conv{stage}_{place}", "type": "conv", **own})
        layers.append({"name": f"relu{stage}_{place}", "type": "relu"})
    cells = np.empty((1, len(layers)), dtype=object)
    cells[0, :] = layers
    savemat(path, {"layers": cells, "meta": {"normalization": {"imageSize": [224, 224, 3]}}})
    return path


def torchvision(parameters: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
    """A state dict of torchvision: numbers count activations and poolings too."""
    state, number, layers = {}, 0, iter(parameters)
    for count in LAST.values():
        for _ in range(count):
            kernel, bias = next(layers)
            state[f"features.{number}.weight"] = torch.from_numpy(kernel)
            state[f"features.{number}.bias"] = torch.from_numpy(bias)
            number += 2
        number += 1
    return state


@pytest.mark.parametrize("old", [False, True])
def test_a_file_of_matconvnet_gives_the_activations_of_numpy(
    old: bool, tmp_path: Path, parameters: list, generator: torch.Generator
) -> None:
    network, published = vgg19.load(matconvnet(tmp_path / "vgg.mat", parameters, old))
    images = torch.rand(2, 3, 36, 51, generator=generator)
    taken = network(images)
    assert published and len(taken) == 5
    mean = np.array([123.68, 116.779, 103.939])[:, None, None]
    for image in range(2):
        want = by_hand(255 * images[image].double().numpy() - mean, parameters)
        for ours, theirs in zip(taken, want, strict=True):
            np.testing.assert_allclose(ours[image], theirs, rtol=1e-4, atol=1e-4 * theirs.max())
            assert (theirs > 0).any()


def test_torchvisions_activations_are_as_large_as_their_input_in_bytes(
    tmp_path: Path, parameters: list, generator: torch.Generator
) -> None:
    """Its own preprocessing, and every activation 255 times the mean deviation as large."""
    path = tmp_path / "vgg19.pth"
    torch.save(torchvision(parameters), path)
    network, published = vgg19.load(path)
    images = torch.rand(1, 3, 32, 40, generator=generator)
    mean, std = (np.array(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    want = by_hand((images[0].double().numpy() - mean) / std, parameters)
    assert not published
    for ours, theirs in zip(network(images), want, strict=True):
        wanted = 255 * 0.226 * theirs
        np.testing.assert_allclose(ours[0], wanted, rtol=1e-4, atol=1e-4 * wanted.max())


def test_the_places_are_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    monkeypatch.undo()
    with torch.device("meta"):
        features = models.vgg19(weights=None).features
    places = [
        i for i, layer in enumerate(features.children()) if isinstance(layer, torch.nn.Conv2d)
    ]
    assert places[: len(vgg19.PLACES)] == list(vgg19.PLACES)
    shapes = [tuple(features.get_parameter(f"{i}.weight").shape) for i in vgg19.PLACES]
    assert shapes == vgg19._shapes()


def test_it_is_frozen_and_lets_gradients_through(
    tmp_path: Path, parameters: list, generator: torch.Generator
) -> None:
    network, _ = vgg19.load(matconvnet(tmp_path / "vgg.mat", parameters, False))
    assert not network.train().training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    image = torch.rand(1, 3, 16, 16, generator=generator, requires_grad=True)
    network(image)[-1].sum().backward()
    assert image.grad is not None and image.grad.abs().max() > 0
    with pytest.raises(UserError, match="15x40 pixels for VGG-19; wanted sides of at least 16"):
        network(torch.rand(1, 3, 15, 40))


def test_the_variable_names_a_file(
    tmp_path: Path, parameters: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(vgg19.VARIABLE, str(matconvnet(tmp_path / "vgg.mat", parameters, False)))
    assert vgg19.load()[1]
    monkeypatch.setenv(vgg19.VARIABLE, str(tmp_path / "none.mat"))
    with pytest.raises(UserError, match=r"no file at .*none\.mat.*vlfeat\.org.*PMSPLAT_VGG19"):
        vgg19.load()


def test_other_files_are_told(tmp_path: Path, parameters: list) -> None:
    whole = matconvnet(tmp_path / "vgg.mat", parameters, False).read_bytes()
    files = {
        "text.mat": b"not a file of Matlab",
        "empty.mat": b"",
        "cut.mat": whole[: len(whole) // 2],
        "new.mat": b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    savemat(tmp_path / "other.mat", {"layers": np.arange(3)})
    savemat(tmp_path / "nothing.mat", {"x": 1})
    matconvnet(tmp_path / "wide.mat", [(k[:1], b[:1]) for k, b in parameters], False)
    for name in (*files, "other.mat", "nothing.mat", "wide.mat"):
        with pytest.raises(
            UserError, match=rf"{name} is not a readable VGG-19.*conv1_1 to conv5_2"
        ):
            vgg19.load(tmp_path / name)
    state = torchvision(parameters)
    del state["features.30.bias"]
    torch.save(state, tmp_path / "vgg16.pth")
    with pytest.raises(UserError, match=r"vgg16\.pth holds no weights of VGG-19 .*features\.30\)"):
        vgg19.load(tmp_path / "vgg16.pth")


def test_no_weights_at_all_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    from torchvision import models

    def offline(*arguments: object, **settings: object) -> None:
        raise URLError("offline")

    monkeypatch.setattr(vgg19, "pretrained_folder", lambda: tmp_path)
    monkeypatch.setattr(type(models.VGG19_Weights.IMAGENET1K_V1), "get_state_dict", offline)
    with pytest.raises(Unavailable, match=r"VGG-19 has no weights.*net=lpips"):
        vgg19.load()
