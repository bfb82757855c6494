"""gsplat's strategies behind our interface, with the installed gsplat.

Two operations of its MCMC have kernels for CUDA alone; here they are written out in torch.
"""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pmsplat import UserError
from pmsplat.geometry.gaussian import quat_to_rotation
from pmsplat.render import gsplat as renderer
from pmsplat.render import rasterize
from pmsplat.tasks.refine import Options, _gsplat, refine
from pmsplat.tasks.refine._cloud import Cloud, Parameters
from pmsplat.tasks.refine._options import choose_strategy
from pmsplat.tasks.refine._strategy import MCMC, Densify, Schedule
from pmsplat.types import Screen
from tests.scenes import random_cameras, random_gaussians

CPU = torch.device("cpu")
PLAN = Schedule(steps=100, sh_every=10, change_from=10, change_until=50, change_every=5,
                reset_every=40)  # fmt: skip
QUICK = Options(steps=60, size=(40, 52), random_points=600, save_every=1000, device="cpu")


@pytest.fixture
def ops() -> Any:
    """The module in which gsplat's strategies find their operations."""
    pytest.importorskip("gsplat")
    return import_module("gsplat.strategy.ops")


@pytest.fixture
def kernels(ops: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What gsplat's CUDA kernels for MCMC compute, in torch: equation 9 as its double sum."""

    def relocation(
        opacities: Tensor, scales: Tensor, ratios: Tensor, binoms: Tensor
    ) -> tuple[Tensor, Tensor]:
        new = 1 - (1 - opacities) ** (1 / ratios)
        sums = [
            sum(
                float(binoms[i, k]) * (-1) ** k / (k + 1) ** 0.5 * float(o) ** (k + 1)
                for i in range(int(n))
                for k in range(i + 1)
            )
            for o, n in zip(new, ratios, strict=True)
        ]
        return new, scales * (opacities / torch.tensor(sums))[:, None]

    def covariances(quats: Tensor, scales: Tensor, **asked: bool) -> tuple[Tensor, None]:
        assert asked == {"compute_covar": True, "compute_preci": False, "triu": False}
        half = quat_to_rotation(quats) * scales[:, None]
        return half @ half.mT, None

    monkeypatch.setattr(ops, "compute_relocation", relocation)
    monkeypatch.setattr(ops, "quat_scale_to_covar_preci", covariances)
    monkeypatch.setattr(_gsplat, "obstacle", lambda strategy, device: None)
    yield


def drawn(count: int = 40) -> tuple[Cloud, Screen]:
    """A cloud after one optimiser step, and what it looked like."""
    gaussians = random_gaussians(count, torch.Generator().manual_seed(0), degree=1)
    cloud = Cloud(Parameters.of(gaussians), 5.0, 100)
    cameras = random_cameras(1, torch.Generator().manual_seed(1))
    picture = rasterize(cloud.parameters.gaussians(), cameras, (24, 32), extras=["screen"])
    assert picture.screen is not None
    picture.screen.means.retain_grad()
    picture.color.square().mean().backward()
    cloud.update(0)
    return cloud, picture.screen


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_gradients_are_counted_as_ours_are(ops: Any) -> None:
    cloud, screen = drawn()
    ours, theirs = Densify(PLAN, 100), _gsplat.GsplatDefault(PLAN, 100)
    for step in (1, 2):
        ours.after(cloud, screen, (24, 32), step, generator())
        theirs.after(cloud, screen, (24, 32), step, generator())
    assert 0 < (theirs.state()["count"] > 0).sum() < 40
    torch.testing.assert_close(theirs.state()["grad2d"], ours.state()["pull"])
    assert torch.equal(theirs.state()["count"], ours.state()["seen"])
    assert len(cloud) == 40
    theirs.after(cloud, screen, (24, 32), 51, generator())
    assert theirs.state()["count"].max() == 2  # the time of changes is over


def test_it_duplicates_splits_and_prunes_and_adam_goes_on(ops: Any) -> None:
    cloud, screen = drawn()
    with torch.no_grad():
        cloud.parameters.logits[:3] = -8.0
    before = cloud.parameters.map(lambda tensor: tensor.detach().clone())
    moments = cloud.adam.state[cloud.parameters.means]["exp_avg"].clone()
    strategy = _gsplat.GsplatDefault(PLAN, 1000)
    steep = screen.means.grad.norm(dim=-1)[0, 0] * 10 > 2e-4  # type: ignore[union-attr]
    assert 3 < steep.sum() < 37
    for step in range(1, 16):
        strategy.after(cloud, screen, (24, 32), step, generator())
    assert len(cloud) > 40
    kept = (cloud.parameters.means[:, None] == before.means).all(dim=-1)
    assert not kept[:, :3].any()  # faint
    untouched = kept.any(dim=1).nonzero()[:, 0]
    origin = kept[untouched].int().argmax(dim=1)
    for field in fields(Parameters):
        now, then = getattr(cloud.parameters, field.name), getattr(before, field.name)
        assert len(now) == len(cloud) and now.requires_grad and now.is_leaf
        torch.testing.assert_close(now[untouched], then[origin])
        assert cloud.adam.state[now]["exp_avg"].shape == now.shape
    assert len(cloud.adam.state) == len(cloud.adam.param_groups) == 6
    after = cloud.adam.state[cloud.parameters.means]["exp_avg"][untouched]
    same = (after == moments[origin]).all(dim=-1)
    assert (same | (after == 0).all(dim=-1)).all() and same.any()
    cameras = random_cameras(1, torch.Generator().manual_seed(1))
    rasterize(cloud.parameters.gaussians(), cameras, (24, 32)).color.sum().backward()
    means = cloud.parameters.means.detach().clone()
    cloud.update(1)
    assert not torch.equal(cloud.parameters.means, means)


def test_the_bound_holds_and_the_steepest_grow(ops: Any) -> None:
    for most in (20, 40, 43):
        cloud, screen = drawn()
        strategy = _gsplat.GsplatDefault(PLAN, most)
        for step in range(1, 15):
            strategy.after(cloud, screen, (24, 32), step, generator())
        steepness = strategy.state()["grad2d"] / strategy.state()["count"].clamp_min(1)
        before = cloud.parameters.sh_rest.detach().clone()
        strategy.after(cloud, screen, (24, 32), 15, generator())
        assert len(cloud) == max(most, 40)
        copies = (cloud.parameters.sh_rest == before[:, None]).flatten(2).all(dim=-1).sum(dim=1)
        grown = (copies == 2).nonzero()[:, 0].tolist()
        assert set(grown) == set(steepness.topk(max(most - 40, 0)).indices.tolist())


def test_opacities_are_reset_when_it_is_time(ops: Any) -> None:
    cloud, screen = drawn()
    strategy = _gsplat.GsplatDefault(PLAN, 60)
    for step in range(1, 41):
        strategy.after(cloud, screen, (24, 32), step, generator())
        highest = cloud.parameters.logits.sigmoid().max().item()
        assert (highest <= 0.01001) == (step == 40)


def test_nothing_left_is_told(ops: Any) -> None:
    cloud, screen = drawn()
    with torch.no_grad():
        cloud.parameters.logits.fill_(-8.0)
    with pytest.raises(UserError, match="has removed every Gaussian"):
        _gsplat.GsplatDefault(PLAN, 60).after(cloud, screen, (24, 32), 15, generator())


def test_mcmc_moves_adds_and_looks_as_before(kernels: None) -> None:
    """gsplat's and ours, from the same cloud: as many, none faint, and the same total of light."""
    pictures = []
    cameras = random_cameras(2, torch.Generator().manual_seed(1))
    for kind in (_gsplat.GsplatMCMC, MCMC):
        cloud, screen = drawn(200)
        with torch.no_grad():
            cloud.parameters.logits[:30] = -8.0
        cloud.adam.param_groups[0]["lr"] = 0.0  # no noise
        before = rasterize(cloud.parameters.gaussians(), cameras, (24, 32))
        kind(PLAN, 206).after(cloud, screen, (24, 32), 15, generator())
        after = rasterize(cloud.parameters.gaussians(), cameras, (24, 32))
        assert len(cloud) == 206 and cloud.parameters.logits.sigmoid().min() > 0.0049
        pictures.append((after.color - before.color).abs().mean().item())
        moments = cloud.adam.state[cloud.parameters.means]["exp_avg"]
        assert moments.shape == (206, 3) and (moments == 0).all(dim=-1).sum() >= 30
    assert max(pictures) < 0.02


def test_noise_is_that_of_ours(kernels: None) -> None:
    spreads = []
    for kind in (_gsplat.GsplatMCMC, MCMC):
        cloud, screen = drawn(1)
        many = cloud.parameters.map(lambda t: t.detach().expand(20_000, *t.shape[1:]).clone())
        many.logits.fill_(-8.0)
        many.logits[0] = 0.0  # one is alive
        cloud = Cloud(many, 3.0, 100)
        kind(PLAN, 20_000).after(cloud, screen, (24, 32), 1, generator())
        moved = (cloud.parameters.means.detach() - many.means)[1:]
        assert torch.equal(cloud.parameters.logits, many.logits)
        spreads.append(moved.T @ moved / len(moved))
    assert (spreads[0] - spreads[1]).abs().max() < 0.05 * spreads[1].abs().max()


def test_all_faint_only_tremble(kernels: None) -> None:
    cloud, screen = drawn()
    with torch.no_grad():
        cloud.parameters.logits.fill_(-8.0)
    means = cloud.parameters.means.detach().clone()
    _gsplat.GsplatMCMC(PLAN, 60).after(cloud, screen, (24, 32), 15, generator())
    assert len(cloud) == 40 and not torch.equal(cloud.parameters.means, means)


@pytest.mark.parametrize("strategy", ["gsplat-default", "gsplat-mcmc"])
def test_a_run_gains_and_resumes_to_the_same_bits(
    strategy: str, kernels: None, room: str, tmp_path: Path
) -> None:
    options = replace(QUICK, strategy=strategy, most=700)
    torch.manual_seed(1)
    whole = refine(room, tmp_path / "whole", options)
    assert whole.strategy == strategy
    assert whole.after.psnr > whole.before.psnr + 1.5
    assert 600 < whole.after.gaussians <= 700 or strategy == "gsplat-default"

    def interrupt(sentence: str) -> None:
        if sentence.startswith("Step 33 of 60"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        refine(room, tmp_path / "parts", options, tell=interrupt)
    torch.manual_seed(2)
    parts = refine(room, tmp_path / "parts", replace(options, resume=True))
    files = [tmp_path / run / "gaussians.ply" for run in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert parts.after.psnr == whole.after.psnr


@pytest.mark.cuda
@pytest.mark.parametrize("strategy", ["gsplat-default", "gsplat-mcmc"])
@pytest.mark.parametrize("antialiased", [False, True])
def test_a_run_on_cuda(strategy: str, antialiased: bool, room: str, tmp_path: Path) -> None:
    problem = renderer.obstacle(torch.device("cuda"))
    if problem is not None:
        pytest.skip(str(problem))
    options = replace(QUICK, strategy=strategy, antialiased=antialiased, most=700, device="cuda")
    summary = refine(room, tmp_path / "out", options)
    assert summary.after.psnr > summary.before.psnr + 1.5
    assert summary.after.gaussians <= 700


def test_who_adds_and_removes_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_strategy(None, CPU) == "default"
    monkeypatch.setattr(renderer, "obstacle", lambda device: None)
    assert choose_strategy(None, CPU) == "gsplat-default"
    assert choose_strategy("default", CPU) == "default"


def test_what_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gsplat", None)
    monkeypatch.setattr(_gsplat.importlib.util, "find_spec", lambda name: None)
    for name in ("gsplat-default", "gsplat-mcmc"):
        with pytest.raises(UserError, match=f"`strategy={name}`, but gsplat is not installed"):
            choose_strategy(name, CPU)
    monkeypatch.setattr(_gsplat.importlib.util, "find_spec", lambda name: True)
    assert choose_strategy("gsplat-default", CPU) == "gsplat-default"
    with pytest.raises(UserError, match="`strategy=gsplat-mcmc` on cpu; wanted a CUDA device"):
        choose_strategy("gsplat-mcmc", CPU)
