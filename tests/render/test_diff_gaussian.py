"""The diff_gaussian backend: every fork it may meet draws what the reference draws.

Opacities stay below 0.35, where the three standard deviations to which the forks draw contain all
that is above 1/255.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from pmsplat.errors import UserError
from pmsplat.render import diff_gaussian as backend
from pmsplat.render import rasterize
from pmsplat.types import MIP, Cameras, DrawingRules, Gaussians, Rendering
from tests.scenes import PARAMETERS, random_cameras, random_gaussians

from .forks import FORKS, WithPose, fork

pytestmark = pytest.mark.filterwarnings("ignore:.*Inria's license")
CPU = torch.device("cpu")
SIZE = (23, 37)
OWN = {
    "graphdeco": "colour",
    "dcharatan": "colour",
    "leo-frank": "colour",
    "ashawkey": "colour, depth, alpha",
    "ashawkey, early": "colour, alpha",
    "luiten": "colour, median depth",
    "luiten, late": "colour",
    "graphdeco, antialiasing": "colour",
}
each = pytest.mark.parametrize("name", FORKS)


@dataclass
class Installed:
    """Puts a stand-in where the backend looks, and remembers the passes it was asked for."""

    patch: pytest.MonkeyPatch
    calls: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, name: str, module_name: str = backend.MODULES[0]) -> ModuleType:
        module = fork(name, module_name, self.calls)
        self.patch.setitem(sys.modules, module_name, module)
        return module


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Installed:
    for name in backend.MODULES:
        monkeypatch.setitem(sys.modules, name, None)  # not to be imported
    monkeypatch.setattr(backend, "obstacle", lambda device: None)
    return Installed(monkeypatch)


def scene(generator: torch.Generator, count: int = 60) -> tuple[Gaussians, Cameras]:
    """Two scenes, three cameras off centre; the second camera's near plane culls."""
    cameras = random_cameras(3, generator, batch=2)
    cameras.near[:, 1] *= 38
    cameras.K[:, 2, 0, 1] = 0.07
    gaussians = random_gaussians(count, generator, batch=2)
    return replace(gaussians, opacities=0.35 * gaussians.opacities), cameras


def weighted(drawn: Rendering) -> Tensor:
    """A loss on all outputs, with other weights for each pixel."""
    images = [drawn.color.flatten(), drawn.depth.flatten(), drawn.alpha.flatten()]
    assert drawn.attributes is not None
    images.append(drawn.attributes.flatten())
    flat = torch.cat(images)
    return (flat * torch.linspace(-1, 2, len(flat)).sin()).sum()


@each
def test_values_and_gradients_are_the_references(
    name: str, install: Installed, generator: torch.Generator
) -> None:
    install(name)
    gaussians, cameras = scene(generator)
    gaussians.means[0, 0] = float("nan")
    attributes = torch.randn(2, 60, 4, generator=generator)
    background = torch.rand(2, 3, generator=generator)
    drawn: dict[str, Rendering] = {}
    gradients: dict[str, list[Tensor]] = {}
    for choice in ("diff_gaussian", "reference"):
        leaves = gaussians.map(lambda tensor: tensor.clone().requires_grad_())
        extra = attributes.clone().requires_grad_()
        drawn[choice] = rasterize(
            leaves, cameras, SIZE, choice, background, extra, 1, extras=["screen"]
        )
        screen = drawn[choice].screen
        assert screen is not None
        screen.means.retain_grad()
        weighted(drawn[choice]).backward()
        of = [getattr(leaves, name) for name in PARAMETERS] + [extra, screen.means]
        gradients[choice] = [tensor.grad for tensor in of]
    got, wanted = drawn["diff_gaussian"], drawn["reference"]
    for image in ("color", "depth", "alpha", "attributes"):
        torch.testing.assert_close(
            getattr(got, image), getattr(wanted, image), rtol=1e-3, atol=2e-5, msg=image
        )
    alone = rasterize(gaussians, replace(cameras, near=cameras.near / 99), SIZE, "reference")
    assert not torch.allclose(alone.alpha[:, 1], wanted.alpha[:, 1])  # the cull was at work
    for index, (a, b) in enumerate(zip(*gradients.values(), strict=True)):
        assert b.norm() > 0 and (a - b).norm() < 2e-3 * b.norm(), index


def test_antialiased_where_the_fork_has_it(install: Installed, generator: torch.Generator) -> None:
    gaussians, cameras = scene(generator)
    gaussians = replace(gaussians, scales=0.2 * gaussians.scales, rules=MIP)
    install("graphdeco, antialiasing")
    found: dict[str, list[Tensor]] = {}
    for choice in ("diff_gaussian", "reference"):
        leaves = gaussians.map(lambda tensor: tensor.clone().requires_grad_())
        drawn = rasterize(leaves, cameras, SIZE, choice)
        (drawn.color.square().sum() + drawn.alpha.sum()).backward()
        found[choice] = [drawn.color, *(getattr(leaves, name).grad for name in PARAMETERS)]
    for got, wanted in zip(*found.values(), strict=True):
        assert wanted.norm() > 0 and (got - wanted).norm() < 2e-3 * wanted.norm()
    install("graphdeco")
    with pytest.raises(UserError, match=r"antialiased Gaussians, which .*`antialiasing`"):
        rasterize(gaussians, cameras, SIZE, "diff_gaussian")


@pytest.mark.parametrize("changes", [
    {"blur": 0.1}, {"alpha_cap": 0.9}, {"near": 0.0}, {"far": 1.0}, {"clamp": "image"},
])  # fmt: skip
def test_rules_that_forks_have_not_are_refused(
    changes: dict[str, Any], install: Installed, generator: torch.Generator
) -> None:
    install("graphdeco")
    with pytest.raises(UserError, match=r"does not know: DrawingRules.*blur=0.3, alpha_cap=0.99"):
        rasterize(*scene(generator), SIZE, "diff_gaussian", rules=DrawingRules(**changes))


@each
def test_only_what_is_right_is_taken_from_a_fork(
    name: str, install: Installed, generator: torch.Generator
) -> None:
    """Depth and alpha of a fork save passes where they, and their gradients, are complete."""
    install(name)
    assert str(backend.installed_fork(CPU)) == f"diff_gaussian_rasterization ({OWN[name]})"
    install.calls.clear()
    gaussians, cameras = scene(generator)
    rasterize(gaussians, cameras, SIZE, "diff_gaussian")
    passes = 1 if OWN[name] == "colour, depth, alpha" else 2
    assert len(install.calls) == 6 * passes
    settings = install.calls[0]["settings"]
    assert (settings.image_height, settings.image_width) == SIZE


def test_median_depth_is_luitens(install: Installed, generator: torch.Generator) -> None:
    """Dense enough to fall to half; nowhere else is there a median."""
    install("luiten")
    gaussians, cameras = scene(generator, count=400)
    gaussians = replace(gaussians, scales=2 * gaussians.scales)
    got, wanted = (
        rasterize(gaussians, cameras, SIZE, choice, extras=["depth_median"]).depth_median
        for choice in ("diff_gaussian", "reference")
    )
    assert got is not None and wanted is not None
    assert 0.2 < (wanted > 0).float().mean() < 0.9
    close = torch.isclose(got, wanted, rtol=1e-4, atol=0)
    assert close.float().mean() > 0.998  # a transmittance within rounding of one half may go over


def test_a_wall_at_fifteen_has_a_median(install: Installed) -> None:
    """15 means none only where the transmittance stays above one half."""
    install("luiten")
    x = torch.linspace(-20, 20, 41)
    grid = torch.stack([*torch.meshgrid(x, x, indexing="xy"), torch.full((41, 41), 15.0)], dim=-1)
    count = 41 * 41
    wall = Gaussians(
        grid.reshape(1, count, 3), torch.full((1, count, 3), 1.0),
        torch.tensor([1.0, 0, 0, 0]).repeat(1, count, 1), torch.full((1, count), 0.35),
        torch.zeros(1, count, 1, 3),
    )  # fmt: skip
    K = torch.tensor([[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1.0]])
    edge = torch.ones(1, 1)
    cameras = Cameras(torch.eye(4)[None, None], K[None, None], edge, 100 * edge)
    median = rasterize(
        wall, cameras, (16, 16), "diff_gaussian", extras=["depth_median"]
    ).depth_median
    assert median is not None
    torch.testing.assert_close(median, torch.full_like(median, 15.0))


def test_other_forks_have_no_median(install: Installed, generator: torch.Generator) -> None:
    install("ashawkey")
    with pytest.raises(UserError, match=r"no median depth: diff_gaussian_rasterization \(colour, "):
        rasterize(*scene(generator), SIZE, "diff_gaussian", extras=["depth_median"])


@pytest.mark.parametrize(("count", "views"), [(0, 2), (5, 0)])
def test_nothing_to_draw(
    count: int, views: int, install: Installed, generator: torch.Generator
) -> None:
    install("graphdeco")
    gaussians = random_gaussians(count, generator)
    drawn = rasterize(
        gaussians, random_cameras(2, generator).at(slice(views)), SIZE, "diff_gaussian"
    )
    assert drawn.color.shape == (1, views, 3, *SIZE) and not drawn.alpha.any()


def test_pictures_without_gradients(install: Installed, generator: torch.Generator) -> None:
    install("luiten")
    with torch.inference_mode():
        drawn = rasterize(*scene(generator), SIZE, "diff_gaussian", extras=["depth_median"])
    assert drawn.color.any() and not drawn.color.requires_grad
    assert not rasterize(*scene(generator), SIZE, "diff_gaussian").color.requires_grad


def test_the_license_is_named_once(install: Installed, generator: torch.Generator) -> None:
    install("leo-frank", backend.MODULES[1])
    with pytest.warns(UserWarning, match=r"_depth \(colour\); it is .* no commercial") as warned:
        rasterize(*scene(generator), SIZE, "diff_gaussian")
        rasterize(*scene(generator), SIZE, "diff_gaussian")
    assert len(warned) == 1


def _poses(install: Installed) -> None:
    install("graphdeco").GaussianRasterizationSettings = WithPose  # type: ignore[attr-defined]


def _bare(install: Installed) -> None:
    del install("graphdeco").__dict__["GaussianRasterizationSettings"]


def _turned(install: Installed) -> None:
    drawer = install("graphdeco").GaussianRasterizer
    whole = drawer.forward
    drawer.forward = lambda self, **given: whole(self, **given)[::-1]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda install: None, ["no fork", "install github.com", "non-commercial"]),
        (_poses, ["settings", "projmatrix_raw", "another fork"]),
        (_bare, ["settings", "bg, campos", "another fork"]),
        (_turned, ["returned shapes [[2], [3, 24, 40]]", "colour [3, height, width]"]),
    ],
)
def test_what_cannot_be_used_is_explained(
    spoil: Callable[[Installed], None], words: list[str], install: Installed
) -> None:
    spoil(install)
    with pytest.raises(UserError) as caught:
        backend.installed_fork(CPU)
    for word in words:
        assert word in str(caught.value)


def test_a_broken_extension_is_explained(
    install: Installed, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "diff_gaussian_rasterization.py").write_text("from . import _C")
    monkeypatch.delitem(sys.modules, "diff_gaussian_rasterization")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"diff_gaussian_rasterization does not load .* build it"):
        backend.installed_fork(CPU)
    sys.modules.pop("diff_gaussian_rasterization", None)


def test_it_wants_cuda() -> None:
    assert "on cpu; wanted tensors on a CUDA device" in str(backend.obstacle(CPU))


@pytest.mark.cuda
def test_the_installed_fork_draws_what_the_reference_draws(generator: torch.Generator) -> None:
    problem = backend.obstacle(torch.device("cuda"))
    if problem is not None:
        pytest.skip(str(problem))
    gaussians, cameras = scene(generator, count=400)
    attributes = torch.randn(2, 400, 4, generator=generator)
    drawn: dict[str, Rendering] = {}
    gradients: dict[str, list[Tensor]] = {}
    for choice in ("diff_gaussian", "reference"):
        leaves = gaussians.map(lambda tensor: tensor.cuda().requires_grad_())
        drawn[choice] = rasterize(
            leaves, cameras.to("cuda"), (48, 64), choice, None, attributes.cuda()
        )
        weighted(drawn[choice].to("cpu")).backward()
        gradients[choice] = [getattr(leaves, name).grad for name in PARAMETERS]
    for image in ("color", "depth", "alpha", "attributes"):
        got, wanted = (getattr(drawn[choice], image) for choice in drawn)
        assert (got - wanted).norm() < 1e-3 * wanted.norm(), image
    for index, (a, b) in enumerate(zip(*gradients.values(), strict=True)):
        assert (a - b).norm() < 1e-2 * b.norm(), index
