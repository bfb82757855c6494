"""Weights cast together are to the bit what autocast makes of them, and so are their gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pmsplat.nn import half
from pmsplat.nn.half import CastTogether, WatchCasts
from pmsplat.types import Prediction
from tests.models.tiny import shaken, tiny, views


def gradients(model: nn.Module, run: Callable[[], Tensor]) -> dict[str, Tensor | None]:
    """The value of `run` under autocast to bf16, and the gradient of every parameter."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        value = run()
    value.backward()
    return {"": value.detach()} | {name: p.grad for name, p in model.named_parameters()}


def score(prediction: Prediction) -> Tensor:
    """A number that every part of a prediction changes."""
    parts = [depth.square().mean() for depth in prediction.depths]
    for g in prediction.gaussians:
        parts += [x.square().mean() for x in (g.means, g.sh, g.scales, g.opacities, g.quats_wxyz)]
    return torch.stack(parts).sum()


@pytest.mark.parametrize(
    ("name", "changes", "count"),
    [
        ("depthsplat", {"scales": 2}, 3),
        ("depthsplat", {"vit": "vits"}, 2),
        ("depthsplat2024", {"scales": 2}, 3),
        ("depthsplat2024", {"vit": "vits"}, 2),
        ("mvsplat", {}, 2),
    ],
)
def test_an_encoder_gives_the_bits_of_autocast(
    name: str, changes: dict[str, Any], count: int, generator: torch.Generator
) -> None:
    model: Any = shaken(tiny(name, **changes)).train()
    given = views(generator, count)
    together = CastTogether(model)
    wanted = gradients(model, lambda: score(model(given)))
    for _ in range(2):  # the first call watches, the second casts
        found = gradients(model, lambda: score(together(given)))
        for key, value in wanted.items():
            assert (value is None) == (found[key] is None), key
            assert value is None or torch.equal(value, found[key]), key  # pyright: ignore
    assert all(p.dtype == torch.float32 and p.is_leaf for p in model.parameters())
    assert len(together.weights or []) > 0.6 * len(list(model.parameters()))


class Odd(nn.Module):
    """Weights that autocast casts, weights that it does not, one of both, and a shared one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.mixed = (nn.Linear(4, 4, bias=False) for _ in range(3))
        self.norm, self.frozen, self.idle = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.rand(4))
        self.twin = nn.Linear(4, 4, bias=False)
        self.twin.weight = self.first.weight
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(self.norm(self.first(x)) * self.scale)
        left, right = self.last.weight.split(2)  # cast in parts
        x = self.twin(torch.cat([nn.functional.linear(x, left), nn.functional.linear(x, right)], 1))
        return self.mixed(x).float() + self.mixed.weight.sum()


def test_only_what_autocast_casts_everywhere_is_cast(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    model, x = Odd(), torch.rand(3, 4, generator=generator)
    together = CastTogether(model)
    wanted = gradients(model, lambda: model(x).square().sum())
    for _ in range(2):
        found = gradients(model, lambda: together(x).square().sum())
        for key, value in wanted.items():
            assert (value is None) == (found[key] is None), key
            assert value is None or torch.equal(value, found[key]), key  # pyright: ignore
    assert together.weights == [
        (model.first, "weight"),
        (model.last, "weight"),
        (model.twin, "weight"),
    ]
    assert model.twin.weight is model.first.weight


def test_outside_autocast_nothing_is_cast_or_watched(generator: torch.Generator) -> None:
    model, x = Odd(), torch.rand(3, 4, generator=generator)
    together = CastTogether(model)
    assert together(x).dtype == torch.float32 and together.weights is None
    assert torch.equal(together(x), model(x))


def test_many_weights_share_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward: as many calls of the multi-tensor copy as there are groups."""
    calls: list[int] = []
    copy = torch._foreach_copy_

    def counted(to: list[Tensor], of: list[Tensor]) -> None:
        calls.append(len(of))
        copy(to, of)

    monkeypatch.setattr(torch, "_foreach_copy_", counted)
    weights = [torch.rand(3, 2, requires_grad=True) for _ in range(2 * half.TOGETHER + 1)]
    found = half.cast_together(weights, torch.bfloat16)
    assert calls == [half.TOGETHER, half.TOGETHER, 1]
    assert all(torch.equal(x, w.to(torch.bfloat16)) for x, w in zip(found, weights, strict=True))
    sum(x.float().sum() * i for i, x in enumerate(found[: half.TOGETHER + 1])).backward()  # pyright: ignore
    assert sorted(calls[3:]) == [1, half.TOGETHER]  # the group without gradients is not copied
    for i, weight in enumerate(weights):
        known = weight.grad is not None and weight.grad.dtype == torch.float32
        assert known == (i <= half.TOGETHER)
        assert not known or torch.equal(weight.grad, torch.full_like(weight, float(i)))  # pyright: ignore


def test_an_error_inside_gives_the_parameters_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    weight = model[0].weight

    def fail() -> None:
        with half.replaced([(model[0], "weight")], lambda w: [x.to(torch.bfloat16) for x in w]):
            assert model[0].weight.dtype == torch.bfloat16
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert model[0].weight is weight


@pytest.mark.cuda
def test_on_cuda_a_step_gives_what_autocast_gives_in_fewer_launches(
    generator: torch.Generator,
) -> None:
    model: Any = shaken(tiny("depthsplat", vit="vits")).train().cuda()
    given = views(generator).to("cuda")
    together = CastTogether(model)
    found, launches = {}, {}
    for name, run in (("autocast", model), ("watched", together), ("together", together)):
        model.zero_grad(set_to_none=True)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            with torch.autocast("cuda", torch.bfloat16):
                value = score(run(given))
            value.backward()
            torch.cuda.synchronize()
        found[name] = [value.detach(), *(p.grad for p in model.parameters())]
        launches[name] = sum(event.count for event in profile.key_averages())
    for a, b in zip(found["autocast"], found["together"], strict=True):
        assert (a is None) == (b is None)
        if a is not None:  # gradients on CUDA are not reproducible to the bit (atomic sums)
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * a.abs().max().item())
    assert launches["together"] < launches["autocast"] - len(together.weights or [])


def test_nothing_is_cast_where_a_weight_is_only_viewed() -> None:
    model = nn.Linear(2, 2)
    with WatchCasts(model, torch.bfloat16) as watched:
        model.weight.t().detach()
    assert watched.weights() == []
