"""The forecast of memory: close to what is really allocated, and an answer where it is too much."""

import pytest
import torch
from torch import nn

from pmsplat.errors import UserError
from pmsplat.models import depthsplat
from pmsplat.types import Views
from pmsplat.zoo import memory
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


def test_free_memory_of_this_machine() -> None:
    free = memory.free_bytes(CPU)
    assert free is None or 0 < free < 2**50
