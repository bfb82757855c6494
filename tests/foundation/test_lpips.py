"""LPIPS against a second implementation and a slow one, its gradients, and its absence."""

from pathlib import Path
from typing import Literal
from urllib.error import URLError

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d

from pmsplat.errors import UserError
from pmsplat.foundation import lpips


def random_weights(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Weights in the shapes of LPIPS over AlexNet, with non-negative heads as the published."""
    shapes = {"0": (64, 3, 11, 11), "3": (192, 64, 5, 5), "6": (384, 192, 3, 3)}
    shapes |= {"8": (256, 384, 3, 3), "10": (256, 256, 3, 3)}
    weights = {}
    for i, (name, shape) in enumerate(shapes.items()):
        fan = shape[1] * shape[2] * shape[3]
        noise = torch.randn(shape, generator=generator)
        weights[f"features.{name}.weight"] = noise * (2 / fan) ** 0.5
        weights[f"features.{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
        weights[f"lin{i}.model.1.weight"] = torch.rand(1, shape[0], 1, 1, generator=generator)
    return weights


@pytest.fixture
def weights(generator: torch.Generator) -> dict[str, torch.Tensor]:
    return random_weights(generator)


@pytest.fixture
def pair(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    target = torch.rand(2, 3, 64, 72, generator=generator)
    return target + 0.2 * torch.randn(target.shape, generator=generator), target


def slow_alexnet(image: np.ndarray, weights: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """The five activations of AlexNet in float64, from SciPy's two-dimensional correlation."""

    def convolve(x: np.ndarray, name: str, stride: int, pad: int) -> np.ndarray:
        kernel = weights[f"features.{name}.weight"].double().numpy()
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
        rows = [
            sum(correlate2d(x[i], row[i], mode="valid")[::stride, ::stride] for i in range(len(x)))
            for row in kernel
        ]
        bias = weights[f"features.{name}.bias"].double().numpy()
        return np.maximum(np.stack(rows) + bias[:, None, None], 0)

    def pool(x: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
        return windows[:, ::2, ::2].max(axis=(3, 4))

    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    x = ((2 * image - 1) - shift[:, None, None]) / scale[:, None, None]
    a = convolve(x, "0", 4, 2)
    b = convolve(pool(a), "3", 1, 2)
    c = convolve(pool(b), "6", 1, 1)
    d = convolve(c, "8", 1, 1)
    return [a, b, c, d, convolve(d, "10", 1, 1)]


def test_equals_a_slow_float64_computation(
    weights: dict[str, torch.Tensor], pair: tuple[torch.Tensor, torch.Tensor]
) -> None:
    image, target = (x[:1, :, :35, :39] for x in pair)
    want = 0.0
    first, second = (slow_alexnet(x[0].double().numpy(), weights) for x in (image, target))
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        unit_a = a / (np.sqrt((a**2).sum(axis=0)) + 1e-10)
        unit_b = b / (np.sqrt((b**2).sum(axis=0)) + 1e-10)
        head = weights[f"lin{i}.model.1.weight"].double().numpy().reshape(-1, 1, 1)
        want += (head * (unit_a - unit_b) ** 2).sum(axis=0).mean()
    got = lpips.LPIPS("alexnet", weights)(image, target)
    assert got.item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(("net", "other_name"), [("vgg16", "vgg"), ("alexnet", "alex")])
def test_equals_torchmetrics_with_the_published_weights(
    net: str,
    other_name: Literal["vgg", "alex"],
    shared: Path,
    pair: tuple[torch.Tensor, torch.Tensor],
) -> None:
    from torchmetrics.functional.image.lpips import _LPIPS

    path = shared / "weights" / f"lpips_{net}.npz"
    other = _LPIPS(pretrained=True, net=other_name, pnet_rand=True)
    with np.load(path) as file:
        features = {name: torch.from_numpy(file[name]) for name in file.files}
    slices = {name: value for name, value in features.items() if name.startswith("features")}
    renamed = {}
    for key in other.net.state_dict():  # slice1.0.weight -> features.0.weight
        renamed[key] = slices["features." + key.split(".", 1)[1]]
    other.net.load_state_dict(renamed, strict=True)
    image, target = pair
    want = other.eval()(image, target, normalize=True).flatten()
    got = lpips.load(net, path)(image, target)
    assert torch.allclose(got, want, rtol=1e-4)
    assert (got > 0.02).all()


def test_equal_images_have_no_distance_and_swapping_changes_nothing(
    weights: dict[str, torch.Tensor], pair: tuple[torch.Tensor, torch.Tensor]
) -> None:
    distance = lpips.LPIPS("alexnet", weights)
    image, target = pair
    assert distance(target, target).tolist() == [0.0, 0.0]
    assert torch.allclose(distance(image, target), distance(target, image))
    assert torch.allclose(distance(image[1:], target[1:]), distance(image, target)[1:])


def test_gradients_reach_the_rendering_alone_and_are_finite_on_black(
    weights: dict[str, torch.Tensor], pair: tuple[torch.Tensor, torch.Tensor]
) -> None:
    distance = lpips.LPIPS("alexnet", weights).train()
    assert not distance.training
    assert not any(p.requires_grad for p in distance.parameters())
    target = pair[1].clone().requires_grad_()
    black = torch.zeros_like(target).requires_grad_()
    distance(black, target).sum().backward()
    assert target.grad is None
    assert black.grad is not None and black.grad.isfinite().all() and black.grad.abs().max() > 0


def save(weights: dict[str, torch.Tensor], path: Path) -> None:
    np.savez(path, allow_pickle=False, **{name: w.numpy() for name, w in weights.items()})


def test_a_file_in_the_folder_of_weights_is_found(
    weights: dict[str, torch.Tensor],
    pair: tuple[torch.Tensor, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save(weights, tmp_path / "lpips_alexnet.npz")
    monkeypatch.setattr(lpips, "pretrained_folder", lambda: tmp_path)
    want = lpips.LPIPS("alexnet", weights)(*pair)
    assert torch.equal(lpips.load("alexnet")(*pair), want)
    (tmp_path / "lpips_alexnet.npz").rename(tmp_path / "elsewhere.npz")
    monkeypatch.setenv("PMSPLAT_LPIPS", str(tmp_path / "elsewhere.npz"))
    assert torch.equal(lpips.load("alexnet")(*pair), want)


def test_without_weights_the_sentence_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(lpips, "pretrained_folder", lambda: tmp_path)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(lpips.Unavailable, match=r"lpips_vgg16\.npz does not exist.*~loss\.lpips"):
        lpips.load("vgg16")


def test_torchvision_features_join_the_heads_of_torchmetrics(
    shared: Path,
    pair: tuple[torch.Tensor, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = shared / "weights" / "lpips_alexnet.npz"
    with np.load(path) as file:
        features = {n: torch.from_numpy(file[n]) for n in file.files if n.startswith("features")}

    def download(*args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        return features | {"classifier.6.bias": torch.zeros(1000)}

    monkeypatch.setattr(lpips, "pretrained_folder", lambda: tmp_path)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    assert torch.equal(lpips.load("alexnet")(*pair), lpips.load("alexnet", path)(*pair))


def test_wrong_settings_and_files_are_told(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="'vgg'; wanted one of vgg16, alexnet"):
        lpips.load("vgg")
    with pytest.raises(UserError, match="no file at"):
        lpips.load("vgg16", tmp_path / "nothing.npz")
    save(weights, tmp_path / "alex.npz")
    with pytest.raises(UserError, match="holds no LPIPS weights of vgg16"):
        lpips.load("vgg16", tmp_path / "alex.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match=r"text\.npz is not a readable \.npz"):
        lpips.load("vgg16", tmp_path / "text.npz")
