"""The gsplat backend: what it hands over, on any machine; what it draws, where there is CUDA."""

import inspect
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from pmsplat import render
from pmsplat.errors import UserError
from pmsplat.geometry import se3
from pmsplat.render import _warn_slow, draws_median, fast_backend, rasterize
from pmsplat.render import cpu as cpu_backend
from pmsplat.render import gsplat as backend
from pmsplat.render import triton as triton_backend
from pmsplat.types import CLASSIC, MIP, RESPLAT, Cameras, DrawingRules, Gaussians
from tests.scenes import PARAMETERS, limits_of_resplat, random_cameras, random_gaussians


def as_drawn(rules: DrawingRules) -> DrawingRules:
    """The rules with the cap and the clamp that gsplat has for all."""
    return replace(rules, alpha_cap=0.999, clamp="image")


def rasterization(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor,
    viewmats: Tensor, Ks: Tensor, width: int, height: int,
    near_plane: float = 0.01, far_plane: float = 1e10, eps2d: float = 0.3, packed: bool = True,
    render_mode: str = "RGB", rasterize_mode: str = "classic",
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:  # fmt: skip
    """gsplat's function by its own documentation, drawn by the reference one view at a time.

    The reference wants rigid w2c, so the scale of `viewmats` is taken out and put into z.
    """
    assert render_mode == "RGB+D" and not packed
    assert rasterize_mode in ("classic", "antialiased")
    batch, targets = viewmats.shape[:2]
    assert colors.shape[:3] == (batch, targets, means.shape[1])
    unit = viewmats[..., 2, :3].norm(dim=-1)
    rigid = viewmats.clone()
    rigid[..., :3, :] /= unit[..., None, None]
    near, far = near_plane / 0.2 / unit, far_plane / unit
    K = Ks / torch.tensor([width, height, 1.0])[:, None]
    cameras = Cameras(se3.invert(rigid), K, near, far)
    # The planes are in the cameras
    rules = as_drawn(DrawingRules(eps2d, rasterize_mode == "antialiased", far=1.0))
    plain = Gaussians(
        means, scales, quats, opacities, torch.zeros(batch, means.shape[1], 1, 3), rules
    )
    images, alphas, screens = [], [], []
    for t in range(targets):
        drawn = rasterize(
            plain, cameras.at([t]), (height, width), "reference",
            attributes=colors[:, t], extras=["screen"],
        )  # fmt: skip
        assert drawn.attributes is not None and drawn.screen is not None
        z = drawn.depth * drawn.alpha * unit[:, t, None, None, None]
        images.append(torch.cat([drawn.attributes, z[:, :, None]], dim=2))
        alphas.append(drawn.alpha)
        screens.append(drawn.screen)
    details = {
        "means2d": torch.cat([screen.means for screen in screens], dim=1),
        "radii": torch.cat([screen.radii for screen in screens], dim=1).ceil().int()[..., None],
    }
    image, alpha = torch.cat(images, dim=1), torch.cat(alphas, dim=1)
    return image.movedim(2, -1), alpha[..., None], details


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """`gsplat` replaced by the function above; the list receives what it was called with."""
    calls: list[dict[str, Any]] = []

    def record(**arguments: Any) -> Any:
        calls.append(arguments)
        return rasterization(**arguments)

    module = ModuleType("gsplat")
    module.rasterization = record  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gsplat", module)
    monkeypatch.setattr(backend, "obstacle", lambda device: None)
    return calls


def test_one_call_draws_all_scenes_and_views(
    stand_in: list[dict[str, Any]], generator: torch.Generator
) -> None:
    """Off-centre cameras with different near planes, one of which culls; everything asked for."""
    cameras = random_cameras(3, generator, batch=2)
    cameras.near[:, 1] *= 45
    gaussians = random_gaussians(120, generator, batch=2)
    gaussians.means[0, 0] = float("nan")
    attributes = torch.randn(2, 120, 2, generator=generator)
    background = torch.rand(2, 3, generator=generator)

    def draw(name: str, rules: DrawingRules) -> Any:
        return rasterize(
            gaussians, cameras, (14, 19), name, background, attributes, 1, ["screen"], rules
        )

    got, wanted = draw("gsplat", CLASSIC), draw("reference", as_drawn(CLASSIC))
    assert len(stand_in) == 1
    for name in ("color", "depth", "alpha", "attributes"):
        torch.testing.assert_close(getattr(got, name), getattr(wanted, name), rtol=1e-4, atol=1e-5)
    alone = rasterize(gaussians, replace(cameras, near=cameras.near * 0), (14, 19), "reference")
    assert not torch.allclose(alone.alpha[:, 1], wanted.alpha[:, 1])  # the cull was at work
    seen = wanted.screen.radii > 0
    assert torch.equal(got.screen.radii > 0, seen)
    torch.testing.assert_close(got.screen.means[seen], wanted.screen.means[seen])


@pytest.mark.parametrize("rules", [MIP, RESPLAT, replace(RESPLAT, near=2.0, far=0.04)])
def test_rules_are_handed_over(
    rules: DrawingRules, stand_in: list[dict[str, Any]], generator: torch.Generator
) -> None:
    cameras = random_cameras(2, generator)
    cameras.near[:, 1] *= 1.5
    cameras.far[:, 1] *= 1.5
    gaussians = random_gaussians(120, generator)
    gaussians = replace(gaussians, scales=0.3 * gaussians.scales, rules=rules)
    got = rasterize(gaussians, cameras, (14, 19), "gsplat")
    wanted = rasterize(gaussians, cameras, (14, 19), "reference", rules=as_drawn(rules))
    torch.testing.assert_close(got.color, wanted.color, rtol=1e-4, atol=1e-5)
    classic = rasterize(gaussians, cameras, (14, 19), "gsplat", rules=CLASSIC)
    assert [call["rasterize_mode"] for call in stand_in] == ["antialiased", "classic"]
    assert (classic.color - wanted.color).norm() > 0.1 * wanted.color.norm()


def test_resplat_is_followed_to_its_limits(
    stand_in: list[dict[str, Any]], generator: torch.Generator
) -> None:
    gaussians, cameras = limits_of_resplat(generator)
    got, wanted = (rasterize(gaussians, cameras, (24, 32), n) for n in ("gsplat", "reference"))
    assert len(stand_in) == 1
    torch.testing.assert_close(got.color, wanted.color, rtol=1e-3, atol=1e-4)


def test_planes_that_no_number_says_are_refused(
    stand_in: list[dict[str, Any]], generator: torch.Generator
) -> None:
    gaussians, cameras = random_gaussians(5, generator), random_cameras(2, generator)
    cameras.far[:, 1] *= 2
    with pytest.raises(UserError, match=r"far is 200 to 400 times their near.*same far / near"):
        rasterize(gaussians, cameras, (4, 4), "gsplat", rules=RESPLAT)
    assert not stand_in
    rasterize(gaussians, cameras, (4, 4), "gsplat")


def test_a_cap_that_it_has_not_is_refused(
    stand_in: list[dict[str, Any]], generator: torch.Generator
) -> None:
    gaussians, cameras = random_gaussians(5, generator), random_cameras(1, generator)
    with pytest.raises(UserError, match=r"alpha_cap=0.9, but gsplat has a fixed cap of 0.999"):
        rasterize(gaussians, cameras, (4, 4), "gsplat", rules=DrawingRules(alpha_cap=0.9))
    assert not stand_in


def test_gradients_come_back_through_the_adapter(
    stand_in: list[dict[str, Any]], generator: torch.Generator
) -> None:
    cameras, gaussians = random_cameras(2, generator), random_gaussians(60, generator)
    gradients = {}
    for name in ("gsplat", "reference"):
        leaves = gaussians.map(lambda tensor: tensor.clone().requires_grad_())
        drawn = rasterize(leaves, cameras, (12, 12), name, rules=as_drawn(CLASSIC))
        (drawn.color.square().sum() + drawn.depth.square().sum()).backward()
        gradients[name] = leaves.map(lambda x: x.grad if x.grad is not None else x * 0)
    for part in PARAMETERS:
        got, wanted = (getattr(gradients[name], part) for name in ("gsplat", "reference"))
        assert wanted.norm() > 0 and (got - wanted).norm() < 1e-3 * wanted.norm(), part


def test_no_median_depth(stand_in: list[dict[str, Any]], generator: torch.Generator) -> None:
    gaussians, cameras = random_gaussians(5, generator), random_cameras(1, generator)
    with pytest.raises(UserError, match="no median depth"):
        rasterize(gaussians, cameras, (4, 4), "gsplat", extras=["depth_median"])


def test_auto_and_render_find_median_depth_elsewhere(
    stand_in: list[dict[str, Any]], generator: torch.Generator
) -> None:
    gaussians, cameras = random_gaussians(50, generator), random_cameras(1, generator)
    wanted = rasterize(gaussians, cameras, (8, 9), "cpu", extras=["depth_median"])
    auto = rasterize(gaussians, cameras, (8, 9), extras=["depth_median"])
    assert not stand_in
    assert auto.depth_median is not None and wanted.depth_median is not None
    assert torch.equal(auto.depth_median, wanted.depth_median)
    cpu = torch.device("cpu")
    assert draws_median("auto", cpu) and draws_median("reference", cpu)
    assert not draws_median("gsplat", cpu)


def test_without_a_fast_renderer_the_cpu_draws_and_says_so(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """Tensors on a device without a fast renderer: one warning; training there is refused."""
    missing = UserError("gsplat is not installed", "gsplat", "install it")
    monkeypatch.setattr(backend, "obstacle", lambda device: missing)
    gaussians, cameras = random_gaussians(5, generator), random_cameras(1, generator)
    wanted = rasterize(gaussians, cameras, (4, 4), "cpu")
    monkeypatch.setattr(cpu_backend, "obstacle", lambda device: UserError("no", "the CPU", "move"))
    monkeypatch.setitem(render.FAST, "cpu", ("gsplat", "cpu"))
    _warn_slow.cache_clear()
    with pytest.warns(
        UserWarning, match=r"gsplat is not installed.*on the CPU.*install it"
    ) as warned:
        drawn = rasterize(gaussians, cameras, (4, 4))
        rasterize(gaussians, cameras, (4, 4))
    assert len(warned) == 1
    assert torch.equal(drawn.color, wanted.color) and torch.equal(drawn.depth, wanted.depth)
    for refused in (
        lambda: fast_backend(torch.device("cpu")),
        lambda: rasterize(gaussians, cameras, (4, 4), extras=["screen"]),
    ):
        with pytest.raises(UserError) as caught:
            refused()
        assert caught.value.got.endswith("gsplat is not installed")
        assert (caught.value.wanted, caught.value.remedy) == ("gsplat", "install it")
    assert not draws_median("auto", torch.device("cpu"))
    _warn_slow.cache_clear()


@pytest.mark.cuda
def test_without_a_fast_renderer_cuda_tensors_are_drawn_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    gaussians, cameras = random_gaussians(50, generator), random_cameras(2, generator)
    wanted = rasterize(gaussians, cameras, (9, 8), "cpu")
    missing = UserError("it is not installed", "triton", "install it")
    for module in (backend, triton_backend):
        monkeypatch.setattr(module, "obstacle", lambda device: missing)
    means = gaussians.means.cuda().requires_grad_()
    _warn_slow.cache_clear()
    with pytest.warns(UserWarning, match="on the CPU"):
        drawn = rasterize(replace(gaussians.to("cuda"), means=means), cameras.to("cuda"), (9, 8))
    assert drawn.color.is_cuda and torch.equal(drawn.color.cpu(), wanted.color)
    drawn.color.sum().backward()
    assert means.grad is not None and means.grad.is_cuda and means.grad.abs().max() > 0
    _warn_slow.cache_clear()


def test_auto_is_what_draws_fast() -> None:
    assert fast_backend(torch.device("cpu")) == "cpu"


def test_the_stand_in_speaks_as_the_installed_gsplat() -> None:
    installed = pytest.importorskip("gsplat.rendering").rasterization
    known = inspect.signature(installed).parameters
    for name, parameter in inspect.signature(rasterization).parameters.items():
        assert name in known and known[name].default == parameter.default, name


def test_a_missing_gsplat_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    backend._broken.cache_clear()
    try:
        problem = backend.obstacle(torch.device("cuda"))
    finally:
        backend._broken.cache_clear()
    assert problem is not None and "pip install gsplat" in str(problem)


@pytest.mark.parametrize(
    ("count", "size", "targets"), [(2**28, (8, 8), 2), (1, (2**15, 2**14), 1), (2**20, (8, 8), 512)]
)
def test_what_gsplat_cannot_number_is_refused(
    count: int, size: tuple[int, int], targets: int, generator: torch.Generator
) -> None:
    """Gaussians and cameras that share one place in memory."""
    one = random_gaussians(1, generator, degree=0)
    gaussians = one.map(lambda x: x.expand(1, count, *x.shape[2:]))
    cameras = random_cameras(1, generator).map(lambda x: x.expand(1, targets, *x.shape[2:]))
    with pytest.raises(UserError, match="gsplat cannot number in 32 bits; wanted fewer"):
        backend.blend(gaussians, cameras, size, None, None, False, CLASSIC)


BUILD = """
import pathlib, time
folder = pathlib.Path(__file__).with_name("build")
folder.mkdir()  # fails where another process builds
time.sleep(1)
folder.rmdir()
_C = object()
"""


def test_two_processes_at_the_first_build_do_not_meet(tmp_path: Path) -> None:
    """gsplat deletes what another process is building; here that is an error of the second."""
    (tmp_path / "gsplat" / "cuda").mkdir(parents=True)
    for folder in ("gsplat", "gsplat/cuda"):
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "gsplat" / "cuda" / "_backend.py").write_text(BUILD)
    program = "import pmsplat.render.gsplat as g; print(g._broken())"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    env = os.environ | {"PYTHONPATH": path, "TORCH_EXTENSIONS_DIR": str(tmp_path / "built")}
    ranks = [
        subprocess.Popen([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    assert [rank.communicate()[0].strip() for rank in ranks] == [b"None", b"None"]


def test_a_build_that_fails_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = ModuleType("gsplat.cuda")
    monkeypatch.setitem(sys.modules, "gsplat.cuda", broken)  # has no _backend
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    backend._broken.cache_clear()
    try:
        problem = backend.obstacle(torch.device("cuda"))
    finally:
        backend._broken.cache_clear()
    assert problem is not None and "could not build" in problem.got
    assert "MAX_JOBS=2" in problem.remedy


@pytest.mark.cuda
@pytest.mark.parametrize("channels", [0, 3])
@pytest.mark.parametrize("rules", [CLASSIC, MIP, RESPLAT])
def test_gsplat_draws_what_the_reference_draws(
    channels: int, rules: DrawingRules, generator: torch.Generator
) -> None:
    """Where none of gsplat's own rules act: opacities below 0.9, centred principal points.

    Antialiased, Gaussians of about a pixel, none so thin that its determinant is lost in float32.
    """
    problem = backend.obstacle(torch.device("cuda"))
    if problem is not None:
        pytest.skip(str(problem))
    cameras = random_cameras(3, generator, batch=2)
    cameras.K[..., :2, 2] = 0.5
    cameras.near[:, 1] *= 30
    gaussians = random_gaussians(400, generator, batch=2, degree=3)
    gaussians = replace(gaussians, opacities=0.9 * gaussians.opacities, rules=rules)
    if rules.antialiased:
        gaussians.scales[:, ::2] *= 0.2
    attributes = torch.randn(2, 400, channels, generator=generator)
    drawn, gradients = {}, {}
    for name in ("gsplat", "reference"):
        leaves = gaussians.map(lambda tensor: tensor.cuda().requires_grad_())
        features = attributes.cuda().requires_grad_()
        drawn[name] = rasterize(
            leaves, cameras.to("cuda"), (48, 64), name, torch.ones(3, device="cuda"),
            features if channels else None,
        )  # fmt: skip
        images = [drawn[name].color, drawn[name].depth, drawn[name].attributes]
        sum(image.square().mean() for image in images if image is not None).backward()  # type: ignore[union-attr]
        gradients[name] = leaves.map(lambda x: x.grad if x.grad is not None else x * 0)
    for name in ("color", "depth", "alpha", *(["attributes"] if channels else [])):
        got, wanted = getattr(drawn["gsplat"], name), getattr(drawn["reference"], name)
        assert (got - wanted).norm() < 1e-3 * wanted.norm(), name
    for part in PARAMETERS:
        got, wanted = (getattr(gradients[name], part) for name in ("gsplat", "reference"))
        assert (got - wanted).norm() < 1e-2 * wanted.norm(), part


@pytest.mark.cuda
def test_the_reference_draws_the_same_on_cuda(generator: torch.Generator) -> None:
    cameras, gaussians = random_cameras(2, generator), random_gaussians(200, generator)
    here = rasterize(gaussians, cameras, (20, 30), "reference")
    there = rasterize(gaussians.to("cuda"), cameras.to("cuda"), (20, 30), "reference")
    torch.testing.assert_close(there.color.cpu(), here.color, rtol=1e-4, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("field", PARAMETERS)
def test_a_broken_gaussian_is_left_out_on_cuda_too(field: str, generator: torch.Generator) -> None:
    """Harmonics are not copied there to clean them; no NaN comes of that."""
    cameras, gaussians = random_cameras(2, generator), random_gaussians(50, generator)
    for at, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        getattr(gaussians, field)[0, at].view(-1)[-1] = value
    results = []
    for device in ("cpu", "cuda"):
        leaves = gaussians.map(lambda tensor, at=device: tensor.to(at).requires_grad_())
        drawn = rasterize(leaves, cameras.to(device), (20, 30), "reference")
        drawn.color.square().sum().backward()
        gradients = [getattr(leaves, name).grad.cpu() for name in PARAMETERS]
        results.append([drawn.color.detach().cpu(), *gradients])
    assert all(tensor.isfinite().all() for tensor in results[1])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)
