"""The forecast of memory: close to what is really allocated, and an answer where it is too much."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from pmsplat.errors import UserError
from pmsplat.models import depthsplat
from pmsplat.types import Prediction, Views
from pmsplat.zoo import memory
from pmsplat.zoo.infer import predict_views
from pmsplat.zoo.memory import Peak, Plan, needed_bytes
from tests.scenes import random_cameras

CPU = torch.device("cpu")
TINY = depthsplat.Config(
    vit="none", width=16, planes=16, transformer_layers=1, head_width=16, sh_degree=0
)


def test_peak_counts_what_is_alive_and_not_what_was_known() -> None:
    layer = nn.Linear(256, 256, bias=False)
    with torch.no_grad(), Peak(layer) as watched:
        a = torch.ones(256, 256)  # 256 KiB
        b = a + 1  # 512 KiB at a time
        del a
        c = b.view(-1) * 2  # a view is not counted twice
        layer.weight.t()
        del b, c
    assert watched.peak == 2 * 256 * 1024
    assert watched.now == 0


def test_forecast_is_near_the_real_peak(generator: torch.Generator) -> None:
    model = depthsplat.build(TINY).eval()
    views = Views(torch.rand(1, 3, 3, 192, 256, generator=generator), random_cameras(3, generator))
    with torch.no_grad(), Peak(model) as watched:
        model(views)
    forecast = needed_bytes(model, Plan(3, (192, 256), 16), CPU)
    assert 0.8 < forecast / (memory.OVERHEAD * watched.peak) < 1.5


@pytest.mark.parametrize("asked", [None, 8])
def test_forecast_of_a_model_that_gathers_views(
    asked: int | None, generator: torch.Generator
) -> None:
    model = depthsplat.build(replace(TINY, anchors=2)).eval()
    views = Views(torch.rand(1, 8, 3, 96, 128, generator=generator), random_cameras(8, generator))
    with torch.no_grad(), Peak(model) as watched:
        model(views, anchors=asked)
    plan = Plan(8, (96, 128), 16, anchors=asked)
    forecast = needed_bytes(model, plan, CPU)
    assert 0.8 < forecast / (memory.OVERHEAD * watched.peak) < 1.6
    whole = needed_bytes(depthsplat.build(TINY).eval(), plan, CPU) if asked is None else forecast
    assert (forecast < 0.6 * whole) == (asked is None)


def test_fewer_views_are_no_remedy_where_they_are_gathered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = depthsplat.build(replace(TINY, anchors=2)).eval()
    plan = Plan(8, (256, 512), 16)
    need = needed_bytes(model, plan, CPU)
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(need / 2))
    with pytest.raises(UserError) as caught:
        memory.check(model, plan, CPU)
    assert caught.value.remedy == "use `size=160x336`"


def test_what_would_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = depthsplat.build(TINY).eval()
    plan = Plan(8, (256, 512), 16)
    need = needed_bytes(model, plan, CPU)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * need)
    memory.check(model, plan, CPU)
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(need / 2))
    with pytest.raises(UserError, match=r"use `views=3` or `size=160x336`") as caught:
        memory.check(model, plan, CPU)
    assert "8 views of 256x512 need about" in str(caught.value)
    with pytest.raises(UserError) as caught:
        memory.check(model, plan, CPU, fewer_views=False)
    assert caught.value.remedy == "use `size=160x336`"
    for offer in (Plan(3, (256, 512), 16), Plan(8, (160, 336), 16)):
        assert offer.pixels / plan.pixels <= 0.45
        memory.check(model, offer, CPU)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 100)
    with pytest.raises(UserError, match="a machine with more memory"):
        memory.check(model, plan, CPU)
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    memory.check(model, plan, CPU)


def test_gaussians_that_are_kept_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of all groups, beside a pass on the CPU; a GPU does not hold them."""
    model = depthsplat.build(TINY).eval()
    plan = Plan(4, (256, 512), 16, kept=100)
    numbers = 3 + 3 + 4 + 1 + 3  # of each Gaussian, which is one pixel's
    kept = memory.measure_needs(model, plan, CPU).kept
    assert kept == memory.HELD * 4 * numbers * 100 * 256 * 512
    work = needed_bytes(model, plan, CPU)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1.2 * (work + kept))
    memory.check(model, plan, CPU)
    monkeypatch.setattr(memory, "free_bytes", lambda device: (0.6 * work + kept) / memory.SPARE)
    with pytest.raises(UserError, match=r"beside the Gaussians of all 100 need.*; use `group=2`"):
        memory.check(model, plan, CPU)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0.5 * kept / memory.SPARE)
    with pytest.raises(
        UserError, match=r"Gaussians of 100 views .* takes.*use `views=\d+` or a sm"
    ):
        memory.check(model, plan, CPU)


class Full(nn.Module):
    """Fits in the small pass of the forecast, and not with the images that are given."""

    near, multiple, draws = None, 16, True

    def __init__(self, problem: RuntimeError) -> None:
        super().__init__()
        self.problem = problem

    def forward(self, views: Views) -> Prediction:
        if views.size != (64, 64):
            raise self.problem
        return Prediction((views.images[:, :, 0] + 1,), ())


@pytest.mark.parametrize(
    ("share", "remedy", "problem"),
    [
        (
            100.0,
            "use `views=4` or `size=176x352`",
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
        ),
        (0.4, "use `views=2` or `size=144x304`", RuntimeError("CUDA error: out of memory")),
    ],
)
def test_a_gpu_that_is_full_after_all_gets_the_same_answer(
    share: float,
    remedy: str,
    problem: RuntimeError,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At most half of what did not fit, less where less is free."""
    model, plan = Full(problem), Plan(8, (256, 512), 16)
    free = int(share * needed_bytes(model, plan, CPU))
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    views = Views(torch.rand(1, 8, 3, 256, 512, generator=generator), random_cameras(8, generator))
    with pytest.raises(UserError) as caught:
        predict_views(model, views)
    reason = str(problem).partition(".")[0]
    assert caught.value.got == f"8 views of 256x512 did not fit ({reason})"
    assert caught.value.remedy == remedy and "that are free on cpu" in caught.value.wanted
    with pytest.raises(UserError, match="use `views=4`"):
        predict_views(lambda given: model(given), views)
    model.problem = RuntimeError("another")
    with pytest.raises(RuntimeError, match="another"):
        predict_views(model, views)


@pytest.mark.cuda
def test_a_prediction_that_fills_the_gpu_is_one_sentence(generator: torch.Generator) -> None:
    """In a memory of 128 MiB; what is proposed fits."""
    model = depthsplat.build(TINY).eval().cuda()
    views = Views(torch.rand(1, 8, 3, 512, 512, generator=generator), random_cameras(8, generator))
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction(128 * 2**20 / total)
        with pytest.raises(UserError, match=r"8 views of 512x512 did not fit.*; use ") as caught:
            predict_views(model, views, "cuda")
        size = re.search(r"`size=(\d+)x(\d+)`", caught.value.remedy)
        assert size is not None
        smaller = replace(views, images=views.images[..., : int(size[1]), : int(size[2])])
        predict_views(model, smaller, "cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_free_memory_of_this_machine() -> None:
    free = memory.free_bytes(CPU)
    assert free is None or 0 < free < 2**50
