"""The perceptual loss against its published sum, and what stands in for VGG-19."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pmsplat import registry
from pmsplat.errors import UserError
from pmsplat.foundation import lpips, vgg19
from pmsplat.losses import perceptual
from pmsplat.types import StepOutput
from tests.losses.test_photometric import a_step

NARROW = ((3, 4), (4, 5), (5, 6, 6, 6), (6, 7, 7, 7), (7, 8))  # channels: a quick network


@pytest.fixture
def weights(
    tmp_path: Path, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A file of torchvision's kind, of a narrow VGG-19."""
    monkeypatch.setattr(vgg19, "STAGES", NARROW)
    monkeypatch.delenv(vgg19.VARIABLE, raising=False)
    state = {}
    for place, shape in zip(vgg19.PLACES, vgg19._shapes(), strict=True):
        state[f"features.{place}.weight"] = torch.randn(shape, generator=generator) / shape[1]
        state[f"features.{place}.bias"] = torch.randn(shape[0], generator=generator) / 10
    torch.save(state, tmp_path / "vgg19.pth")
    yield str(tmp_path / "vgg19.pth")


def by_hand(image: torch.Tensor, target: torch.Tensor, network: vgg19.VGG19) -> float:
    """As published: (e0 + e1/2.6 + e2/4.8 + e3/3.7 + e4/5.6 + 10 e5/1.5) / 255, in float64."""
    pairs = [(255 * image, 255 * target), *zip(network(image), network(target), strict=True)]
    e = [(a.double() - b.double()).abs().mean().item() for a, b in pairs]
    return (e[0] + e[1] / 2.6 + e[2] / 4.8 + e[3] / 3.7 + e[4] / 5.6 + 10 * e[5] / 1.5) / 255


def flat_pair(step: StepOutput) -> tuple[torch.Tensor, torch.Tensor]:
    return step.rendering.color.detach().flatten(0, 1), step.batch.target.images.flatten(0, 1)


def test_it_is_the_published_sum(weights: str, generator: torch.Generator) -> None:
    step = a_step(generator)
    loss = registry.build("losses", "perceptual", {"net": "vgg19", "weights": weights})
    value = loss(step)
    network, _ = vgg19.load(weights)
    assert value.item() == pytest.approx(by_hand(*flat_pair(step), network), rel=1e-5)
    value.backward()
    assert step.renderings[0].color.grad is None
    gradient = step.rendering.color.grad
    assert gradient is not None and gradient.isfinite().all() and gradient.abs().max() > 0


def test_equal_activations_leave_the_pixels() -> None:
    """One level of 255 off everywhere costs 1/255 for the pixels, and what each tap weighs."""

    def shallow(images: torch.Tensor) -> list[torch.Tensor]:
        return [images[:, :1] * scale for scale in (0, 1, 0, 0, 100)]

    target = torch.full((2, 3, 8, 8), 0.5, dtype=torch.float64)
    value = perceptual.distance(shallow, target + 1 / 255, target).item()
    assert value == pytest.approx((1 + 1 / 255 / 4.8 + 100 / 255 * 10 / 1.5) / 255)


def test_half_the_size_is_bilinear_with_aligned_corners(
    weights: str, generator: torch.Generator
) -> None:
    step = a_step(generator)
    cfg = {"net": "vgg19", "weights": weights, "downsample": 2}
    value = registry.build("losses", "perceptual", cfg)(step).item()
    weight = torch.zeros(40, 20, dtype=torch.float64)  # of each pixel for each of the half size
    for i in range(20):
        at = i * 39 / 19
        low = min(int(at), 38)
        weight[low, i], weight[low + 1, i] = 1 - (at - low), at - low
    small = [(weight.T @ x.double() @ weight).float() for x in flat_pair(step)]
    network, _ = vgg19.load(weights)
    assert value == pytest.approx(by_hand(small[0], small[1], network), rel=1e-4)


def test_lpips_stands_in_where_vgg19_cannot_be_had(
    shared: Path, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(path: str | None) -> None:
        raise lpips.Unavailable("VGG-19 has no weights", "that file", "get it")

    monkeypatch.setattr(vgg19, "load", missing)
    monkeypatch.setenv("PMSPLAT_LPIPS", str(shared / "weights" / "lpips_vgg16.npz"))
    with pytest.warns(UserWarning, match="is LPIPS in place of VGG-19: VGG-19 has no weights"):
        loss = registry.build("losses", "perceptual")
    step = a_step(generator)
    wanted = registry.build("losses", "lpips")(step).item()
    assert loss(step).item() == pytest.approx(wanted)
    with warnings.catch_warnings():  # chosen, it needs no word
        warnings.simplefilter("error")
        chosen = registry.build("losses", "perceptual", {"net": "lpips"})
    assert chosen(step).item() == pytest.approx(wanted)
    with pytest.raises(lpips.Unavailable, match="VGG-19 has no weights"):
        registry.build("losses", "perceptual", {"net": "vgg19"})


def test_other_weights_than_published_are_told_unless_given(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.build("losses", "perceptual", {"weights": weights})
    network, _ = vgg19.load(weights)
    monkeypatch.setattr(vgg19, "load", lambda path: (network, False))
    with pytest.warns(UserWarning, match=r"torchvision's VGG-19: other weights.*vlfeat"):
        registry.build("losses", "perceptual")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"net": "vgg16"}, r"perceptual\.net='vgg16'; wanted one of auto, vgg19, lpips"),
        ({"downsample": 0}, r"perceptual\.downsample=0; wanted a whole number of at least 1"),
        ({"weights": "none.mat"}, r"no file at none\.mat"),
    ],
)
def test_wrong_settings_are_told(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.build("losses", "perceptual", settings)
