"""Optimising Gaussians: each rule against a closed form, and whole runs on small scenes."""

import json
import math
import os
import re
import shutil
import signal
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

import pmsplat
from pmsplat import cli
from pmsplat.data import synthetic
from pmsplat.errors import UserError
from pmsplat.evaluate.metrics import psnr
from pmsplat.geometry import camera
from pmsplat.models import depthsplat
from pmsplat.render import rasterize
from pmsplat.scene import open_scene
from pmsplat.tasks.cameras import from_file
from pmsplat.tasks.refine import Options, _fit, _report, _start, _strategy, refine
from pmsplat.tasks.refine._cloud import Cloud, Parameters
from pmsplat.tasks.refine._fit import Fit, wait_for
from pmsplat.tasks.refine._strategy import MCMC, Densify, Schedule
from pmsplat.types import CLASSIC, MIP, Cameras, Gaussians, Screen, Views
from tests.lab.encoder import Config, Encoder
from tests.models.picking import Picking
from tests.scenes import PARAMETERS, random_cameras, random_gaussians

SIZE = (40, 52)
QUICK = Options(steps=40, size=SIZE, random_points=600, save_every=1000, device="cpu")


def a_cloud(count: int, extent: float = 5.0, degree: int = 1, seed: int = 0) -> Cloud:
    gaussians = random_gaussians(count, torch.Generator().manual_seed(seed), degree=degree)
    return Cloud(Parameters.of(gaussians), extent, 100)


def draw(cloud: Cloud, seed: int = 1) -> torch.Tensor:
    """One optimiser step towards black; the loss before it."""
    cameras = random_cameras(1, torch.Generator().manual_seed(seed))
    color = rasterize(cloud.parameters.gaussians(), cameras, (24, 32)).color
    loss = color.square().mean()
    loss.backward()
    cloud.update(0)
    return loss.detach()


def test_parameters_give_back_their_gaussians() -> None:
    gaussians = random_gaussians(50, torch.Generator().manual_seed(0))
    back = Parameters.of(gaussians).gaussians()
    for name in PARAMETERS:
        torch.testing.assert_close(getattr(back, name), getattr(gaussians, name))


def test_steps_of_the_means_shrink_a_hundredfold_and_scale_with_the_scene() -> None:
    cloud = a_cloud(5, extent=3.0)
    rates = []
    for step in (0, 50, 100):
        cloud.parameters.means.grad = torch.zeros_like(cloud.parameters.means)
        cloud.update(step)
        rates.append(cloud.means_rate)
    assert rates == pytest.approx([3 * 1.6e-4, 3 * 1.6e-5, 3 * 1.6e-6])


def test_moments_follow_the_gaussians_that_are_taken() -> None:
    """Kept ones step on as if nothing happened; fresh ones as if they had just begun."""
    whole, taken = a_cloud(8), a_cloud(8)
    gradients = torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(2))

    def step(cloud: Cloud, gradient: torch.Tensor, at: int) -> torch.Tensor:
        before = cloud.parameters.means.detach().clone()
        cloud.parameters.means.grad = gradient.clone()
        cloud.update(at)
        return cloud.parameters.means.detach() - before

    for at in (0, 1):
        step(whole, gradients[at], at)
        step(taken, gradients[at], at)
    rows = torch.tensor([6, 1, 4, 6])
    taken.take(rows, torch.tensor([False, False, False, True]))
    torch.testing.assert_close(taken.parameters.means, whole.parameters.means[rows])
    moved = step(taken, gradients[2][rows], 2)
    torch.testing.assert_close(moved[:3], step(whole, gradients[2], 2)[rows[:3]])
    state = taken.adam.state[taken.parameters.means]
    torch.testing.assert_close(state["exp_avg"][3], 0.1 * gradients[2][6])
    torch.testing.assert_close(state["exp_avg_sq"][3], 1e-3 * gradients[2][6].square())


def test_a_clone_and_its_twin_hide_what_one_did() -> None:
    cloud = a_cloud(1)
    with torch.no_grad():
        cloud.parameters.means.copy_(torch.tensor([[0.0, 0.0, 4.0]]))
        cloud.parameters.log_scales.fill_(math.log(0.4))
    cameras = Cameras(
        torch.eye(4)[None, None],
        torch.tensor([[1.0, 0, 0.5], [0, 1.0, 0.5], [0, 0, 1]])[None, None],
        torch.full((1, 1), 0.1),
        torch.full((1, 1), 10.0),
    )
    before = rasterize(cloud.parameters.gaussians(), cameras, (33, 33)).detach()
    cloud.take(torch.tensor([0, 0]), torch.tensor([False, True]))
    doubled = rasterize(cloud.parameters.gaussians(), cameras, (33, 33)).detach()
    _strategy.clone(cloud, torch.tensor([[0], [1]]))
    after = rasterize(cloud.parameters.gaussians(), cameras, (33, 33)).detach()
    middle = (0, 0, 16, 16)
    assert after.alpha[middle].item() == pytest.approx(before.alpha[middle].item(), abs=1e-5)
    assert doubled.alpha[middle] > before.alpha[middle] + 0.05
    assert (after.alpha - before.alpha).abs().max() < (doubled.alpha - before.alpha).abs().max()


def test_the_halves_of_a_split_cover_its_place() -> None:
    """Their centres are spread like the Gaussian itself, and they are 1.6 times smaller."""
    count = 20_000
    one = random_gaussians(1, torch.Generator().manual_seed(3))
    cloud = Cloud(Parameters.of(one.map(lambda t: t.expand(1, 2 * count, *t.shape[2:]))), 5.0, 10)
    twins = torch.arange(2 * count).view(2, count)
    _strategy.split(cloud, twins, torch.Generator().manual_seed(4))
    halves = cloud.parameters.gaussians().detach()
    torch.testing.assert_close(halves.scales, one.scales.expand_as(halves.scales) / 1.6)
    assert torch.equal(halves.opacities, halves.opacities[:1, :1].expand(1, 2 * count))
    offsets = (halves.means - one.means)[0]
    spread = offsets.T @ offsets / len(offsets)
    scale = one.covariances[0, 0].diagonal().max().item()
    assert (spread - one.covariances[0, 0]).abs().max().item() < 0.03 * scale
    assert offsets.mean(dim=0).abs().max().item() < 0.03 * scale**0.5


def steep(cloud: Cloud, pull: list[float]) -> Densify:
    """A strategy that has seen such mean gradients, twice each."""
    strategy = Densify(Schedule.plan(100), most=10)
    screen_pull = torch.tensor(pull)
    strategy.restore({"pull": 2 * screen_pull, "seen": torch.full_like(screen_pull, 2)})
    return strategy


def test_small_ones_are_cloned_large_ones_split_and_the_rest_is_left_alone() -> None:
    cloud = a_cloud(4, extent=10.0)
    with torch.no_grad():
        sizes = torch.tensor([0.05, 0.5, 0.05, 0.5])  # a hundredth of the extent is 0.1
        cloud.parameters.log_scales.copy_(sizes.log()[:, None].expand(4, 3))
    before = cloud.parameters.map(lambda tensor: tensor.detach().clone())
    strategy = steep(cloud, [3e-4, 3e-4, 1e-4, 1e-4])
    strategy.grow(cloud, torch.Generator().manual_seed(0))
    after = cloud.parameters
    assert len(cloud) == 6
    for kept in (2, 3):
        for field in fields(Parameters):
            assert torch.equal(getattr(after, field.name)[kept], getattr(before, field.name)[kept])
    assert torch.equal(after.means[4], before.means[0]) and torch.equal(
        after.means[0], before.means[0]
    )
    opacity = before.logits[0].sigmoid()
    assert (1 - after.logits[[0, 4]].sigmoid()).prod().item() == pytest.approx(1 - opacity.item())
    torch.testing.assert_close(after.log_scales[[1, 5]].exp(), torch.full((2, 3), 0.5 / 1.6))
    assert not torch.equal(after.means[1], before.means[1])
    assert torch.equal(after.sh_rest[5], before.sh_rest[1])


def test_where_room_is_short_the_steepest_grow() -> None:
    cloud = a_cloud(8, extent=1e6)  # all are small
    before = cloud.parameters.means.detach().clone()
    steep(cloud, [0, 5e-4, 3e-4, 9e-4, 2.5e-4, 0, 0, 0]).grow(cloud, torch.Generator())
    assert torch.equal(cloud.parameters.means, before[[*range(8), 1, 3]])
    steep(cloud, [1.0] * 10).grow(cloud, torch.Generator())
    assert len(cloud) == 10


def test_gradients_count_in_half_images_where_a_gaussian_is_seen() -> None:
    strategy = Densify(Schedule.plan(3000), most=10)
    cloud = a_cloud(2)
    for radii in ([3.0, 0.0], [3.0, 2.0]):
        means = torch.zeros(1, 1, 2, 2, requires_grad=True)
        means.grad = (
            torch.tensor([[[[0.03, 0.0], [0.0, 0.02]]]]) * (torch.tensor(radii) > 0)[:, None]
        )
        screen = Screen(means, torch.tensor(radii)[None, None])
        strategy.after(cloud, screen, (20, 30), 1, torch.Generator())
    torch.testing.assert_close(strategy.state()["pull"], torch.tensor([2 * 0.03 * 15, 0.02 * 10]))
    assert strategy.state()["seen"].tolist() == [2, 1]


def test_faint_and_overgrown_ones_are_pruned_but_never_all() -> None:
    cloud = a_cloud(4, extent=1.0)
    with torch.no_grad():
        cloud.parameters.logits.copy_(torch.tensor([0.5, 0.004, 0.3, 0.006]).logit())
        cloud.parameters.log_scales.copy_(torch.tensor([0.05, 0.05, 0.2, 0.05]).log()[:, None])
    _strategy.prune(cloud, too_large=False)
    assert len(cloud) == 3
    _strategy.prune(cloud, too_large=True)
    assert cloud.parameters.logits.sigmoid().tolist() == pytest.approx([0.5, 0.006])
    with torch.no_grad():
        cloud.parameters.logits.copy_(torch.tensor([1e-3, 2e-3]).logit())
    _strategy.prune(cloud, too_large=True)
    assert cloud.parameters.logits.sigmoid().tolist() == pytest.approx([2e-3])


def test_a_reset_takes_opacities_down_and_forgets_where_they_were_going() -> None:
    cloud = a_cloud(30)
    draw(cloud)
    faint = cloud.parameters.logits.sigmoid().min().item()
    cloud.cap_opacities(0.01)
    opacities = cloud.parameters.logits.sigmoid()
    assert opacities.max().item() == pytest.approx(0.01)
    assert opacities.min().item() == pytest.approx(min(faint, 0.01))
    assert not cloud.adam.state[cloud.parameters.logits]["exp_avg"].any()
    assert cloud.adam.state[cloud.parameters.means]["exp_avg"].any()


def test_thirty_thousand_steps_go_by_the_papers() -> None:
    plan = Schedule.plan(30_000)
    assert plan == Schedule(30_000, 1000, 500, 15_000, 100, 3000)
    changes = [step for step in range(1, 30_001) if plan.changes(step)]
    assert changes == list(range(600, 15_001, 100))
    resets = [step for step in range(1, 30_001) if plan.resets(step)]
    assert resets == [3000, 6000, 9000, 12_000, 15_000]
    assert Schedule.plan(30_000, mcmc=True).change_until == 25_000


@pytest.mark.parametrize("copies", [1, 2, 3, 7, 51])
@pytest.mark.parametrize("opacity", [0.01, 0.4, 0.95])
def test_shared_gaussians_look_like_one(copies: int, opacity: float) -> None:
    """By quadrature: the copies, one behind the other, integrate to what the one did."""
    new, factor = _strategy.share_opacity(
        torch.tensor([opacity], dtype=torch.float64), torch.tensor([copies])
    )
    x = np.linspace(-12, 12, 200_001)
    one = opacity * np.exp(-0.5 * x**2)
    many = 1 - (1 - new.item() * np.exp(-0.5 * (x / factor.item()) ** 2)) ** copies
    assert np.trapezoid(many, x) == pytest.approx(np.trapezoid(one, x), rel=1e-6)
    assert many.max() == pytest.approx(opacity, rel=1e-9)


def test_dead_gaussians_move_onto_living_ones_and_some_are_added() -> None:
    cloud = a_cloud(100)
    draw(cloud)
    with torch.no_grad():
        cloud.parameters.logits[:30] = -8.0
        cloud.parameters.logits[30:] = 0.0
    before = cloud.parameters.map(lambda tensor: tensor.detach().clone())
    strategy = MCMC(Schedule.plan(100), most=103)
    strategy.move_and_add(cloud, torch.Generator().manual_seed(0))
    after = cloud.parameters
    assert len(cloud) == 103
    same = (after.means[:, None] == before.means).all(dim=-1)
    assert (same.sum(dim=1) == 1).all() and not same[:, :30].any()
    origin = same.int().argmax(dim=1)
    for source in range(30, 100):
        copies = (origin == source).nonzero()[:, 0]
        hidden = 1 - (1 - after.logits[copies].sigmoid()).prod()
        assert hidden.item() == pytest.approx(0.5, abs=1e-4)
        moment = cloud.adam.state[after.means]["exp_avg"][copies]
        assert len(copies) == 1 or not moment.any()
    assert torch.equal(after.means[30:100], before.means[30:])


def test_noise_has_the_shape_of_the_gaussian_and_spares_the_opaque() -> None:
    count = 20_000
    one = random_gaussians(1, torch.Generator().manual_seed(3))
    many = one.map(lambda t: t.expand(1, count, *t.shape[2:]).clone())
    opacities = torch.where(torch.arange(count) % 2 == 0, 0.0002, 0.5)[None]
    cloud = Cloud(Parameters.of(replace(many, opacities=opacities)), 2.0, 10)
    _strategy.add_noise(cloud, torch.Generator().manual_seed(5))
    moved = cloud.parameters.means.detach() - one.means[0]
    assert moved[1::2].abs().max() < 1e-9 + 1e-6 * moved[::2].abs().max()
    gate = 1 / (1 + math.exp(100 * (0.0002 - 0.005)))
    covariance = one.covariances[0, 0] / 2.0**2  # in extents
    expected = (5e5 * 1.6e-4 * gate) ** 2 * covariance @ covariance.T * 2.0**2
    spread = moved[::2].T @ moved[::2] / (count // 2)
    assert (spread - expected).abs().max().item() < 0.05 * expected.abs().max().item()


def test_points_get_the_size_of_their_gaps_and_the_colour_of_the_photos() -> None:
    grid = torch.stack(torch.meshgrid(*[torch.arange(5.0)] * 3, indexing="ij"), dim=-1)
    points = grid.flatten(0, 2) * 0.1 - torch.tensor([0.2, 0.2, -2.0])
    K = torch.tensor([[1.0, 0, 0.5], [0, 1.0, 0.5], [0, 0, 1]]).expand(1, 3, 3, 3)
    ends = torch.ones(1, 3)
    cameras = Cameras(torch.eye(4).expand(1, 3, 4, 4), K, 0.1 * ends, 9 * ends)
    images = torch.rand(1, 3, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    gaussians = _start.from_points(points, Views(images, cameras), degree=2)
    torch.testing.assert_close(gaussians.scales, torch.full_like(gaussians.scales, 0.1))
    assert gaussians.sh.shape == (1, 125, 9, 3) and not gaussians.sh[:, :, 1:].any()
    seen = 0.5 + 0.28209479177387814 * gaussians.sh[0, 0, 0]
    column, row = int(30 * (0.5 - 0.1)), int(20 * (0.5 - 0.1))
    torch.testing.assert_close(seen, images[0, :, :, row, column].median(dim=0).values)
    behind = _start.find_colors(torch.tensor([[0.0, 0, -3]]), Views(images, cameras))
    assert behind.tolist() == [[0.5, 0.5, 0.5]]


def test_random_points_are_seen_twice() -> None:
    cameras = random_cameras(5, torch.Generator().manual_seed(0))
    points = _start.sample_points(cameras, 500, torch.Generator().manual_seed(1))
    assert points.shape == (500, 3)
    counts = torch.zeros(500)
    for v in range(5):
        inside = camera.project_world(points, cameras.c2w[0, v], cameras.K[0, v])
        counts += (inside[:, :2].clamp(0, 1) == inside[:, :2]).all(-1) & (inside[:, 2] > 0)
    assert counts.min() >= 2
    away = replace(cameras, c2w=cameras.c2w.clone(), far=2 * cameras.near).at([0, 1])
    away.c2w[0, 1, :3, 3] += 1e6
    with pytest.raises(pmsplat.UserError, match="share too little"):
        _start.sample_points(away, 500, torch.Generator())


@pytest.mark.parametrize(
    ("start", "strategy"), [("random", "default"), ("random", "mcmc"), ("points", "default")]
)
def test_held_out_photos_come_closer(
    start: str, strategy: str, model_folder: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    options = replace(QUICK, start=start, strategy=strategy, steps=60)
    if start == "points":
        options = replace(options, random_points=None)
    summary = refine(model_folder, tmp_path / "out", options, tell=said.append)
    assert summary.trained_on == 8 and summary.held_out == 2
    assert summary.after.psnr > summary.before.psnr + 1.5
    assert summary.after.ssim > summary.before.ssim
    assert summary.after.gaussians != summary.before.gaussians
    assert [m.step for m in summary.history] == list(range(0, 61, 3))
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "cameras.json", "gaussians.ply", "metrics.json", "psnr.png", "sheet.png", "state.pt"
    ]  # fmt: skip
    whole = open_scene(model_folder).views(size=SIZE)
    assert whole.names is not None
    pictures = from_file(out, None, every=1, limit=None)  # as `view` shows them
    assert len(pictures) == 10 and pictures[0].size == SIZE
    for picture in pictures:
        camera = whole.cameras.at([whole.names[0].index(picture.name)])
        for part in ("c2w", "K", "near", "far"):
            torch.testing.assert_close(getattr(picture.camera, part), getattr(camera, part))
    scene = open_scene(model_folder).views([0, 8], SIZE)
    drawn = pmsplat.rasterize(pmsplat.load_ply(out / "gaussians.ply"), scene.cameras, SIZE)
    value = psnr(drawn.color, scene.images).mean().item()
    assert value == pytest.approx(summary.after.psnr, abs=1e-3)
    assert json.loads((out / "metrics.json").read_text())["history"][-1]["psnr"] == pytest.approx(
        value, abs=1e-3
    )
    for picture in ("psnr.png", "sheet.png"):
        with Image.open(out / picture) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert f"start: {start}, strategy: {strategy}" in said[0] and "s/step" in said[-1]


def test_only_the_end_of_many_steps_waits_for_the_device(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is queued then counts for the steps; a wait takes a second of this clock."""
    clock = iter(range(100))
    monkeypatch.setattr(_fit, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    waited: list[torch.device] = []
    monkeypatch.setattr(_fit, "wait_for", waited.append)
    photos = open_scene(model_folder).views([0, 1, 2], SIZE)
    start = Parameters.of(random_gaussians(50, torch.Generator().manual_seed(0), degree=1))
    schedule = Schedule.plan(10)
    fit = Fit(Cloud(start, 1.0, 10), Densify(schedule, 100), schedule, 0, 0)
    for _ in range(3):
        fit.advance(photos)
    assert not waited and fit.seconds == 3
    assert fit.judge(photos).seconds == 4 and len(waited) == 1
    assert fit.state()["seconds"] == 5 and len(waited) == 2


def test_seconds_are_taken_when_the_device_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    wait_for(torch.device("cpu"))
    wait_for(torch.device("cuda", 1))
    assert waited == [torch.device("cuda", 1)]


def test_the_faintest_are_dropped_with_their_moments() -> None:
    fit = Fit(a_cloud(5), Densify(Schedule.plan(40), 10), Schedule.plan(40), 0, 0)
    fit.cloud.gaussians().means.sum().backward()
    fit.cloud.update(0)
    fit.strategy.restore({"pull": torch.ones(5), "seen": torch.ones(5)})
    before, (moved, *_) = fit.cloud.parameters, fit.cloud.adam.state.values()
    moved["exp_avg"] += torch.arange(5.0)[:, None]
    rows = before.logits.argsort(descending=True)[:3].sort().values
    fit.drop_faintest(3)
    after = fit.cloud.parameters
    assert torch.equal(after.means, before.means[rows])
    assert torch.equal(fit.cloud.adam.state[after.means]["exp_avg"][:, 0], 0.1 + rows)
    assert all(not len(counts) for counts in fit.strategy.state().values())


@pytest.mark.parametrize("strategy", ["default", "mcmc"])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    strategy: str, room: str, tmp_path: Path
) -> None:
    options = replace(QUICK, strategy=strategy, most=900)
    whole = refine(room, tmp_path / "whole", options)

    def interrupt(sentence: str) -> None:
        if sentence.startswith("Step 22 of 40"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        refine(room, tmp_path / "parts", options, tell=interrupt)
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["state.pt"]
    said: list[str] = []
    resumed = replace(options, resume=True)
    parts = refine(room, tmp_path / "parts", resumed, tell=said.append)
    assert "Going on after step 22 of 40." in said
    for name in ("gaussians.ply", "sheet.png"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [replace(m, seconds=0) for m in parts.history] == [
        replace(m, seconds=0) for m in whole.history
    ]
    again = refine(room, tmp_path / "parts", resumed)
    assert again.history == parts.history
    other = refine(room, tmp_path / "other", replace(options, seed=1))
    assert other.after.psnr != whole.after.psnr


def test_a_full_gpu_leaves_the_state_of_the_last_whole_step(
    room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a step its photo comes again; a step half done is not kept."""
    monkeypatch.setattr(sys.modules[refine.__module__], "JUDGEMENTS", 1)
    options = replace(QUICK, size=(12, 16), steps=7, random_points=100, save_every=4)
    refine(room, tmp_path / "whole", options)

    def fill_at(step: int, owner: Any, name: str, options: Options = options) -> UserError:
        """What a run says whose memory is full at a call of a function."""
        calls, original = iter(range(1, step + 1)), getattr(owner, name)

        def full(*arguments: Any) -> Any:
            if next(calls) == step:
                raise RuntimeError("Triton Error [CUDA]: out of memory")
            return original(*arguments)

        with monkeypatch.context() as patch, pytest.raises(UserError) as caught:
            patch.setattr(owner, name, full)
            refine(room, tmp_path / name, options)
        return caught.value

    problem = fill_at(6, _fit, "measure_difference")
    said = re.fullmatch(
        r"out of memory on cpu after 5 of 7 steps, with (\d+) Gaussians and photos of 12x16",
        problem.got,
    )
    assert said is not None and f"such as `most={int(said[1]) * 3 // 4}`" in problem.remedy
    state = tmp_path / "measure_difference" / "state.pt"
    assert f"go on from {state}, which is of step 5, with `resume=True`" in problem.remedy
    refine(room, state.parent, replace(options, resume=True))
    one, other = (tmp_path / run / "gaussians.ply" for run in ("whole", "measure_difference"))
    assert one.read_bytes() == other.read_bytes()
    assert "which is of step 4," in fill_at(6, Cloud, "update").remedy
    # It goes on with fewer, and keeps the new bound
    state, said = tmp_path / "update" / "state.pt", []
    fewer = replace(options, resume=True, most=60)
    assert "which is of step 4," in fill_at(1, Cloud, "update", fewer).remedy
    assert refine(room, state.parent, fewer, tell=said.append).after.gaussians == 60
    assert "The faintest 40 of 100 Gaussians are left out: `most=60`." in said
    assert torch.load(state, weights_only=True)["settings"]["most"] == 60
    again = refine(room, state.parent, replace(fewer, most=None))
    assert again.after.gaussians == 60
    with pytest.raises(
        UserError, match=r"`most=50` for a run that .* all of its 7 steps, with 60 "
    ):
        refine(room, state.parent, replace(fewer, most=50))


def test_antialiased_runs_train_draw_and_leave_antialiased_gaussians(
    room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their PSNR is that of the Gaussians drawn so; small pictures are better than classic ones."""
    saved: list[Gaussians] = []
    monkeypatch.setattr(_report, "save_ply", lambda gaussians, path: saved.append(gaussians))
    options, said = replace(QUICK, antialiased=True), []
    summary = refine(room, tmp_path / "mip", options, tell=said.append)
    assert summary.antialiased and saved[0].rules == MIP
    assert any("antialiased" in sentence for sentence in said)
    views = open_scene(room).views([0, 8], SIZE)
    own, classic = (
        psnr(pmsplat.rasterize(saved[0], views.cameras, SIZE, rules=rules).color, views.images)
        for rules in (None, CLASSIC)
    )
    assert own.mean().item() == pytest.approx(summary.after.psnr, abs=0.01)
    assert summary.after.psnr > summary.before.psnr
    small = avg_pool2d(views.images[0], 4)
    size = (small.shape[-2], small.shape[-1])
    right, wrong = (
        psnr(pmsplat.rasterize(saved[0], views.cameras, size, rules=rules).color[0], small).mean()
        for rules in (None, CLASSIC)
    )
    assert right > wrong + 0.5
    # Resumed with other rules it would become something else
    with pytest.raises(pmsplat.UserError, match="begun with antialiased True, not False"):
        refine(room, tmp_path / "mip", replace(QUICK, resume=True))
    resumed = refine(room, tmp_path / "mip", replace(options, resume=True))
    assert resumed.history == summary.history and saved[1].rules == MIP
    # A start that was trained for other rules is said
    monkeypatch.setattr(
        "pmsplat.tasks.refine.load_gaussians", lambda path: replace(saved[0], up=(0.0, 0.0, 1.0))
    )
    onward = replace(QUICK, steps=1, init="mip.ply", random_points=None)
    for antialiased in (False, True):
        said.clear()
        again = replace(onward, antialiased=antialiased)
        began = refine(room, tmp_path / f"onward-{antialiased}", again, tell=said.append).before
        differs = (
            "The start was trained for the rules 'mip'; this run draws and trains by 'classic'"
        )
        assert any(differs in sentence for sentence in said) != antialiased
        expected = (own if antialiased else classic).mean().item()
        assert began.psnr == pytest.approx(expected, abs=1e-4)
        assert saved[-1].up == (0, 0, 1)  # what the file of the start says
        refine(room, tmp_path / f"onward-{antialiased}", replace(again, resume=True))
        assert saved[-1].up == (0, 0, 1)


def test_runs_of_before_there_were_rules_go_on(room: str, tmp_path: Path) -> None:
    refine(room, tmp_path / "old", QUICK)
    state = torch.load(tmp_path / "old/state.pt", weights_only=True)
    del state["settings"]["antialiased"]
    torch.save(state, tmp_path / "old/state.pt")
    assert not refine(room, tmp_path / "old", replace(QUICK, resume=True)).antialiased


def test_from_a_prediction_and_from_a_file(room: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = depthsplat.Config(
        vit="none", width=16, planes=8, transformer_layers=1, head_width=16, sh_degree=1
    )
    model = depthsplat.build(config).eval()
    few = replace(QUICK, model=model, steps=10, size=(32, 48), random_points=None)
    summary = refine(room, tmp_path / "predicted", few)
    assert summary.start == "prediction"
    assert summary.before.gaussians == 8 * 32 * 48  # one for each pixel of every photo
    assert summary.after.psnr > summary.before.psnr

    thin = refine(room, tmp_path / "thin", replace(few, most=2000))
    assert 900 < thin.before.gaussians < 1100  # room to grow: half of what there may be

    file = tmp_path / "predicted" / "gaussians.ply"
    views = open_scene(room).views([0, 8], (32, 48))
    drawn = pmsplat.rasterize(pmsplat.load_ply(file), views.cameras, (32, 48))
    onward = refine(room, tmp_path / "onward", replace(few, model=None, init=file))
    assert onward.start == "file"
    assert onward.before.psnr == pytest.approx(
        psnr(drawn.color, views.images).mean().item(), abs=0.01
    )
    assert onward.after.psnr > onward.before.psnr


def test_every_photo_gets_gaussians_of_a_model_that_speaks_of_some_views() -> None:
    """An encoder that looks at each view by itself gives the same, in whatever order it speaks."""
    generator = torch.Generator().manual_seed(0)
    views = Views(torch.rand(1, 7, 3, 16, 20, generator=generator), random_cameras(7, generator))
    torch.manual_seed(0)
    alone = Encoder(Config(levels=1)).eval()

    def start(encoder: Encoder | Picking) -> torch.Tensor:
        found = _start.from_prediction(encoder, views, 10**6, torch.Generator().manual_seed(0))
        return found.means[0, found.means[0, :, 0].argsort()]

    assert len(start(alone)) == 7 * 16 * 20
    assert torch.equal(start(Picking(alone, anchors=2)), start(alone))


def test_confidence_of_the_start_is_left_out_and_said(room: str, tmp_path: Path) -> None:
    said: list[str] = []
    one = replace(QUICK, steps=1, size=(24, 32))
    refine(room, tmp_path / "first", one, tell=said.append)
    assert not any("confidence" in line for line in said)
    start = pmsplat.load_ply(tmp_path / "first" / "gaussians.ply")
    rated = replace(start, confidence=0.5 * torch.ones_like(start.opacities))
    pmsplat.save_ply(rated, tmp_path / "rated.ply")
    again = replace(one, random_points=None, init=tmp_path / "rated.ply")
    refine(room, tmp_path / "second", again, tell=said.append)
    assert sum("The confidence of the start is left out" in line for line in said) == 1
    assert pmsplat.load_ply(tmp_path / "second" / "gaussians.ply").confidence is None


def test_a_run_in_the_folder_of_its_scene_leaves_it_its_cameras(
    model_folder: Path, tmp_path: Path
) -> None:
    scene = tmp_path / "scene"
    shutil.copytree(model_folder, scene)
    refine(f"{scene}/../scene", scene, replace(QUICK, random_points=None, steps=1, overwrite=True))
    assert (scene / "gaussians.ply").is_file() and not (scene / "cameras.json").exists()


def test_the_command(room: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--steps", "4", "--size", "24x32", "--device", "cpu", "--output", str(tmp_path / "out")]
    few = ["--sh-degree", "0", "--random-points", "300", "--test-every", "4", "--seed", "0"]
    assert cli.main(["refine", room, *more, *few]) == 0
    told = capsys.readouterr().err
    assert "7 photos of 24x32" in told and "3 held out" in told and "Before: 300 Gaussians" in told
    assert pmsplat.load_ply(tmp_path / "out" / "gaussians.ply").sh_degree == 0
    assert "start: random" in told and "Held-out PSNR" in told and "are in" in told
    assert cli.main(["refine", room, *more]) == 2
    assert "holds a run; wanted a new or empty folder; go on with" in capsys.readouterr().err
    assert cli.main(["refine", room, *more, "--resume", "--strategy", "mcmc"]) == 2
    assert "was begun with strategy default, not mcmc" in capsys.readouterr().err
    state = tmp_path / "out" / "state.pt"
    for damaged in (state.read_bytes()[:-100], b"nonsense"):
        state.write_bytes(damaged)
        assert cli.main(["refine", room, *more, "--resume"]) == 2
        assert "not a readable state" in capsys.readouterr().err
    assert cli.main(["refine", room, *more, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ROOM", "--start", "pionts"], r"--start pionts; wanted one of .*did you mean 'points'"),
        (["ROOM", "--start", "points"], r"has no sparse points; .*--start random"),
        (["ROOM", "--start", "file"], r"--start file alone; .*--init"),
        (["ROOM", "--start", "random", "--init", "x.ply"], r"--init with --start random"),
        (["ROOM", "--strategy", "mcmv"], r"--strategy mcmv; .*did you mean 'mcmc'"),
        (["ROOM", "--steps", "0"], r"--steps 0; wanted at least 1"),
        (["ROOM", "--test-every", "1"], r"--test-every 1; wanted at least 2"),
        (["ROOM", "--sh-degree", "4"], r"--sh-degree 4; wanted 0 to 3"),
        (["ROOM", "--random-points", "0"], r"--random-points 0; wanted at least 1"),
        (["ROOM", "--init", "x.ply", "--random-points", "9"], r"--random-points with --start file"),
        (["ROOM", "--strategy", "gsplat-mcmc"], r"gsplat is not installed|gsplat-mcmc on cpu"),
        (["ROOM", "--most", "0"], r"--most 0; wanted at least 1"),
        (["ROOM", "--resume"], r"there is no .*state\.pt; wanted an interrupted run"),
        (["ROOM", "--init", "x.ply"], r"no file x\.ply"),
        (["ROOM", "--size", "8x32"], r"--size 8x32; wanted height and width of at least 11"),
        (["ROOM", "--weights", "x.ckpt"], r"--weights alone; wanted the model .*; add --model"),
        (["ROOM", "--strategy", "mcmc", "--most", "99999999"], r"--most 99999999 .* at most 1677"),
        (["nowhere"], r"no scene at nowhere"),
        (["nowhere", "--start", "prediction"], r"pmsplat-small-v1, a small one that ships"),
    ],
)
def test_bad_input_is_told(
    arguments: list[str],
    sentence: str,
    room: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [room if argument == "ROOM" else argument for argument in arguments]
    assert cli.main(["refine", *given, "--output", "out", "--device", "cpu"]) == 2
    told = capsys.readouterr().err
    assert re.search(sentence, told), told
    assert told.strip().splitlines()[-1].startswith("pmsplat: ")


def test_where_the_fit_of_one_picture_has_gone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["refine", "--image", "x.png", "--output", "out"])
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and "scripts/fit_image.py" in told and told.count("\n") == 1


def test_gaussians_of_another_scene_and_none_are_told(room: str, tmp_path: Path) -> None:
    far = random_gaussians(10, torch.Generator().manual_seed(0))
    pmsplat.save_ply(replace(far, means=far.means + 1e4), tmp_path / "far.ply")
    with pytest.raises(pmsplat.UserError, match="that no photo of the scene sees"):
        refine(
            room, tmp_path / "out", replace(QUICK, random_points=None, init=tmp_path / "far.ply")
        )
    (tmp_path / "none.splat").write_bytes(b"")
    with pytest.raises(pmsplat.UserError, match=r"none\.splat"):
        refine(
            room, tmp_path / "out", replace(QUICK, random_points=None, init=tmp_path / "none.splat")
        )
    assert not (tmp_path / "out").exists()


def test_one_place_and_few_photos_are_told(tmp_path: Path) -> None:
    cameras = random_cameras(4, torch.Generator().manual_seed(0), spread=0.0)
    with pytest.raises(pmsplat.UserError, match="taken from one place"):
        _start.measure_extent(cameras)
    root = tmp_path / "two"
    synthetic.write(root, scenes=1, frames=2, size=(32, 32), seed=0, split="test")
    with pytest.raises(pmsplat.UserError, match="2 photos, 1 of them held out; wanted two or more"):
        refine(root / "test", tmp_path / "out", QUICK)


def test_sfm_points_of_real_photos(shared: Path, tmp_path: Path) -> None:
    options = replace(QUICK, steps=25, size=(48, 64), random_points=None)
    summary = refine(shared / "scenes" / "bonsai", tmp_path / "out", options)
    assert summary.start == "points"
    assert summary.after.psnr > summary.before.psnr + 1
