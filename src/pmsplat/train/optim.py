"""The optimizer of the published models: AdamW with one cycle, and a slow pretrained backbone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn, optim

from ..contracts import backbone_parameters, is_within
from ..errors import UserError
from ..registry import check_settings, number, suggest


@dataclass
class Config:
    lr: float = 2e-4  # peak learning rate
    backbone_lr: float = 2e-6  # peak learning rate of the model's `backbone_parameters()`
    weight_decay: float = 0.01
    warm_up: float = 0.01  # share of the steps in which the rate rises from lr/25 to the peak
    parts: list[str] = field(default_factory=list)
    """Parts of the model that train, as "update"; the others are frozen. Empty: all."""

    def __post_init__(self) -> None:
        rates = {name: number(0) for name in ("lr", "backbone_lr", "weight_decay")}
        check_settings(self, rates | {"warm_up": number(0, 1)}, "optimizer.")


def freeze_others(model: nn.Module, parts: Sequence[str]) -> None:
    """Freezes all parameters outside `parts`; none, where there are no parts.

    A part is the beginning of the names of its parameters, up to a dot: "update" or "depth.vit".
    Raises UserError for a part without parameters that train.
    """
    if not parts:
        return
    trainable = [name for name, value in model.named_parameters() if value.requires_grad]
    for part in parts:
        if not any(is_within(name, part) for name in trainable):
            known = sorted({name.partition(".")[0] for name in trainable})
            raise UserError(
                f"optimizer.parts with {part!r}, of which this model trains nothing",
                f"some of {', '.join(known)}, or parts of these",
                suggest(part, known),
            )
    for name, value in model.named_parameters():
        if not any(is_within(name, part) for part in parts):
            value.requires_grad_(False)


def parameter_groups(model: nn.Module, cfg: Config) -> list[dict]:
    """Returns trainable parameters in two groups, "new" and "backbone"; empty groups are left out.

    The backbone are the parameters that the model's method `backbone_parameters` yields, if any.
    """
    pretrained = {id(parameter) for parameter in backbone_parameters(model)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if id(p) not in pretrained], "lr": cfg.lr},
        {"params": [p for p in trainable if id(p) in pretrained], "lr": cfg.backbone_lr},
    ]
    named = zip(groups, ("new", "backbone"), strict=True)
    return [group | {"name": name} for group, name in named if group["params"]]


def total_steps(steps: int) -> int:
    """Returns the length of the learning rate's schedule, 10 steps longer than the training."""
    return steps + 10


def build(
    model: nn.Module, cfg: Config, steps: int
) -> tuple[optim.AdamW, optim.lr_scheduler.OneCycleLR]:
    """The optimizer and its schedule, to be stepped once per optimizer step.

    Each group climbs by a cosine from lr/25 to its lr and falls by a cosine towards lr/25e4, which
    it would reach 10 steps after the last (as published); momentum stays. The optimizer is fused:
    a step with its `found_inf` set to 1, on the device, changes nothing.
    """
    groups = parameter_groups(model, cfg)
    optimizer = optim.AdamW(groups, weight_decay=cfg.weight_decay, fused=True)
    return optimizer, _plan(optimizer, cfg, steps)


def adopt(
    optimizer: optim.Optimizer, schedule: optim.lr_scheduler.OneCycleLR, cfg: Config, steps: int
) -> None:
    """Gives an optimizer and its schedule, as a checkpoint has them, the settings of `cfg`.

    They act from the next step on, whose rate is that of a run which had them from the first.
    """
    peaks = {"new": cfg.lr, "backbone": cfg.backbone_lr}
    names = [group["name"] for group in optimizer.param_groups]
    groups = [{"params": [nn.Parameter(torch.zeros(()))], "lr": peaks[name]} for name in names]
    other = optim.AdamW(groups, weight_decay=cfg.weight_decay)
    _plan(other, cfg, steps)  # gives its groups their peaks
    planned = _plan(other, cfg, steps, schedule.last_epoch - 1).state_dict()
    taken = ("lr", "initial_lr", "max_lr", "min_lr", "weight_decay")
    for group, wanted in zip(optimizer.param_groups, other.param_groups, strict=True):
        group.update({name: wanted[name] for name in taken})
    schedule.load_state_dict(planned | {"_step_count": schedule.state_dict()["_step_count"]})


def _plan(
    optimizer: optim.Optimizer, cfg: Config, steps: int, done: int = -1
) -> optim.lr_scheduler.OneCycleLR:
    """The schedule of an optimizer: its first step, or the one after `done` and one more."""
    warm_up = cfg.warm_up
    if warm_up * total_steps(steps) == 1:  # torch would divide by the length of the rise, 0 steps
        warm_up = math.nextafter(warm_up, 0)
    return optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total_steps(steps),
        pct_start=warm_up,
        cycle_momentum=False,
        anneal_strategy="cos",
        last_epoch=done,
    )
