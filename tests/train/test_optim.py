"""The learning-rate schedule against its closed form, and which parameters are the backbone."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from pmsplat.errors import UserError
from pmsplat.train import optim


class Model(nn.Module):
    """Has a new part, a pretrained one and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)
        self.vit = nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        return self.vit.parameters()


def closed_form(step: int, steps: int, peak: float, warm_up: float = 0.01) -> float:
    """One cycle: cosine from peak/25 to peak, then cosine to peak/25e4."""
    top = warm_up * (steps + 10) - 1
    start, end = peak / 25, peak / 25 / 1e4
    if step <= top:
        return peak + (start - peak) * (1 + math.cos(math.pi * step / top)) / 2
    return end + (peak - end) * (1 + math.cos(math.pi * (step - top) / (steps + 9 - top))) / 2


def test_learning_rates_follow_the_closed_form() -> None:
    steps = 990
    optimizer, schedule = optim.build(Model(), optim.Config(), steps)
    for step in range(steps):
        new, backbone = (group["lr"] for group in optimizer.param_groups)
        assert new == pytest.approx(closed_form(step, steps, 2e-4), rel=1e-6)
        assert backbone == pytest.approx(closed_form(step, steps, 2e-6), rel=1e-6)
        optimizer.step()
        schedule.step()


def test_groups_and_constants_are_the_published_ones() -> None:
    model = Model()
    optimizer, _ = optim.build(model, optim.Config(), steps=100)
    new, backbone = optimizer.param_groups
    assert [p.shape for p in new["params"]] == [(3, 2), (3,)]
    assert [p.shape for p in backbone["params"]] == [(2, 2), (2,)]
    assert (new["weight_decay"], new["betas"]) == (0.01, (0.9, 0.999))
    optimizer.step()
    assert new["betas"] == (0.9, 0.999)


def test_a_model_without_a_backbone_has_one_group() -> None:
    optimizer, _ = optim.build(nn.Linear(2, 2), optim.Config(lr=1e-3), steps=10)
    assert len(optimizer.param_groups) == 1
    assert torch.optim.AdamW is type(optimizer)


@pytest.mark.parametrize(("steps", "warm_up"), [(90, 0.01), (40, 0.02), (190, 0.005)])
def test_a_rise_of_no_steps_starts_at_the_peak(steps: int, warm_up: float) -> None:
    config = optim.Config(lr=1e-3, warm_up=warm_up)
    optimizer, schedule = optim.build(nn.Linear(2, 2), config, steps)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] < 1e-3


@pytest.mark.parametrize("done", [1, 4, 30])
def test_a_resumed_schedule_is_that_of_the_new_settings(done: int) -> None:
    """The rates are those of a run that had them from the first; unchanged ones stay exactly."""
    steps, old = 40, optim.Config(lr=2e-3, warm_up=0.1)
    new = optim.Config(lr=1e-3, backbone_lr=5e-6, weight_decay=0.3, warm_up=0.2)
    for settings in (new, old):
        runs = [optim.build(Model(), cfg, steps) for cfg in (old, settings)]
        for optimizer, schedule in runs:
            advance(optimizer, schedule, done)
        optimizer, schedule = optim.build(Model(), settings, steps)
        optimizer.load_state_dict(runs[0][0].state_dict())
        schedule.load_state_dict(runs[0][1].state_dict())
        optim.adopt(optimizer, schedule, settings, steps)
        wanted, reference = runs[1]
        for _ in range(done, steps):
            for group, theirs in zip(optimizer.param_groups, wanted.param_groups, strict=True):
                assert (
                    group["lr"] == theirs["lr"] and group["weight_decay"] == settings.weight_decay
                )
            advance(optimizer, schedule, 1)
            advance(wanted, reference, 1)
        assert schedule.state_dict() == reference.state_dict()


def advance(optimizer: torch.optim.Optimizer, schedule: OneCycleLR, steps: int) -> None:
    for _ in range(steps):
        optimizer.step()
        schedule.step()


def frozen(model: nn.Module) -> set[str]:
    return {name for name, value in model.named_parameters() if not value.requires_grad}


def test_parts_that_do_not_train_are_frozen_and_belong_to_no_group() -> None:
    model = Model()
    optim.freeze_others(model, [])
    assert frozen(model) == {"frozen.weight", "frozen.bias"}
    optim.freeze_others(model, ["head"])
    assert frozen(model) == {"frozen.weight", "frozen.bias", "vit.weight", "vit.bias"}
    optimizer, _ = optim.build(model, optim.Config(parts=["head"]), steps=10)
    (group,) = optimizer.param_groups
    assert (group["name"], [p.shape for p in group["params"]]) == ("new", [(3, 2), (3,)])


def test_a_part_may_be_deep_and_ends_at_a_dot() -> None:
    model = nn.ModuleDict({"a": Model(), "ab": Model()})
    optim.freeze_others(model, ["a.head", "ab.vit.bias"])
    trains = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trains == {"a.head.weight", "a.head.bias", "ab.vit.bias"}
    with pytest.raises(UserError, match=r"parts with 'vat'.*wanted some of head, vit.*'vit'"):
        optim.freeze_others(Model(), ["vat"])
    with pytest.raises(UserError, match="parts with 'frozen', of which this model trains nothing"):
        optim.freeze_others(Model(), ["frozen"])
